"""Tollgate: token-gated job triggers on Kafka."""

__version__ = "0.1.0"
