"""The memory of attempts that ended: ``<run>:<number>:<how>;`` for the last few runs of a key.

One string, so that every store keeps it in one field and a script can search it.
"""

from __future__ import annotations

import functools
import hashlib

__all__ = ["KEEP", "run_digest"]

#: How many runs (task ids) of one key are remembered.
KEEP = 8


@functools.lru_cache(maxsize=8)  # a run claims and then completes
def run_digest(run_id: str) -> str:
    """Twelve hexadecimal digits that stand for a run in the record."""
    return hashlib.sha256(run_id.encode("utf-8", "surrogatepass")).hexdigest()[:12]
