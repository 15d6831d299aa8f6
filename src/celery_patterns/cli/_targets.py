"""Which letters a command means: the app's, in one queue, and what its options say of them."""

from __future__ import annotations

import contextlib
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .._fit import make_tasks
from ..exceptions import ConfigurationError, LetterNotFound, PatternsError
from ..letters import DeadLetters, dead_letters, dead_queues, named_queues, refuse_consumed, standing
from ._screens import visible
from ._terminal import WRONG_USE, ask, bar_of, count_of, end, say

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Target", "app_of", "nowhere", "queue_to_fill", "target", "targets"]

#: How many tasks, reasons or errors are named where none of them was meant, and how.
_NAMED = 10
_LOGIN = re.compile(r"//[^/\s]*@")
_KINDS = {"task": "of", "reason": "of the reason", "error": "of the error"}


@dataclass(frozen=True)
class Target:
    """Letters that a command means.

    Attributes:
        app: The app.
        letters: The letters.
        words: The options that chose them.
        limit: How many they are at most.
    """

    app: Celery
    letters: DeadLetters
    words: frozenset[str]
    limit: int | None = None

    @property
    def queue(self) -> str:
        return self.letters.queue

    @property
    def shown_queue(self) -> str:
        return visible(self.queue)

    def counted(self) -> int:
        """How many there are."""
        with bar_of(f"Reading {self.shown_queue}") as bar:
            return self.letters.watched(bar.look).count()

    def total(self, count: int, standing: int) -> str:
        """How many were found, of how many messages that stand there: letters of one death, and some that are none."""
        if not count:
            return self.nothing()
        filtered = bool(self.words - {"limit"})
        found, match = count_of(count), "match" if count > 1 else "matches"
        if count < standing and count == self.limit:  # others may match, too, and were not looked at
            which = f" that {match}," if filtered else ""
            return f"The oldest {found}{which} of {standing:,} messages in {self.shown_queue}."
        if count < standing and filtered:
            return f"{found} of {standing:,} messages in {self.shown_queue} {match}."
        return f"{found} in {self.shown_queue}."

    def nothing(self) -> str:
        """That none was found, and what stands there instead."""
        kinds: dict[str, Counter[str]] = {word: Counter() for word in _KINDS}
        total = 0
        for letter in dead_letters(self.app, self.queue):
            total += 1
            for word, counter in kinds.items():
                counter[getattr(letter, word) or "-"] += 1
        if not total:
            others = standing(self.app, [self.queue]).get(self.queue)
            if others:
                return f"0 letters in {self.shown_queue}, where {others:,} other messages stand."
            return f"0 letters in {self.shown_queue}{unseen(self.app)}."
        text = f"0 of {count_of(total)} in {self.shown_queue} match."
        for word, counter in kinds.items():
            if word in self.words:
                named = ", ".join(f"{visible(kind)} ({count:,})" for kind, count in counter.most_common(_NAMED))
                text += f" There are letters {_KINDS[word]} {named}{' and others' if len(counter) > _NAMED else ''}."
        if "cause" in self.words:
            text += ' See the causes with "stats".'
        return text


def target(ctx: click.Context, filters: dict[str, Any]) -> Target:
    """The letters that these options mean, in the one queue that is named, or is the only one that holds letters."""
    app, queue = app_of(ctx), filters.pop("queue")
    if queue is None:
        queue = _only(dead_queues(app), _holding(app, filters), named_queues(app))
    else:
        _expect_queue(app, queue)
    return _chosen(app, queue, filters)


def targets(ctx: click.Context, filters: dict[str, Any]) -> list[Target]:
    """The same in all the queues that hold letters, when none is named."""
    if filters["queue"] is not None or _in_one(filters):
        return [target(ctx, filters)]
    app = app_of(ctx)
    filters.pop("queue")
    return [_chosen(app, queue, filters) for queue in _held(app)]


def nowhere(ctx: click.Context) -> str:
    """That no queue holds letters, and which were looked at."""
    app = app_of(ctx)
    return f"0 letters in {', '.join(map(visible, dead_queues(app)))}{unseen(app)}."


def unseen(app: Celery) -> str:
    """What must be said beside a count of nothing."""
    with app.connection_for_write() as connection:
        held = connection.transport.driver_type == "amqp"
    return "; those that somebody is reading or replaying are not seen on RabbitMQ" if held else ""


def _in_one(filters: dict[str, Any]) -> bool:
    """A letter, and a cause by its first characters, stand in one queue."""
    return filters.get("id_") is not None or filters.get("cause") is not None


def queue_to_fill(ctx: click.Context, queue: str | None, *, yes: bool) -> Target:
    """The queue that letters are put back into: the one that is named, or the only one that the app's tasks name."""
    app = app_of(ctx)
    named = named_queues(app)
    if queue is None and len(named) != 1:
        names = f"the app's tasks name {', '.join(named)}" if named else "none of the app's tasks wears dead_letter"
        raise ConfigurationError(f"which queue? {names}. Pass -Q with one")
    if queue is not None:
        refuse_consumed(app, queue)
        known = dead_queues(app)
        if queue not in known:  # which it may be all the same, as that of a queue that only a worker's -Q names
            there = queue in standing(app, [queue])
            nor = "" if there else ", and the broker has no such queue"
            say(
                f"{visible(queue)} is none of the app's dead-letter queues {', '.join(map(visible, known))}{nor}.",
                err=True,
            )
            if not there and not yes:
                ask("Make it, and put the letters there?")
    return Target(app, dead_letters(app, queue or named[0]), frozenset())


