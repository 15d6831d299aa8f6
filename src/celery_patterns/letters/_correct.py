"""Correcting an argument of a letter's message, by name, and telling the next letter what it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Any

from celery.utils.saferepr import saferepr
from kombu.utils import json as kombu_json

from .._codec import dumps
from .._idempotent import idempotent
from .._message import HEADER
from .._plan import Plan, worn
from ..exceptions import ConfigurationError, InvalidKey
from ._entry import Entry
from ._ledger import Ledger
from ._typed import ABSENT, Typed, kind_of

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Correction"]

#: How much is remembered of what was corrected: so many times, so many characters each.
_TIMES = 10
_CHARACTERS = 200

#: What an argument was that was not given: no JSON text.
_NOT_GIVEN = "not given"
_NOT_SHOWN = "<corrected by a replay>"


@dataclass
class _Arguments:
    """A message's arguments as they stand in its JSON, so that what is not corrected stays what it is."""

    args: list[Any]
    kwargs: dict[str, Any]

    def texts(self, limit: int) -> dict[str, tuple[str, ...]]:
        """What Celery shows of them, unless the sender chose to show something else."""
        try:
            args, kwargs = kombu_json.loads(json.dumps([self.args, self.kwargs]))
        except (ArithmeticError, LookupError, TypeError, ValueError):  # marked as what kombu cannot read
            return {"argsrepr": (_NOT_SHOWN,), "kwargsrepr": (_NOT_SHOWN,)}
        return {
            "argsrepr": (saferepr(tuple(args), limit), saferepr(args, limit)),
            "kwargsrepr": (saferepr(kwargs, limit),),
        }


@dataclass(frozen=True)
class _Change:
    """What an argument was and gets, as it stands in the JSON, and the header that shows it."""

    where: str
    was: Any
    new: Any


@dataclass(frozen=True)
class Corrected:
    """A corrected message.

    Attributes:
        body: Its body.
        headers: Its headers.
        kinds: The type that each corrected argument had and gets, by its name: ``int -> str``.
    """

    body: bytes
    headers: dict[str, Any]
    kinds: dict[str, str]


