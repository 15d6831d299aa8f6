"""A new value as somebody typed it: what it means depends on what stands there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from .._codec import MARKER, dumps, loads
from ..exceptions import ConfigurationError

__all__ = ["ABSENT", "Typed", "kind_of"]

#: An argument that the call left out.
ABSENT: Any = object()

#: What reading somebody's text or mark as another type may raise.
_NONE_SUCH = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def _zoned(text: str) -> str:
    """Python 3.10 does not read the Z of UTC."""
    return f"{text[:-1]}+00:00" if text.endswith("Z") else text


#: The codec's marks: what the type is called, how it is read, and an example.
_MARKED: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "decimal": ("Decimal", Decimal, "9.90"),
    "datetime": ("datetime", lambda text: datetime.fromisoformat(_zoned(text)), "2026-11-25T09:00:00+00:00"),
    "date": ("date", date.fromisoformat, "2026-11-25"),
    "time": ("time", lambda text: time.fromisoformat(_zoned(text)), "09:00:00"),
    "uuid": ("UUID", UUID, "6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
    "bytes": ("bytes", str.encode, "some text"),
    "base64": ("bytes", str.encode, "some text"),
}


def kind_of(wired: Any) -> str:
    """What the type of an argument is called that stands in a message like this."""
    if wired is ABSENT:
        return "not given"
    mark = _mark_of(wired)
    if mark is not None:
        return _MARKED[mark][0]
    return "None" if wired is None else type(wired).__name__


def _mark_of(wired: Any) -> str | None:
    if not isinstance(wired, dict) or wired.keys() != MARKER:
        return None
    mark = wired["__type__"]
    return mark if isinstance(mark, str) and mark in _MARKED else None


@dataclass(frozen=True)
class Typed:
    """A value for an argument, as text.

    Where a Decimal, datetime, date, time, UUID or bytes stands, the text is read as one. Elsewhere it is JSON, in which
    values may be marked in Celery's form, and what is no JSON is a text.
    """

    text: str

    def wired(self, name: str, stands: Any) -> Any:
        """The value as it is to stand in the message.

        Args:
            name: The argument's name.
            stands: What stands there.

        Raises:
            ConfigurationError: When the text is no value of the type that stands there.
            UnsafeValue: When the value would not arrive as it is.
        """
        known, told = _as_json(self.text)
        mark = _mark_of(stands)
        if mark is None or (isinstance(told, dict) and told.keys() == MARKER):
            value = _unmarked(name, self.text) if known and "__type__" in self.text else told
        else:
            value = _read(name, mark, told if isinstance(told, str) else self.text)
        return json.loads(dumps(value, name))


def _as_json(text: str) -> tuple[bool, Any]:
    try:
        return True, json.loads(text)
    except (ValueError, RecursionError):
        return False, text


def _unmarked(name: str, text: str) -> Any:
    try:
        return loads(text.encode())
    except _NONE_SUCH:
        raise ConfigurationError(f"the new value of {name} has a mark of Celery's, and is not what that says") from None


def _read(name: str, mark: str, text: str) -> Any:
    kind, read, example = _MARKED[mark]
    try:
        return read(text)
    except _NONE_SUCH:
        raise ConfigurationError(
            f"{name} holds a {kind}, and the new value is none; expected one, for example {name}={example}"
        ) from None
