"""The service between the bus and the child processes: intake, queue, executor, completion."""
