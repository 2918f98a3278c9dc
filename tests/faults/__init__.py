"""A campaign of faults against real daemons and a real server, and an independent checker of what they leave."""
