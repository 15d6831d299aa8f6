"""Which letters are meant: checked when it is written down, and asked for each letter."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from .._letter import REASONS, Letter
from ..exceptions import ConfigurationError
from ._causes import fingerprint_of

__all__ = ["Filter", "checked", "narrowed"]


@dataclass(frozen=True, kw_only=True)
class Filter:
    """What a letter must be; None says nothing.

    Attributes:
        since: Seconds since the epoch, like ``until``.
        limit: At most so many letters, the oldest first.
    """

    task: str | None = None
    reason: str | None = None
    error: str | None = None
    since: float | None = None
    until: float | None = None
    id: str | None = None
    root_id: str | None = None
    cause: str | None = None
    limit: int | None = None

    def takes(self, letter: Letter) -> bool:
        """Whether a letter is meant, the limit aside."""
        return (
            self.task in (None, letter.task)
            and self.reason in (None, letter.reason)
            and self.id in (None, letter.id)
            and self.root_id in (None, letter.root_id)
            and (self.error is None or _is_of(letter.error, self.error))
            and (self.cause is None or self.cause == fingerprint_of(letter))
            and (self.since is None or letter.died_at >= self.since)
            and (self.until is None or letter.died_at <= self.until)
        )


def narrowed(one: Filter, more: Filter) -> Filter | None:
    """Both at once; None when no letter can be both."""
    words = ("task", "reason", "error", "id", "root_id", "cause")
    found: dict[str, Any] = {}
    for name in words:
        first, second = getattr(one, name), getattr(more, name)
        if None not in (first, second) and first != second:
            return None
        found[name] = second if first is None else first
    return replace(
        one,
        **found,
        since=_both(max, one.since, more.since),
        until=_both(min, one.until, more.until),
        limit=_both(min, one.limit, more.limit),
    )


def _both(choose: Any, one: Any, other: Any) -> Any:
    known = [value for value in (one, other) if value is not None]
    return choose(known) if known else None


def _is_of(error: str, asked: str) -> bool:
    """Whether a type is meant by this name: whole, or from any of its dots on. A class may stand in another one."""
    return error == asked or error.endswith(f".{asked}")


def checked(
    *,
    since: datetime | timedelta | None,
    until: datetime | timedelta | None,
    limit: int | None,
    **words: str | None,
) -> Filter:
    """A filter out of what a user wrote.

    Raises:
        ConfigurationError: Naming the argument and the cure.
    """
    for name, value in words.items():
        if value is not None and (not isinstance(value, str) or not value):
            raise ConfigurationError(f"expected {name} to be a text, got {value!r}")
    reason = words.get("reason")
    if reason is not None and reason not in REASONS:
        raise ConfigurationError(f"expected reason to be one of {', '.join(sorted(REASONS))}; got {reason!r}")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ConfigurationError(f"expected limit to be at least 1, or None for all letters, got {limit!r}")
    began, ended = _moment_of("since", since), _moment_of("until", until)
    if began is not None and ended is not None and began > ended:
        raise ConfigurationError(
            f"since, {_said(since)}, is later than until, {_said(until)}; expected since to be the earlier one"
        )
    return Filter(**words, since=began, until=ended, limit=limit)


def _said(value: datetime | timedelta | None) -> str:
    return f"{value} ago" if isinstance(value, timedelta) else str(value and value.replace(microsecond=0))


def _moment_of(name: str, value: datetime | timedelta | None) -> float | None:
    """Seconds since the epoch, of a moment with a zone, or of a time ago.

    Raises:
        ConfigurationError: For anything else.
    """
    if value is None:
        return None
    if isinstance(value, timedelta) and value >= timedelta(0):
        return time.time() - value.total_seconds()
    if isinstance(value, datetime) and value.utcoffset() is not None:
        return value.timestamp()
    if isinstance(value, datetime):
        raise ConfigurationError(
            f"{name}={value!r} has no zone; expected one, for example datetime.now(timezone.utc), or a timedelta ago"
        )
    raise ConfigurationError(
        f"expected {name} to be a datetime with a zone, or a timedelta of at least 0 ago; got {value!r}"
    )
