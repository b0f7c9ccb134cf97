"""The status page: how the system is, drawn from what Prometheus measured."""
