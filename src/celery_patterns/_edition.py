"""Which edition of a task a process has: a digest of its code and of its patterns' values, alike wherever both are."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Any

__all__ = ["edition_of"]

#: Values are looked into so deep: a policy of tenacity's is made of others, and these of numbers.
_DEPTH = 6
#: Whose values' text is the same in each process.
_PLAIN = frozenset({"builtins", "datetime", "decimal", "fractions", "uuid", "re", "enum"})
#: Whose objects are what they hold. Those of others may hold anything, as much as they like.
_POLICIES = frozenset({"tenacity", "celery_patterns"})


def edition_of(body: Callable[..., Any], patterns: Iterable[Any]) -> str:
    """The digest, behind what it can be compared under: another Python makes other code of the same lines.

    What the body calls is not looked into, nor what its module holds.

    Args:
        body: The function, perhaps under decorators of the user's.
        patterns: What it wears.
    """
    told = repr(([_of_code(one) for one in _layers(body)], [_told(one, _DEPTH) for one in patterns]))
    under = f"{platform.python_implementation()}-{platform.python_version()}-{sys.flags.optimize}"
    return f"{under}/{hashlib.sha256(told.encode('utf-8', 'backslashreplace')).hexdigest()[:16]}"


def _layers(function: Any) -> list[CodeType]:
    found = []
    while function is not None:
        code = getattr(function, "__code__", None)
        found += [code] if isinstance(code, CodeType) else []
        function = getattr(function, "__wrapped__", None)
    return found


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
    kind, home = type(value), type(value).__module__.partition(".")[0]
    code = value if isinstance(value, CodeType) else getattr(value, "__code__", None)
    if depth == 0:
        return kind.__qualname__
    if isinstance(value, type):
        return value.__qualname__  # its module may be called __main__
    if isinstance(code, CodeType):
        return _of_code(code)
    if isinstance(value, set | frozenset):
        return sorted(repr(_told(one, depth - 1)) for one in value)
    if isinstance(value, list | tuple):
        return [_told(one, depth - 1) for one in value]
    if home in _POLICIES:
        names = sorted({*getattr(value, "__dict__", ()), *getattr(kind, "__slots__", ())})
        return kind.__qualname__, [(name, _told(getattr(value, name, None), depth - 1)) for name in names]
    return f"{kind.__qualname__} {value!r}" if home in _PLAIN else kind.__qualname__
