"""What a header tells, taken as far as it can be true: it may be written by hand, damaged, or of another release."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["FAR", "NAME_LIMIT", "all_of", "as_count", "as_mappings", "as_moment", "as_text"]

#: Numbers beyond this are no moments, spans or counts of ours.
FAR = 10**12
#: Characters of a name or an id that are told.
NAME_LIMIT = 500


def as_count(value: Any) -> int | None:
    """A whole number from 0; None for anything else."""
    return value if type(value) is int and 0 <= value < FAR else None


def as_moment(value: Any) -> float | None:
    """Seconds since the epoch; None for anything else."""
    return float(value) if type(value) in (int, float) and -FAR < value < FAR else None


def as_text(value: Any) -> str | None:
    """A text of at most 500 characters; None for anything else."""
    return value[:NAME_LIMIT] if isinstance(value, str) else None


def as_mappings(value: Any) -> list[dict[str, Any]]:
    """The last ten mappings of a list; none for anything else."""
    return [one for one in value if isinstance(one, dict)][-10:] if isinstance(value, list) else []


def all_of(value: Any) -> str:
    """All that is told, as one text that is the same each time it is read; nothing where it is too deep."""
    try:
        return json.dumps(value, default=str, skipkeys=True)  # a name that is no text comes as bytes
    except (TypeError, ValueError, RecursionError):
        return ""
