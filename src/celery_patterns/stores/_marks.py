"""The memory of attempts that ended: ``<run>:<number>:<how>;`` for the last few runs of a key.

One string, so that every store keeps it in one field and a script can search it.
"""

from __future__ import annotations

import functools
import hashlib

__all__ = ["KEEP", "mark_of", "marked", "run_digest"]

#: How many runs (task ids) of one key are remembered.
KEEP = 8


@functools.lru_cache(maxsize=8)  # a run claims and then completes
def run_digest(run_id: str) -> str:
    """Twelve hexadecimal digits that stand for a run in the record."""
    return hashlib.sha256(run_id.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def marked(ended: str, run: str, number: int, *, failed: bool) -> str:
    """The marks, with a run's last end: it replaces an earlier one of the same run, and pushes out the oldest."""
    others = [mark for mark in ended.split(";")[:-1] if not mark.startswith(f"{run}:")]
    marks = [*others, f"{run}:{number}:{'f' if failed else 'h'}"][-KEEP:]
    return "".join(f"{mark};" for mark in marks)


def mark_of(ended: str, run: str) -> tuple[int, bool] | None:
    """Which attempt of the run ended last, and whether it failed; None where none did."""
    for mark in ended.split(";")[:-1]:
        name, number, how = mark.split(":")
        if name == run:
            return int(number), how == "f"
    return None
