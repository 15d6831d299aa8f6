"""Which key is meant: by what it is made of, or by the first characters of its digest."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from inspect import Parameter, Signature
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
    for word in words:
        expect_text(word)
    if len(words) == 1 and "=" not in words[0]:
        if words[0] in app.tasks:
            raise ConfigurationError(
                f"expected name=value behind {words[0]}, for each argument that its key is made of"
            )
        return _beginning(store, words[0])
    task, *pairs = words
    said = dict(_split(pair) for pair in pairs)
    if len(said) < len(pairs):
        raise ConfigurationError("an argument is given twice; expected each once")
    meant = [store.record(name) for name in {*_names(app, task, said)}]
    return _only([record for record in meant if record is not None], f"of {task} with {' '.join(pairs)}")


def _beginning(store: InspectableStore, short: str) -> KeyRecord:
    _, colon, digest = short.rpartition(":")
    if not digest:
        raise ConfigurationError("expected the first characters of a key, as list shows it, got none")
    records = store.records(short if colon else "")
    meant = [record for record in records if record.key.rpartition(":")[2].startswith(digest)]
    return _only(meant, f"that begin with {short}" if len(meant) > 1 else f"that begins with {short}")


def _only(meant: list[KeyRecord], which: str) -> KeyRecord:
    meant = [*{record.key: record for record in meant}.values()]  # what is looked through may be told twice
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
        first = "" if "=" not in task else "; expected a task's name before name=value"
        raise ConfigurationError(f"the app has no task {task!r}{first}")
    pattern = worn(app.tasks[task], idempotent)
    if pattern is None:
        raise ConfigurationError(f"{task} wears no idempotent(), so it has no keys")
    terms = app.tasks[task].plan.terms
    refused: list[str] = []
    for given, key in _readings(said, terms.signature):
        strange = [name for name in given if not _may_be(name, pattern, terms.signature, given=key is not None)]
        if strange:
            refused.append(f"the key of {task} is not made of {strange[0]}; expected {_made_of(pattern)}")
            continue
        for values in itertools.product(*map(_meanings, given.values())):
            arguments = terms.bound.filled(_nested(dict(zip(given, values, strict=True))))
            try:
                yield name_in_store(task, pattern.key_of(task, arguments, (), arguments, key))
            except KeyError as missing:
                name = missing.args[0]
                refused.append(f"the key of {task} is made of {name}, too; expected {name}=value")
            except InvalidKey as error:
                refused.append(str(error))
            else:
                refused.append("")
    if all(refused):
        raise ConfigurationError(refused[0])


def _readings(said: dict[str, str], signature: Signature) -> list[tuple[dict[str, str], str | None]]:
    """What may be meant: the arguments alone, or beside them the key that a call brought."""
    if _OWN not in said:
        return [(said, None)]
    own = {name: text for name, text in said.items() if name != _OWN}, said[_OWN]
    return [(said, None), own] if _OWN in signature.parameters else [own]


def _may_be(name: str, pattern: idempotent, signature: Signature, *, given: bool) -> bool:
    taken = signature.parameters
    known = name.partition(".")[0] in taken or any(one.kind is Parameter.VAR_KEYWORD for one in taken.values())
    return known and pattern.is_made_of(name, given=given)


def _made_of(pattern: idempotent) -> str:
    names = pattern.made_of
    return " ".join(f"{name}=value" for name in names) if names else "name=value for arguments of the task"


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
            if not isinstance(place, dict):
                raise ConfigurationError(
                    f"{path} steps into {step}, which is given as a whole, too; expected one of the two"
                )
        place[last] = value
    return arguments


def expect_text(word: str) -> None:
    """Refuse what is no text in any encoding.

    Raises:
        ConfigurationError: For bytes that the terminal could not read.
    """
    try:
        word.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"expected text, got {word!r}") from None
