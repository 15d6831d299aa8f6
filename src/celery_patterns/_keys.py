"""From bound arguments to a key and a fingerprint, in a canonical form of our own.

The form depends on no JSON library, and its version stands in every digest: two values that differ in value or in
type (1, 1.0, True and "1") never meet, and a release that changes the form cannot mistake an old key for a new one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from inspect import Parameter, Signature
from typing import Any
from uuid import UUID

from .exceptions import InvalidKey

__all__ = ["Binder", "argument_names", "canonical", "digest", "name_in_store"]

VERSION = "1"


def _decimal_form(value: Decimal) -> str:
    """Equal Decimals, as 9.9 and 9.90, are one value."""
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        return f"D{value}"
    text = "".join(map(str, digits)).lstrip("0")
    short = text.rstrip("0")
    return f"D{'-' if sign and short else ''}{short}e{exponent + len(text) - len(short) if short else 0}"


_LEAVES: dict[type, Callable[[Any], str]] = {
    type(None): lambda _: "n",
    bool: lambda value: "t" if value else "f",
    int: lambda value: f"i{value}",
    str: lambda value: f"s{len(value)}:{value}",
    bytes: lambda value: f"b{value.hex()}",
    Decimal: _decimal_form,
    UUID: lambda value: f"U{value.hex}",
    datetime: lambda value: f"T{value.isoformat()}",
    date: lambda value: f"A{value.isoformat()}",
    time: lambda value: f"C{value.isoformat()}",
    timedelta: lambda value: f"P{value.days},{value.seconds},{value.microseconds}",
}


def canonical(value: Any, *, where: str, floats: bool) -> str:
    """One string for one value.

    Args:
        value: What JSON carries, plus datetime, date, time, timedelta, Decimal, UUID and bytes.
        where: The value's place, for the error message.
        floats: Whether a float is allowed. It is not in a key: 0.1 + 0.2 and 0.3 would be two orders.

    Raises:
        InvalidKey: For NaN, for a float where none is allowed, and for any other type.
    """
    try:
        return _form(value, floats)
    except (_Unfit, RecursionError, ValueError):  # ValueError: an int of more digits than Python writes
        raise InvalidKey(_complaint(value, where, floats)) from None


class _Unfit(Exception):  # noqa: N818 - a signal between two functions
    """Somewhere inside; the place is found by a second, slower walk."""


def _form(value: Any, floats: bool) -> str:
    kind = type(value)
    if kind is str:
        return f"s{len(value)}:{value}"
    leaf = _LEAVES.get(kind)
    if leaf is not None:
        if kind is Decimal and value.is_nan():
            raise _Unfit
        return leaf(value)
    if kind is dict:
        return _form_of_mapping(value, floats)
    if kind is list or kind is tuple:
        return f"l{len(value)}[{','.join([_form(item, floats) for item in value])}]"
    if kind is float and floats and value == value:  # noqa: PLR0124 - NaN is what differs from itself
        return f"d{value!r}"
    raise _Unfit


def _form_of_mapping(value: dict[Any, Any], floats: bool) -> str:
    for name in value:
        if type(name) is not str:
            raise _Unfit
    parts = [f"s{len(name)}:{name}={_form(value[name], floats)}" for name in sorted(value)]
    return f"m{len(parts)}{{{','.join(parts)}}}"


def _complaint(value: Any, where: str, floats: bool) -> str:
    """What is wrong with the first value that has no form, and where it stands."""
    kind = type(value)
    if kind is list or kind is tuple:
        items = [(f"{where}[{index}]", item) for index, item in enumerate(value)]
    elif kind is dict:
        for name in value:
            if type(name) is not str:
                return f"{where} has a key of type {type(name).__name__}; expected keys of type str"
        items = [(f"{where}.{name}", value[name]) for name in value]
    else:
        return _complaint_about_leaf(value, where, floats)
    for place, item in items:
        try:
            _form(item, floats)
        except (_Unfit, ValueError):  # noqa: PERF203
            return _complaint(item, place, floats)
        except RecursionError:
            break
    return f"{where} is nested too deeply, or contains itself; expected a plain value of few levels"


def _complaint_about_leaf(value: Any, where: str, floats: bool) -> str:
    kind = type(value)
    if kind is float and not floats:
        return f"{where} is a float; expected an exact value: use a str, an int or a Decimal in a key"
    if kind is int:
        return f"{where} is an int of thousands of digits; expected a shorter one, or a str"
    if kind is float or kind is Decimal:
        return f"{where} is NaN, which equals nothing, not even itself"
    if callable(value):
        return f"{where} is a {kind.__qualname__} itself; expected what it returns, in beat_schedule by a BeatLazyFunc"
    return (
        f"{where} is a {kind.__module__}.{kind.__qualname__}; expected a plain value (str, int, bool, None, Decimal, "
        "UUID, bytes, a date or time, or a list or dict of them)"
    )


def digest(*parts: str) -> str:
    """32 hexadecimal digits for the parts: 128 bits of SHA-256, version included."""
    text = "\x00".join([VERSION, *[f"{len(part)}:{part}" for part in parts]])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def name_in_store(task: str, key: str) -> str:
    """What a store calls the key of a task: people who look through it see whose it is."""
    return f"{task}:{key}"


def argument_names(signature: Signature) -> list[str]:
    """The names a caller may use, in order: variadic parameters left out."""
    variadic = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return [name for name, parameter in signature.parameters.items() if parameter.kind not in variadic]


class Binder:
    """Arguments by name, defaults applied, so that ``f(7)`` and ``f(x=7)`` are one call.

    ``Signature.bind`` says the same, and costs ten times as much; it is asked where a call is odd.

    Args:
        signature: The body's signature as callers see it.
    """

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        kinds = {parameter.kind for parameter in signature.parameters.values()}
        plain = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
        self._plain = kinds <= set(plain)
        parameters = signature.parameters.items()
        self._positional = [name for name, one in parameters if one.kind is Parameter.POSITIONAL_OR_KEYWORD]
        self._defaults = {name: one.default for name, one in parameters if one.default is not Parameter.empty}
        by_position = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
        self._position = {name: index for index, (name, one) in enumerate(parameters) if one.kind in by_position}
        self._unnamed = {name for name, one in parameters if one.kind is Parameter.POSITIONAL_ONLY}
        self._names = signature.parameters.keys()

    def one(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """One argument by name, also of a call that the body does not take; None when it is missing."""
        if name in kwargs and name not in self._unnamed:
            return kwargs[name]
        position = self._position.get(name, len(args))
        return args[position] if position < len(args) else self._defaults.get(name)

    def stated(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Those that differ from their defaults: a default that a later release adds makes no other call of an old one."""
        defaults = self._defaults
        return {
            name: value
            for name, value in arguments.items()
            if name not in defaults or (value is not defaults[name] and not _equal(value, defaults[name]))
        }

    def filled(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """These, and the defaults of others."""
        return {**self._defaults, **arguments}

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of one call.

        Raises:
            TypeError: When the body does not take them, in Python's own words.
        """
        if self._plain and len(args) <= len(self._positional):
            bound = {**self._defaults, **dict(zip(self._positional, args, strict=False)), **kwargs}
            twice = len(args) and not kwargs.keys().isdisjoint(self._positional[: len(args)])
            if bound.keys() == self._names and not twice:
                return bound
        exact = self._signature.bind(*args, **kwargs)
        exact.apply_defaults()
        return dict(exact.arguments)


def _equal(value: Any, default: Any) -> bool:
    if type(value) is not type(default) and not isinstance(default, list | tuple):
        return False  # a large value's canonical form would be made a second time
    try:
        return canonical(value, where="", floats=True) == canonical(default, where="", floats=True)
    except InvalidKey:
        return False
