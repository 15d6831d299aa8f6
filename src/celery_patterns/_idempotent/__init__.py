"""A key's work is done once: the pattern, a delivery's way to its key, the key that it holds, and the lease meanwhile."""

from ._pattern import idempotent

__all__ = ["idempotent"]
