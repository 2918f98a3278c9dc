"""Summaries: what a campaign's artifacts say together; brought up to date one artifact at a time."""
