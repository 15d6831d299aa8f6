"""Which edition of a task a process has: a digest of its code and of its patterns' values, alike wherever both are."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
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

#: Values are looked into so deep, and at so many in all: a policy of tenacity's is made of others, and these of numbers.
_DEPTH = 12
_MOST = 1_000
#: Whose objects are what they hold, and of which release they must be to be compared. Those of others may hold anything.
_POLICIES = {"tenacity": "tenacity", "celery_patterns": "celery-patterns"}
#: What is the same text in each process, where it is of no class of the user's.
_PLAIN = frozenset(
    {str, bytes, float, complex, type(None), type(...), range, date, time, timedelta, Decimal, UUID, re.Pattern}
)


def edition_of(body: Callable[..., Any], patterns: Iterable[Any]) -> str:
    """The digest, behind what it can be compared under: another Python makes other code of the same lines.

    Left out is what a process may have made by itself, as it was imported or since: the values of defaults and closures;
    and what stands elsewhere: what the body calls, and what its module holds.

    Args:
        body: The function, perhaps under decorators of the user's.
        patterns: What it wears.
    """
    teller = _Teller(str(getattr(body, "__module__", "")))
    told = repr(([*_layers(body)], [teller.tell(one, _DEPTH) for one in patterns]))
    return f"{_under()}/{hashlib.sha256(told.encode('utf-8', 'backslashreplace')).hexdigest()[:16]}"


@functools.cache
def _under() -> str:
    releases = map(_release, _POLICIES.values())
    return "-".join((platform.python_implementation(), platform.python_version(), str(sys.flags.optimize), *releases))


def _release(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # it is used from where it was unpacked
        return "?"


def _layers(function: Any) -> Iterator[Any]:
    """The function's code, and what stands under each decorator that says so."""
    while function is not None:
        code = getattr(function, "__code__", None)
        if isinstance(code, CodeType):
            yield _of_code(code)
        function = getattr(function, "__wrapped__", None)


def _of_code(code: CodeType) -> Any:
    """What it does; where it stands is left out."""
    constants = [_of_code(one) if isinstance(one, CodeType) else _of_constant(one) for one in code.co_consts]
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    names = (code.co_name, code.co_varnames, code.co_names, code.co_freevars, code.co_cellvars)
    return counts, names, code.co_code, getattr(code, "co_exceptiontable", b""), constants


def _of_constant(value: Any) -> Any:
    """One that stands in code: of these only a set's order is chance, and an int's text may be too long for Python."""
    if isinstance(value, frozenset):
        return sorted(repr(_of_constant(one)) for one in value)
    if isinstance(value, tuple):
        return [_of_constant(one) for one in value]
    return f"{type(value).__name__} {value:x}" if isinstance(value, int) else f"{type(value).__name__} {value!r}"


class _Teller:
    """Tells values without their addresses, and sets without their chance order.

    Args:
        home: The body's module, which another process may call ``__main__``: what stands there is named without it.
    """

    def __init__(self, home: str) -> None:
        self._home = home
        self._left = _MOST

    def tell(self, value: Any, depth: int) -> Any:
        kind = type(value)  # and not isinstance(), which would wake up what is lazy
        if kind in _PLAIN or kind in (int, bool):
            return _of_constant(value)
        self._left -= 1
        if depth == 0 or self._left < 0:
            return self._named(kind)
        if issubclass(kind, FunctionType | MethodType):
            return _of_code(value.__code__)
        if issubclass(kind, type | BuiltinFunctionType):
            return self._named(value)
        if issubclass(kind, Enum):
            return self._named(kind), value.name
        parts = self._parts(kind, value)
        return self._named(kind), None if parts is None else [self.tell(one, depth - 1) for one in parts]

    def _parts(self, kind: type, value: Any) -> Iterable[Any] | None:
        """What it is made of; None where nobody may ask."""
        if kind in (list, tuple):
            return tuple(value)
        if kind in (set, frozenset):
            return sorted(value, key=lambda one: repr(self.tell(one, 1)))
        if kind is dict:
            return tuple(value.items())
        if kind is functools.partial:
            return value.func, value.args, value.keywords
        if kind.__module__.partition(".")[0] not in _POLICIES:
            return None
        names = sorted({*getattr(value, "__dict__", ()), *getattr(kind, "__slots__", ())})
        return tuple((name, getattr(value, name, None)) for name in names)

    def _named(self, value: Any) -> str:
        module = getattr(value, "__module__", None)
        return str(value.__qualname__ if module == self._home else f"{module}.{value.__qualname__}")