class Correction:
    """New values for some arguments, checked; those that are no text to be read are encoded once.

    Args:
        app: Its tasks' signatures say where an argument stands.
        values: The new values by name, a :class:`Typed` among them where somebody typed it.
        keys: Holds the keys that corrected letters got, so that letters of several keys do not get one.

    Raises:
        ConfigurationError: When they are no names with values.
        UnsafeValue: When a value would not arrive as it is.
    """

    def __init__(self, app: Celery, values: Mapping[str, Any], keys: Ledger) -> None:
        if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
            raise ConfigurationError(
                f'expected correct to hold values by name, for example {{"order_id": "o-1"}}; got {type(values).__name__}'
            )
        self._app = app
        self._keys = keys
        self._values = {
            name: value if isinstance(value, Typed) else json.loads(dumps(value, name))
            for name, value in values.items()
        }

    def __bool__(self) -> bool:
        return bool(self._values)

    def apply(self, entry: Entry, body: Any, headers: dict[str, Any]) -> Corrected:
        """The message with the new values.

        Args:
            entry: The letter.
            body: Its body, ``[args, kwargs, embed]`` as JSON; None when it is not of this form.
            headers: The headers of the replay.

        Raises:
            ConfigurationError: When this letter's task does not take them, a text is not of the type that stands there, or
                the key would be that of another letter, whose key it was not.
            UnsafeValue: When a value would not arrive as it is.
        """
        if body is None:
            raise ConfigurationError(
                f"the letter {entry.letter.id} cannot be corrected: its body is not the JSON of a task's message"
            )
        args, kwargs, embed = body
        old, new = _Arguments(args, kwargs), _Arguments(list(args), dict(kwargs))
        was = self._set(entry, new)
        self._keep_apart(entry, old, new)
        kinds = {name: f"{kind_of(one.was)} -> {kind_of(one.new)}" for name, one in was.items()}
        text = json.dumps([new.args, new.kwargs, embed]).encode()
        return Corrected(text, self._told(entry, headers, old, new, was), kinds)

    def _set(self, entry: Entry, new: _Arguments) -> dict[str, _Change]:
        """Set the values, and give what was changed."""
        task = entry.letter.task
        takes = self._signature_of(task)
        was = {}
        for name, value in self._values.items():
            position = _position(takes, name)
            if name in new.kwargs:
                was[name] = change = self._change(entry, name, "kwargsrepr", new.kwargs[name], value)
                new.kwargs[name] = change.new
            elif position is not None and position < len(new.args):
                was[name] = change = self._change(entry, name, "argsrepr", new.args[position], value)
                new.args[position] = change.new
            elif takes is not None and _takes(takes, name):
                was[name] = change = self._change(entry, name, "kwargsrepr", ABSENT, value)
                new.kwargs[name] = change.new
            else:
                raise ConfigurationError(f"{_of(entry)} {_refusal(task, takes, name, new)}")
        if takes is not None:
            try:
                takes.bind(*new.args, **new.kwargs)
            except TypeError as error:
                raise ConfigurationError(f"{_of(entry)} {task}() would refuse the corrected call: {error}") from None
            if task is not None:
                self._check_key(entry, task, new)
        return was

    def _check_key(self, entry: Entry, task: str, new: _Arguments) -> None:
        """As a sender's call is checked."""
        plan = getattr(self._app.tasks[task], "plan", None)
        if not isinstance(plan, Plan) or not plan.checks:
            return
        try:
            args, kwargs = kombu_json.loads(json.dumps([new.args, new.kwargs]))
        except (ArithmeticError, LookupError, TypeError, ValueError):
            return  # the worker reads it no better, and says so
        try:
            for check in plan.checks:
                check(task, plan.terms.bound, tuple(args), kwargs, _header_of(entry).get("key"))
        except InvalidKey as error:
            raise ConfigurationError(f"{_of(entry)} {error}") from None

    def _keep_apart(self, entry: Entry, old: _Arguments, new: _Arguments) -> None:
        """Letters of several keys that all get one would be one run, and the others' work would never be done."""
        after = self._key_of(entry, new)
        if after is None:
            return
        before = self._key_of(entry, old) or f"none, of {entry.letter.id}"
        if (self._keys.get(after) or before) != before:
            raise ConfigurationError(
                f"{_of(entry)} with {' and '.join(self._values)} the key of {entry.letter.task}() would be another "
                "letter's, too, and of all with one key only one is run; expected values that the key is not made of, or "
                "one letter, by its id"
            )
        self._keys.put(after, before)

    def _key_of(self, entry: Entry, arguments: _Arguments) -> str | None:
        """The key's digest; None where there is none, or the worker could not make it either."""
        task = self._app.tasks.get(entry.letter.task)
        pattern = None if task is None else worn(task, idempotent)
        if task is None or pattern is None:
            return None
        try:
            args, kwargs = kombu_json.loads(json.dumps([arguments.args, arguments.kwargs]))
            bound = task.plan.terms.bound(tuple(args), kwargs)
            return pattern.key_of(task.name, bound, tuple(args), kwargs, _header_of(entry).get("key"))
        except (ArithmeticError, LookupError, TypeError, ValueError, InvalidKey):
            return None

    def _change(self, entry: Entry, name: str, where: str, was: Any, value: Any) -> _Change:
        if not isinstance(value, Typed):
            return _Change(where, was, value)
        try:
            return _Change(where, was, value.wired(name, was))
        except ConfigurationError as error:
            raise ConfigurationError(f"{_of(entry)} {error}") from None

    def _signature_of(self, name: str | None) -> Signature | None:
        task = self._app.tasks.get(name)
        return None if task is None else signature(task.run)

    def _told(
        self,
        entry: Entry,
        headers: dict[str, Any],
        old: _Arguments,
        new: _Arguments,
        was: Mapping[str, _Change],
    ) -> dict[str, Any]:
        limit = self._app.amqp.argsrepr_maxsize
        before, after = old.texts(limit), new.texts(limit)
        open_to_all = {name for name, texts in before.items() if headers.get(name) in texts}
        changed = [
            {
                "name": name,
                "was": _clipped(one.was) if one.where in open_to_all else None,
                "replay": entry.letter.replay + 1,
            }
            for name, one in was.items()
        ]
        shown = {
            name: after[name][0] if name in open_to_all else _NOT_SHOWN for name in {one.where for one in was.values()}
        }
        ours = headers[HEADER]
        kept = ours.get("corrected")
        history = [*(kept if isinstance(kept, list) else []), *changed][-_TIMES:]
        return {**headers, **shown, HEADER: {**ours, "corrected": history}}


def _position(takes: Signature | None, name: str) -> int | None:
    if takes is None:
        return None
    by_position = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    places = [known for known, one in takes.parameters.items() if one.kind in by_position]
    return places.index(name) if name in places else None


def _takes(takes: Signature, name: str) -> bool:
    """Whether an argument may be given by this name."""
    named = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    known = takes.parameters.get(name)
    if known is not None and known.kind in named:
        return True
    return known is None and any(one.kind is Parameter.VAR_KEYWORD for one in takes.parameters.values())


def _header_of(entry: Entry) -> Mapping[str, Any]:
    ours = entry.message.headers.get(HEADER)
    return ours if isinstance(ours, dict) else {}


def _of(entry: Entry) -> str:
    return f"the letter {entry.letter.id} cannot be corrected:"


def _refusal(task: str | None, takes: Signature | None, name: str, new: _Arguments) -> str:
    if takes is not None:
        names = ", ".join(takes.parameters) or "none"
        return f"{task}() has no argument {name!r}; its arguments are: {names}"
    names = ", ".join(new.kwargs) or "none"
    return (
        f"this app does not know {task}, so that only arguments that were given by name can be corrected, and {name!r} was "
        f"not; given by name were: {names}"
    )


def _clipped(value: Any) -> str:
    text = _NOT_GIVEN if value is ABSENT else json.dumps(value)
    return text if len(text) <= _CHARACTERS else f"{text[: _CHARACTERS - 1]}…"
