"""The HTTP API: what lies in the campaigns' folders is read here, what is asked for goes to the bus."""
