"""Strict JSON: what is encoded here is what arrives, in value and in type, or it is refused with its path.

The wire form is kombu's own, so that a worker without this library reads it: plain JSON, and
``{"__type__": "datetime", "__value__": "2026-01-31T12:00:00"}`` for the six kinds of value that JSON lacks.
Nothing here knows Celery, but for one fact: a signature is a dict with ``task``, ``args``, ``kwargs``, ``options``.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import orjson
from kombu.exceptions import EncodeError
from kombu.utils import json as kombu_json

from .exceptions import UnsafeValue

__all__ = ["dumps", "dumps_arguments", "dumps_message", "dumps_result", "loads"]

#: How deep values may be nested: a worker hands them to its child by pickle, and ends where that gives up, near 480.
DEEPEST = 300

MARKER = frozenset({"__type__", "__value__"})
_MARKED = (
    'has exactly the keys "__type__" and "__value__", which is how Celery marks its own types; expected any other keys'
)


def _marked(kind: str, value: Any) -> dict[str, Any]:
    return {"__type__": kind, "__value__": value}


def _bytes(value: bytes) -> dict[str, Any]:
    try:
        return _marked("bytes", value.decode())
    except UnicodeDecodeError:
        return _marked("base64", base64.b64encode(value).decode())


class _Refused(Exception):  # noqa: N818 - a signal between two functions
    """Somewhere inside; the path is found by a second, slower walk."""


def _decimal(value: Decimal) -> dict[str, Any]:
    if value.is_nan():  # an infinite Decimal equals itself and survives; NaN equals nothing
        raise _Refused
    return _marked("decimal", str(value))


def _moment(value: datetime | time) -> dict[str, Any]:
    # isoformat() keeps the offset and loses the zone's name: a ZoneInfo would come back as a fixed offset.
    if value.tzinfo is not None and type(value.tzinfo).__module__ != "datetime":
        raise _Refused
    if value.fold:
        raise _Refused
    return _marked("datetime" if type(value) is datetime else "time", value.isoformat())


_SCALARS: dict[type, Callable[[Any], Any]] = {
    Decimal: _decimal,
    UUID: lambda value: _marked("uuid", {"hex": value.hex}),
    datetime: _moment,
    date: lambda value: _marked("date", value.isoformat()),
    time: _moment,
    bytes: _bytes,
}
_PLAIN = frozenset({str, int, bool, type(None)})
_isfinite = math.isfinite


def _wire(value: Any) -> Any:
    """The value in kombu's wire form. Containers that hold only plain values are returned as they are."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is dict:
        return _wire_dict(value)
    if kind is list:
        return _wire_list(value)
    if kind is float:
        if _isfinite(value):
            return value
        raise _Refused
    scalar = _SCALARS.get(kind)
    if scalar is None:
        raise _Refused
    return scalar(value)


def _wire_list(value: Any) -> Any:
    changed: list[Any] | None = None
    for index, item in enumerate(value):
        if type(item) in _PLAIN:
            continue
        wired = _wire(item)
        if wired is not item:
            if changed is None:
                changed = list(value)
            changed[index] = wired
    return value if changed is None else changed


def _wire_dict(value: dict[Any, Any]) -> dict[str, Any]:
    changed: dict[str, Any] | None = None
    for name, item in value.items():
        if type(name) is not str:
            raise _Refused
        if type(item) in _PLAIN:
            continue
        wired = _wire(item)
        if wired is not item:
            if changed is None:
                changed = value.copy()
            changed[name] = wired
    if "__type__" in value and value.keys() == MARKER:
        raise _Refused
    return value if changed is None else changed


def _text(wired: Any) -> bytes:
    """Encode what is in wire form already."""
    try:
        return orjson.dumps(wired)
    except TypeError:
        # orjson refuses integers over 64 bits, lone surrogates and nesting over 254 levels; Python's own encoder
        # carries all three, and any worker reads them, as long as it can hand them to its child: pickle ends it at 480.
        if _deeper(wired, DEEPEST):
            raise _Refused from None
        try:
            return json.dumps(wired, allow_nan=False).encode()
        except ValueError:  # an integer with more digits than Python is willing to write
            raise _Refused from None


