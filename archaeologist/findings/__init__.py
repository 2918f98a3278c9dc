"""The only place where numbers become sentences; pure. ``campaign`` over all checkpoints, ``analysis`` of one."""
