"""The daemon in this process, on a real server, with real child processes."""