def _deeper(value: Any, levels: int) -> bool:
    """Whether it is nested deeper than this, or contains itself."""
    row = [value]
    for _ in range(levels):
        row = [
            inner
            for one in row
            if isinstance(one, list | tuple | dict)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not row:
            return False
    return True


def _find(value: Any, path: str, depth: int = 0) -> UnsafeValue | None:
    """The first value that cannot be carried, with its path and the cure."""
    if depth > DEEPEST:
        return UnsafeValue(path, "is nested too deeply, or contains itself; send an id and load the rest in the task")
    kind = type(value)
    if kind is dict:
        if value.keys() == MARKER:
            return UnsafeValue(path, _MARKED)
        for name, item in value.items():
            if type(name) is not str:
                return UnsafeValue(
                    path, f"has a key of type {type(name).__name__}; JSON would make it a str: use str keys"
                )
            found = _find(item, f"{path}.{name}" if name.isidentifier() else f"{path}[{name!r}]", depth + 1)
            if found is not None:
                return found
        return None
    if kind is list:
        for index, item in enumerate(value):
            found = _find(item, f"{path}[{index}]", depth + 1)
            if found is not None:
                return found
        return None
    problem = _problem(value, kind)
    return None if problem is None else UnsafeValue(path, problem)


def _problem(value: Any, kind: type) -> str | None:
    if kind in _PLAIN:
        return None
    if kind is Decimal:
        return "is NaN, which equals nothing, not even itself; send None" if value.is_nan() else None
    if kind is float:
        if math.isinf(value):
            return "is infinite, which JSON has no word for; send None or a str"
        return "is NaN, which JSON has no word for; send None or a str" if math.isnan(value) else None
    if kind in (datetime, time) and value.tzinfo is not None and type(value.tzinfo).__module__ != "datetime":
        cure = "value.astimezone(timezone.utc)" if kind is datetime else "a datetime in timezone.utc"
        return f"is in the time zone {value.tzinfo}, whose name would be lost; send {cure}"
    if kind in (datetime, time) and value.fold:
        return "has fold=1, which would be lost; send it in datetime's own timezone.utc"
    if kind in _SCALARS:
        return None
    return f"is a {kind.__module__}.{kind.__qualname__}; {_cure(value)}"


def _cure(value: Any) -> str:
    if isinstance(value, Enum):
        return "send its .value"
    if isinstance(value, tuple):
        return "it would arrive as a list: send a list"
    if isinstance(value, set | frozenset):
        return "send a sorted list"
    if isinstance(value, str | int | float | list | dict):
        return "it would arrive as its plain base type: send that"
    if hasattr(value, "_meta") or hasattr(value, "__mapper__"):
        return "send its primary key and load it in the task"
    if hasattr(value, "model_dump"):
        return 'send value.model_dump(mode="json"), or make it a task with pydantic=True'
    return "expected str, int, float, bool, None, datetime, date, time, Decimal, UUID, bytes, or a list or dict of them"


def _refuse(parts: Mapping[str, Any]) -> UnsafeValue:
    for path, value in parts.items():
        found = _find(value, path)
        if found is not None:
            return found
    return _unwritable()


def _positional(values: Any, path: str) -> Any:
    """Top-level positional arguments may be a tuple: that is Celery's own structure."""
    try:
        return _wire_list(values)
    except (_Refused, RecursionError):
        raise _refuse({f"{path}args[{index}]": value for index, value in enumerate(values)}) from None


def _named(values: Mapping[str, Any], path: str) -> dict[str, Any]:
    values = values if type(values) is dict else dict(values)
    try:
        return _wire_dict(values)
    except (_Refused, RecursionError):
        raise _refuse({f"{path}kwargs": values}) from None


def _is_signature(value: Any) -> bool:
    return isinstance(value, dict) and "task" in value and "args" in value and "kwargs" in value and "options" in value


def _structure(value: Any, path: str) -> Any:
    """Celery's own structures: loose about tuples and subclasses, strict where a signature holds user's values."""
    if _is_signature(value):
        return _signature(value, path)
    if isinstance(value, Mapping):
        if value.keys() == MARKER:
            raise UnsafeValue(path, _MARKED)
        return {name: _structure(item, f"{path}.{name}") for name, item in _str_keyed(value, path)}
    if isinstance(value, list | tuple):
        return [_structure(item, f"{path}[{index}]") for index, item in enumerate(value)]
    try:
        return _wire(value)
    except _Refused:
        return _by_kombu(value, path)


def _str_keyed(value: Mapping[Any, Any], path: str) -> list[tuple[str, Any]]:
    for name in value:
        if not isinstance(name, str):
            raise UnsafeValue(path, f"has a key of type {type(name).__name__}; JSON would make it a str: use str keys")
    return list(value.items())


def _by_kombu(value: Any, path: str) -> Any:
    """What Celery itself puts into a signature's options, in the form that Celery gives it."""
    if isinstance(value, float):
        raise UnsafeValue(path, str(_problem(value, float)))
    try:
        return json.loads(kombu_json.dumps(value))
    except (TypeError, ValueError) as error:
        raise UnsafeValue(path, str(_problem(value, type(value)))) from error


def _signature(value: Mapping[str, Any], path: str) -> dict[str, Any]:
    """One signature: its task's arguments are the user's, unless it is one of Celery's own tasks."""
    loose = str(value["task"]).startswith("celery.")
    here = f"{path}({value['task']})."
    wired = {name: _structure(item, f"{path}.{name}") for name, item in value.items() if name not in ("args", "kwargs")}
    wired["args"] = _structure(value["args"] or (), f"{here}args") if loose else _positional(value["args"] or (), here)
    wired["kwargs"] = (
        _structure(value["kwargs"] or {}, f"{here}kwargs") if loose else _named(value["kwargs"] or {}, here)
    )
    return wired


def dumps(value: Any, path: str = "value") -> bytes:
    """Encode one value strictly.

    Raises:
        UnsafeValue: When it, or anything inside it, would not come back equal in value and type.
    """
    try:
        return _text(_wire(value))
    except (_Refused, RecursionError):
        raise _refuse({path: value}) from None


def _message_text(wired: Any) -> bytes:
    try:
        return _text(wired)
    except (_Refused, RecursionError):
        raise _unwritable() from None


def _unwritable() -> UnsafeValue:
    return UnsafeValue(
        "the arguments",
        "are nested too deeply, contain themselves, or hold an integer of thousands of digits; send an id and load the rest",
    )


def dumps_message(args: Any, kwargs: Mapping[str, Any], embed: Mapping[str, Any], *, loose: bool = False) -> bytes:
    """Encode the body of a task message: ``[args, kwargs, {callbacks, errbacks, chain, chord}]``.

    Args:
        args: Positional arguments, a list or a tuple.
        kwargs: Named arguments.
        embed: The signatures that travel with the message.
        loose: True for Celery's own tasks, whose arguments are signatures and tuples of results.

    Raises:
        UnsafeValue: Naming the argument's path.
    """
    wired_args, wired_kwargs = _arguments(args, kwargs, loose=loose)
    for item in embed.values():
        if item is not None:
            embed = {name: value if value is None else _structure(value, name) for name, value in embed.items()}
            break
    return _message_text([wired_args, wired_kwargs, embed])


def dumps_arguments(args: Any, kwargs: Mapping[str, Any], *, loose: bool = False) -> bytes:
    """Encode ``[args, kwargs]``: what eager mode passes through the serializer.

    Raises:
        UnsafeValue: Naming the argument's path.
    """
    return _message_text(list(_arguments(args, kwargs, loose=loose)))


def _arguments(args: Any, kwargs: Mapping[str, Any], *, loose: bool) -> tuple[Any, Any]:
    if loose:
        return _structure(args, "args"), _structure(kwargs, "kwargs")
    return _positional(args, ""), _named(kwargs, "")


def dumps_result(value: Any) -> bytes | None:
    """Encode a result as a result backend would: tuples become lists, and keys strings. None when it cannot be carried."""
    try:
        return _text(_wire(_listed(value)))
    except (_Refused, RecursionError):
        return _as_backends_do(value)


def _as_backends_do(value: Any) -> bytes | None:
    try:
        text: str = kombu_json.dumps(value)
        kombu_json.loads(text)  # what looks like a mark of kombu's own could be written, and never be read
        return text.encode()
    except (EncodeError, TypeError, ValueError, RecursionError):
        return None


def _listed(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_listed(item) for item in value]
    if type(value) is dict:
        return {name: _listed(item) for name, item in value.items()}
    return value


def loads(text: bytes) -> Any:
    """Decode what :func:`dumps` wrote, as kombu does in any worker."""
    return kombu_json.loads(text)
