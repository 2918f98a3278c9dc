"""What an analysis costs on this machine: against reading its bytes, and against the specification's approach."""
