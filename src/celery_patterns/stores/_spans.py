"""Spans of time, in the whole numbers that stores count with."""

from __future__ import annotations

from datetime import timedelta

__all__ = ["microseconds", "span"]

_MICROSECOND = timedelta(microseconds=1)


def microseconds(length: timedelta) -> int:
    return length // _MICROSECOND


def span(length: int) -> timedelta:
    """Of so many microseconds; none is shorter than nothing."""
    return timedelta(microseconds=max(0, length))
