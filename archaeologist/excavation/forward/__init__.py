"""The forward pass of the child: torch and transformers are imported here and nowhere else in it."""
