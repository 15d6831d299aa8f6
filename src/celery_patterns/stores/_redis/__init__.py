"""Keys in Redis 6.2 or later: the store, the scripts that are its steps, and how the server is reached."""

from __future__ import annotations

from ._store import RedisStore

__all__ = ["RedisStore"]
