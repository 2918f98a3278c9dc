"""The bus: the only package that speaks NATS."""
