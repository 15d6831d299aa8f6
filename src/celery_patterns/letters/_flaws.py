"""What in a letter out of a file no broker would take: seen before the first of them is put back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from kombu.message import Message

from ._entry import entry_of

if TYPE_CHECKING:
    from .._letter import Letter
    from ._file import Kept

__all__ = ["flaw_of", "letter_in"]

#: What AMQP's tables have room for.
_LEAST, _MOST, _SHORT = -(2**63), 2**63 - 1, 255
_SIMPLE = (bool, float, bytes, datetime, Decimal, type(None))


def flaw_of(kept: Kept) -> str | None:
    """What is wrong with it, as the end of a sentence; None when it is a letter that can be put back."""
    if not isinstance(kept.headers, dict) or not _fits(kept.headers):
        return "has headers that no broker takes"
    if not all(isinstance(value, str | None) for value in (kept.content_type, kept.content_encoding)):
        return "has a content type or encoding that is no text"
    for name, value in kept.properties.items():
        if name in _PROPERTIES and not _PROPERTIES[name](value):
            return f"has a {name!r} that no broker takes"
    letter = letter_in(kept)
    if letter is None or letter.id != kept.id:
        return "is no letter, or not the one that it says"
    return None


def letter_in(kept: Kept) -> Letter | None:
    """The letter that it will be when it is back; None when it is none."""
    message = Message(
        body=kept.body,
        headers=kept.headers,
        properties=kept.properties,
        content_type=kept.content_type,
        content_encoding=kept.content_encoding,
    )
    entry = entry_of(message, kept.body, None)
    return None if entry is None else entry.letter


def _fits(value: Any) -> bool:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        return all(_short(name) and _fits(item) for name, item in value.items())
    if isinstance(value, list):
        return all(map(_fits, value))
    return isinstance(value, _SIMPLE) or (isinstance(value, int) and _LEAST <= value <= _MOST)


def _text(value: Any) -> bool:
    """Half a surrogate pair is no text."""
    return isinstance(value, str) and not any("\ud800" <= one <= "\udfff" for one in value)


def _short(value: Any) -> bool:
    return _text(value) and len(value.encode()) <= _SHORT


def _byte(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 255  # noqa: PLR2004 - what a byte holds


def _moment(value: Any) -> bool:
    return isinstance(value, datetime) or (type(value) is int and 0 <= value <= _MOST)


_PROPERTIES: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("correlation_id", "reply_to", "expiration", "message_id", "type", "app_id"), _short),
    **dict.fromkeys(("priority", "delivery_mode"), _byte),
    "timestamp": _moment,
}
