"""Which key is meant: by what it is made of, or by the first characters of its digest."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any
from uuid import UUID

from .._idempotent import idempotent
from .._keys import name_in_store
from .._plan import worn
from ..exceptions import ConfigurationError, InvalidKey, KeyNotFound
from ._screens import SHORT_ID

if TYPE_CHECKING:
    from celery import Celery

    from ..typing import InspectableStore, KeyRecord

__all__ = ["found"]

#: What a value's text may stand for, beside itself.
_READ: list[Callable[[str], Any]] = [json.loads, UUID, Decimal, date.fromisoformat, datetime.fromisoformat]
#: How an option's value is named that a call brought as its own key.
_OWN = "idempotency_key"


def found(app: Celery, store: InspectableStore, words: tuple[str, ...]) -> KeyRecord:
    """The record that is meant.

    Args:
        app: The app, whose tasks say what their keys are made of.
        store: Where it stands.
        words: A digest's first characters; or a task's name, and ``name=value`` for each argument that its key is made of.

    Raises:
        KeyNotFound: When there is none.
        ConfigurationError: When several are meant, or the words mean none.
    """
    if len(words) == 1 and "=" not in words[0]:
        return _beginning(store, words[0])
    task, *pairs = words
    names = {*_names(app, task, dict(_split(pair) for pair in pairs))}
    meant = [record for name in names for record in store.records(name) if record.key == name]
    return _only(meant, f"of {task} with {' '.join(pairs)}")


def _beginning(store: InspectableStore, short: str) -> KeyRecord:
    task, colon, digest = short.rpartition(":")
    if not digest:
        raise ConfigurationError("expected the first characters of a key, as list shows it, got none")
    meant = [
        record
        for record in store.records(f"{task}:" if colon else "")
        if record.key.rpartition(":")[2].startswith(digest)
    ]
    return _only(meant, f"that begin with {short}" if len(meant) > 1 else f"that begins with {short}")


def _only(meant: list[KeyRecord], which: str) -> KeyRecord:
    if not meant:
        raise KeyNotFound(f"the store knows no key {which}")
    if len(meant) > 1:
        names = " and ".join(sorted(record.key.rpartition(":")[2][: SHORT_ID + 4] for record in meant)[:2])
        raise ConfigurationError(
            f"the store knows {len(meant)} keys {which}, for example {names}; expected one of them"
        )
    return meant[0]


def _split(pair: str) -> tuple[str, str]:
    name, given, text = pair.partition("=")
    if not given or not name:
        raise ConfigurationError(f"expected name=value behind the task's name, for example order_id=o-1; got {pair!r}")
    return name, text


def _names(app: Celery, task: str, said: dict[str, str]) -> Iterator[str]:
    """The names that the key may have in the store: of what type a value is, its text does not say."""
    if task not in app.tasks:
        raise ConfigurationError(f"the app has no task {task!r}")
    pattern = worn(app.tasks[task], idempotent)
    if pattern is None:
        raise ConfigurationError(f"{task} wears no idempotent(), so it has no keys")
    own = said.pop(_OWN, None)
    made = False
    for values in itertools.product(*map(_meanings, said.values())):
        arguments = _nested(dict(zip(said, values, strict=True)))
        try:
            yield name_in_store(task, pattern.key_of(task, arguments, (), arguments, own))
        except KeyError as missing:
            raise ConfigurationError(f"the key of {task} is made of {missing}, too; expected {missing}=value") from None
        except InvalidKey as error:
            refused = error
            continue
        made = True
    if not made:
        raise ConfigurationError(str(refused))


def _meanings(text: str) -> list[Any]:
    meant: list[Any] = [text]
    for read in _READ:
        try:
            value = read(text)
        except (ValueError, InvalidOperation, RecursionError):
            continue
        if not isinstance(value, float):
            meant.append(value)
    return meant


def _nested(said: dict[str, Any]) -> dict[str, Any]:
    """``{"order.id": 1}`` as the arguments that hold it."""
    arguments: dict[str, Any] = {}
    for path, value in said.items():
        *steps, last = path.split(".")
        place = arguments
        for step in steps:
            place = place.setdefault(step, {})
        place[last] = value
    return arguments
