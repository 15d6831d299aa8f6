"""CP4: what the functions of tasks say of themselves."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator
from datetime import timedelta
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from ..._republish import STRICT
from .._finding import Rule, Sign, rule

if TYPE_CHECKING:
    from .._case import Case
    from .._tasks import TaskFacts

#: What kombu's JSON refuses, and what strict JSON refuses beside it.
_NO_JSON: tuple[type, ...] = (set, frozenset, timedelta, PurePath, complex, bytearray)
_NO_STRICT: tuple[type, ...] = (tuple,)
_UNIONS = (typing.Union, types.UnionType)


@rule(
    "CP405",
    "error",
    "An async def that nobody awaits",
    "The task is SUCCESS, and its body never ran; where its result is stored, it fails because that is no value.",
    upstream="celery/kombu#1350",
)
def never_awaited(case: Case) -> Iterator[Sign]:
    """Celery calls a task's function and does not run what it returns."""
    for task in case.tasks:
        if inspect.iscoroutinefunction(task.task.run) and not task.is_called_otherwise:
            yield Sign(task.name, "it is an async def", "Make it a def, and call asyncio.run() in its body.")


@rule(
    "CP406",
    "error",
    "An argument that cannot be sent",
    "Each .delay() with such a value raises, before anything is sent.",
    upstream="celery/kombu#177",
)
def cannot_be_sent(case: Case) -> Iterator[Sign]:
    """An annotation names a type that JSON cannot carry."""
    for task in case.tasks:
        serializer = task.task.serializer
        if serializer not in ("json", STRICT) or getattr(task.task, "pydantic", False) or task.is_called_otherwise:
            continue
        for name, kind in _annotations(task):
            if _is_unsafe(kind, strict=serializer == STRICT):
                said = kind.__name__ if type(kind) is type else str(kind).replace("typing.", "")
                which = "strict JSON" if serializer == STRICT else "JSON"
                yield Sign(
                    task.name,
                    f"its argument {name} is annotated as {said}, which {which} cannot carry",
                    "Take a list, a dict or a str, and make what you need of it in the body.",
                )


def _annotations(task: TaskFacts) -> Iterator[tuple[str, Any]]:
    function = task.body
    if not getattr(function, "__annotations__", None):
        return
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # noqa: BLE001 - a name that only a type checker sees, or anything else an annotation may do
        return
    yield from ((name, kind) for name, kind in hints.items() if name not in ("return", "self"))


def _is_unsafe(kind: Any, *, strict: bool) -> bool:
    """Whether no value of this type can be sent; of several types in a union, each."""
    origin, parts = typing.get_origin(kind), [part for part in typing.get_args(kind) if part is not type(None)]
    if origin is typing.Annotated:
        return _is_unsafe(parts[0], strict=strict)
    if origin in _UNIONS:
        return bool(parts) and all(_is_unsafe(part, strict=strict) for part in parts)
    plain = origin or kind
    if not isinstance(plain, type):
        return False
    if dataclasses.is_dataclass(plain) or hasattr(plain, "model_dump"):
        return not hasattr(plain, "__json__")
    if issubclass(plain, Enum):
        return strict or not issubclass(plain, str | int)
    if issubclass(plain, (*_NO_JSON, *(_NO_STRICT if strict else ()))):
        return True
    return issubclass(plain, list | dict) and any(_is_unsafe(part, strict=strict) for part in parts)


RULES: tuple[Rule, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