def app_of(ctx: click.Context) -> Celery:
    """The app that was asked for, with its modules imported: without -A, Celery would hand us one that has no broker.

    What the modules print is no part of a command's answer, and what they raise is told in a line.
    """
    named, command = ctx.find_root().params.get("app"), ctx.command_path.partition(" ")[2]
    if named is None:
        raise click.UsageError(f"which app? expected celery -A proj {command}", ctx)
    if re.split("[.:]", str(named))[0] == "celery":
        why = _why_celery(Path.cwd())
        end(f"-A {named} is Celery's own package, not your app{why}; expected celery -A proj {command}", WRONG_USE)
    app: Celery = ctx.obj.app
    try:
        with contextlib.redirect_stdout(sys.stderr):
            make_tasks(app)
    except PatternsError as error:
        end(str(error), WRONG_USE)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's own code, whatever it raises
        said = _LOGIN.sub("//**@", " ".join(f"{type(error).__name__}: {error}".split()))
        end(f"the app's modules cannot be imported: {said}", WRONG_USE)
    return app


def _why_celery(folder: Path) -> str:
    """How it came about, where a file here is called so."""
    if not (folder / "celery.py").exists():
        return ""
    if (folder / "__init__.py").exists():
        return f"; celery.py here is {folder.name}.celery: go one folder up, and say -A {folder.name}"
    return "; celery.py has that name, too: call it proj.py"


def _held(app: Celery) -> dict[str, int]:
    return {queue: count for queue, count in standing(app, dead_queues(app)).items() if count}


def _holding(app: Celery, filters: dict[str, Any]) -> dict[str, int]:
    """The queues that hold letters; of several those that hold the letter, or the cause, that is named."""
    held = _held(app)
    short_id, short_cause = filters.get("id_"), filters.get("cause")
    if len(held) < 2 or not (short_id or short_cause):  # noqa: PLR2004 - several
        return held
    holding = {queue: count for queue, count in held.items() if _holds(dead_letters(app, queue), short_id, short_cause)}
    if not holding:
        what = short_id or f"of the cause {short_cause}"
        raise LetterNotFound(f"no letter {what} stands in {', '.join(held)}{unseen(app)}")
    return holding


def _holds(found: DeadLetters, short_id: str | None, short_cause: str | None) -> bool:
    if short_id:
        return any(letter.id.startswith(short_id) for letter in found)
    return any(cause.fingerprint.startswith(str(short_cause)) for cause in found.stats())


def _only(queues: list[str], held: dict[str, int], named: list[str]) -> str:
    if len(held) > 1:
        counts = ", ".join(f"{queue} ({count_of(count)})" for queue, count in held.items())
        raise ConfigurationError(f"which queue? letters stand in {counts}. Pass -Q with one")
    return next(iter([*held, *named, *queues]))


def _expect_queue(app: Celery, queue: str) -> None:
    known = dead_queues(app)
    if queue not in known and not standing(app, [queue]):
        raise ConfigurationError(
            f"there is no queue {queue} on the broker; the app's dead-letter queues are {', '.join(known)}"
        )


def _chosen(app: Celery, queue: str, filters: dict[str, Any]) -> Target:
    found = dead_letters(app, queue)
    words = {name: value for name, value in filters.items() if value is not None}
    short_id, short_cause = words.pop("id_", None), words.pop("cause", None)
    if short_id is not None:
        words["id"] = _whole_id(found, short_id)
    if short_cause is not None:
        words["cause"] = _whole_cause(found, short_cause)
    return Target(app, found.where(**words), frozenset(words), words.get("limit"))


def _whole_id(found: DeadLetters, short: str) -> str:
    """The id that begins like this.

    Raises:
        LetterNotFound: When none does.
        ConfigurationError: When several do.
    """
    if not short:
        raise ConfigurationError("expected the first characters of a letter's id, got ''")
    ids: list[str] = []
    for letter in found:
        if letter.id == short:
            return short
        if letter.id.startswith(short) and letter.id not in ids:
            ids.append(letter.id)
    if len(ids) > 1:
        raise ConfigurationError(f"{len(ids)} letters begin with {short}, for example {ids[0]} and {ids[1]}")
    return ids[0] if ids else found[short].id


def _whole_cause(found: DeadLetters, short: str) -> str:
    """The cause that begins like this; one that is not there any more matches nothing.

    Raises:
        ConfigurationError: When several do.
    """
    if not short:
        raise ConfigurationError("expected the first characters of a cause, got ''")
    known = [cause.fingerprint for cause in found.stats() if cause.fingerprint.startswith(short)]
    if len(known) > 1:
        raise ConfigurationError(f"{len(known)} causes begin with {short}, for example {known[0]} and {known[1]}")
    return known[0] if known else short
