"""Keys in PostgreSQL or SQLite: the store, what it says to the database, and how it is reached."""

from __future__ import annotations

from ._store import SQLStore

__all__ = ["SQLStore"]
