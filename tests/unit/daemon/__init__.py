"""The daemon's pure modules."""
