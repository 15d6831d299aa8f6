"""Which edition of a task a process has: a digest of its code and of its patterns' values, alike wherever both are."""

from __future__ import annotations

import functools
import hashlib
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any
from uuid import UUID

__all__ = ["edition_of"]

#: Values are looked into so deep: a policy of tenacity's is made of others, and these of numbers.
_DEPTH = 6
#: Whose objects are what they hold. Those of others may hold anything, as much as they like.
_POLICIES = frozenset({"tenacity", "celery_patterns"})


def edition_of(body: Callable[..., Any], patterns: Iterable[Any]) -> str:
    """The digest, behind what it can be compared under: another Python makes other code of the same lines.

    What the body calls is not looked into, nor what its module holds.

    Args:
        body: The function, perhaps under decorators of the user's.
        patterns: What it wears.
    """
    told = repr(([*_layers(body)], [_told(one, _DEPTH) for one in patterns]))
    under = f"{platform.python_implementation()}-{platform.python_version()}-{sys.flags.optimize}"
    return f"{under}/{hashlib.sha256(told.encode('utf-8', 'backslashreplace')).hexdigest()[:16]}"


def _layers(function: Any) -> Iterator[Any]:
    """The function, and what stands under each decorator that says so."""
    while function is not None:
        code = getattr(function, "__code__", None)
        if isinstance(code, CodeType):
            yield _of_function(function, code, _DEPTH)
        function = getattr(function, "__wrapped__", None)


def _of_function(function: Any, code: CodeType, depth: int) -> Any:
    defaults = [
        getattr(function, "__defaults__", None),
        sorted((getattr(function, "__kwdefaults__", None) or {}).items()),
    ]
    return _of_code(code), _told(defaults, depth)


def _of_code(code: CodeType) -> Any:
    """What it does; where it stands is left out."""
    constants = [_told(one, _DEPTH) for one in code.co_consts]
    return (
        code.co_name,
        code.co_argcount,
        code.co_kwonlyargcount,
        code.co_varnames,
        code.co_names,
        code.co_code,
        constants,
    )


def _told(value: Any, depth: int) -> Any:
    """A value without its address, and a set without its chance order."""
    kind = type(value)  # and not isinstance(), which would wake up what is lazy
    if depth < 0:
        return kind.__qualname__
    for kinds, tell in _TELLERS:
        if issubclass(kind, kinds):
            return tell(value, depth - 1)
    return _of_policy(value, depth - 1) if kind.__module__.partition(".")[0] in _POLICIES else kind.__qualname__


def _of_policy(value: Any, depth: int) -> Any:
    names = sorted({*getattr(value, "__dict__", ()), *getattr(type(value), "__slots__", ())})
    return type(value).__qualname__, [(name, _told(getattr(value, name, None), depth)) for name in names]


#: How each kind of value is told; another's text may hold its address, or more than is to be asked for.
_TELLERS: tuple[tuple[tuple[type, ...], Callable[[Any, int], Any]], ...] = (
    ((CodeType,), lambda code, _: _of_code(code)),
    ((FunctionType, MethodType), lambda function, depth: _of_function(function, function.__code__, depth)),
    ((type, BuiltinFunctionType), lambda value, _: value.__qualname__),  # its module may be called __main__
    ((Enum,), lambda value, _: (type(value).__qualname__, value.name)),
    ((set, frozenset), lambda values, depth: sorted(repr(_told(one, depth)) for one in values)),
    ((list, tuple), lambda values, depth: [_told(one, depth) for one in values]),
    ((dict,), lambda values, depth: [_told(one, depth) for one in values.items()]),
    ((functools.partial,), lambda made, depth: _told((made.func, made.args, made.keywords), depth)),
    (
        (
            str,
            bytes,
            int,
            float,
            complex,
            type(None),
            type(...),
            range,
            date,
            time,
            timedelta,
            Decimal,
            UUID,
            re.Pattern,
        ),
        lambda value, _: f"{type(value).__qualname__} {value!r}",
    ),
)
