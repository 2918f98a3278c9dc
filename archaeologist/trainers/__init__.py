"""The trainer's side: announces saved checkpoints on the bus."""
