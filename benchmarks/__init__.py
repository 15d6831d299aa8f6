"""What the patterns cost, beside plain Celery: ``python -m benchmarks.run``."""
