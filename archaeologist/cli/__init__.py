"""The command line: one module a command group. Commands import what they need when they run."""
