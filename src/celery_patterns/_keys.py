"""From bound arguments to a key and a fingerprint, in a canonical form of our own.

The form depends on no JSON library, and its version stands in every digest: two values that differ in value or in
type (1, 1.0, True and "1") never meet, and a release that changes the form cannot mistake an old key for a new one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from inspect import Parameter, Signature
from typing import Any
from uuid import UUID

from .exceptions import InvalidKey

__all__ = ["Binder", "argument_names", "canonical", "digest"]

VERSION = "1"

_LEAVES: dict[type, Callable[[Any], str]] = {
    type(None): lambda _: "n",
    bool: lambda value: "t" if value else "f",
    int: lambda value: f"i{value}",
    str: lambda value: f"s{len(value)}:{value}",
    bytes: lambda value: f"b{value.hex()}",
    Decimal: lambda value: f"D{value}",
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
    kind = type(value)
    leaf = _LEAVES.get(kind)
    if leaf is not None:
        if kind is Decimal and value.is_nan():
            raise InvalidKey(f"{where} is NaN, which equals nothing, not even itself")
        return leaf(value)
    if kind is float:
        if not floats:
            raise InvalidKey(f"{where} is a float; expected an exact value: use a str, an int or a Decimal in a key")
        if math.isnan(value):
            raise InvalidKey(f"{where} is NaN, which equals nothing, not even itself")
        return f"d{value!r}"
    if kind is list or kind is tuple:
        items = [canonical(item, where=f"{where}[{index}]", floats=floats) for index, item in enumerate(value)]
        return f"l{len(items)}[{','.join(items)}]"
    if kind is dict:
        return _canonical_mapping(value, where, floats)
    raise InvalidKey(
        f"{where} is a {kind.__module__}.{kind.__qualname__}; expected a plain value (str, int, bool, None, Decimal, "
        "UUID, bytes, a date or time, or a list or dict of them)",
    )


def _canonical_mapping(value: dict[Any, Any], where: str, floats: bool) -> str:
    parts = []
    for name in sorted(value, key=str):
        if type(name) is not str:
            raise InvalidKey(f"{where} has a key of type {type(name).__name__}; expected keys of type str")
        parts.append(f"s{len(name)}:{name}={canonical(value[name], where=f'{where}.{name}', floats=floats)}")
    return f"m{len(parts)}{{{','.join(parts)}}}"


def digest(*parts: str) -> str:
    """32 hexadecimal digits for the parts: 128 bits of SHA-256, version included."""
    text = "\x00".join((VERSION, *(f"{len(part)}:{part}" for part in parts)))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


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
        self._names = signature.parameters.keys()

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
