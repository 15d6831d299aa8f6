"""What a key, or its scope, is made of: an argument, a part of one, several of them, or what a function returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

from billiard.exceptions import SoftTimeLimitExceeded

from .._events import type_name
from .._keys import canonical
from ..exceptions import ConfigurationError, InvalidKey

__all__ = ["Key", "Source", "expect_names"]

Key = str | tuple[str, ...] | Callable[..., Any]

Role = Literal["key", "scope"]

_NAMED: dict[Role, str] = {"key": "the work", "scope": "whose key it is"}
_ABSENT = object()


class Source:
    """What a key, or its scope, is made of.

    Args:
        role: Which of the two.
        given: An argument's name, a path into one, a tuple of them, or a function of the arguments.

    Raises:
        ConfigurationError: When it is none of these.
    """

    __slots__ = ("_function", "_paths", "_role", "arguments", "plain", "said")

    def __init__(self, role: Role, given: Key) -> None:
        self._role: Role = role
        self._function = given if callable(given) else None
        #: The names and paths as they were given; none where it is a function.
        self.said: tuple[str, ...] = ()
        if not callable(given):
            self.said = given if isinstance(given, tuple) else (given,)
            expect_names(role, self.said)
        elif inspect.iscoroutinefunction(given):
            raise ConfigurationError(f"expected {role} to be a plain function, got an async one")
        self._paths = tuple([(name, *_words(role, name)) for name in self.said])
        #: The arguments it is taken from.
        self.arguments = tuple([words[0] for _, *words in self._paths])
        #: Whether it is made of whole arguments.
        self.plain = self._function is None and self.arguments == self.said

    def parts(
        self, task: str, arguments: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[str, ...]:
        """What goes into a digest: how it was made, and the canonical form of each value.

        Raises:
            InvalidKey: When there is no such value, or one that makes no key.
        """
        if self.plain:
            return ("names", *[self._form(arguments[name], f"{task}(): {name}") for name in self.said])
        if self._function is not None:
            return ("function", self._form(self._asked(task, args, kwargs), f"the {self._role} of {task}"))
        parts = ["paths"]
        for name, first, *steps in self._paths:
            value = self._reached(task, name, arguments[first], steps)
            # With its name: ("a.b", "c") and ("a", "b.c") may come to the same values.
            parts += (name, self._form(value, f"{task}(): {name}"))
        return tuple(parts)

    def overlaps(self, name: str) -> bool:
        """Whether it takes this argument or part of one, something in it, or something that holds it."""
        return any(f"{one}.".startswith(f"{name}.") or f"{name}.".startswith(f"{one}.") for one in self.said)

    def runs_code(self, arguments: Mapping[str, Any]) -> bool:
        """Whether code of the user's is run to make it: a function, or what an object does when an attribute is read."""
        if self._function is not None:
            return True
        for _, first, *steps in self._paths:
            value = arguments[first]
            for step in steps:
                if type(value) is not dict:
                    return True
                value = value.get(step)
        return False

    def _form(self, value: Any, where: str) -> str:
        # An argument that makes a key may be None. But a tenant that was forgotten would share its keys with all who were.
        if value is None and self._role == "scope":
            raise InvalidKey(f"{where} is None; expected a value that names {_NAMED[self._role]}")
        return canonical(value, where=where, floats=False)

    def _asked(self, task: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert self._function is not None
        try:
            value = self._function(*args, **kwargs)
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:
            raise InvalidKey(f"the {self._role} function of {task} raised {type_name(error)}") from error
        if value is None:
            names = _NAMED[self._role]
            raise InvalidKey(f"the {self._role} function of {task} returned None; expected a value that names {names}")
        return value

    def _reached(self, task: str, name: str, value: Any, steps: list[str]) -> Any:
        place = name.partition(".")[0]
        for step in steps:
            try:
                found = _step(value, step)
            except SoftTimeLimitExceeded:
                raise
            except Exception as error:
                told = f"{task}(): {self._role} names {name!r}, and {step!r} of {place} raised {type_name(error)}"
                raise InvalidKey(told) from error
            if found is _ABSENT:
                there = type(value).__qualname__
                raise InvalidKey(f"{task}(): {self._role} names {name!r}, but {place} is a {there} without {step!r}")
            place, value = f"{place}.{step}", found
        return value


def _step(value: Any, step: str) -> Any:
    """A mapping's value or an object's attribute, and never an attribute of a mapping, such as ``items``."""
    return value.get(step, _ABSENT) if isinstance(value, Mapping) else getattr(value, step, _ABSENT)


def _words(role: str, name: str) -> list[str]:
    words = name.split(".")
    if "" in words:
        raise ConfigurationError(
            f'expected {role} to be a path like "order.id", with a word on each side of a dot, got {name!r}'
        )
    return words


def expect_names(role: str, names: tuple[Any, ...], *, empty: bool = False) -> None:
    """Refuse what cannot be the names of arguments.

    Raises:
        ConfigurationError: Naming the option that holds them.
    """
    if not names and not empty:
        raise ConfigurationError(f"expected {role} to name at least one argument, got an empty tuple")
    for name in names:
        if not isinstance(name, str) or not name:
            raise ConfigurationError(
                f"expected {role} to be an argument's name, a tuple of names or a function, got {name!r}"
            )
    if len({*names}) < len(names):
        raise ConfigurationError(f"expected {role} to name each argument once, got {names!r}")
