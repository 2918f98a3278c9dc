"""The directory watcher: announces the checkpoints of trainers that cannot announce their own."""
