"""The lockstep walk over two checkpoints and the two job types; runs in the child process only."""
