"""Sending letters' messages on their way again: what is sent, how fast, and how it is told."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .._idempotent import idempotent
from .._letter import Letter, replayed_headers
from .._plan import worn
from .._x_death import is_nameless
from ..exceptions import ConfigurationError, PatternsError, PublishFailed, UnsafeValue
from ._canary import forget
from ._correct import Correction
from ._entry import Entry, Shelf
from ._ledger import Ledger
from ._undisturbed import between_letters, pause

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Failure", "Pace", "Replayed", "Replayer"]

#: How many failures a report names.
_NAMED = 10

#: The properties of a message that its replay has, too. Not its time to live, and not ``user_id``, which is its sender's.
_CARRIED = ("correlation_id", "reply_to", "message_id", "timestamp", "type", "app_id")

_FLYING, _SENT, _FAILED, _TAKEN, _AGAIN = "flying", "sent", "failed", "taken", "again"


@dataclass(frozen=True)
class Failure:
    """A letter that was not replayed. It stays in the queue.

    Attributes:
        id: The letter's id.
        error: Why.
    """

    id: str
    error: str


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What a replay did.

    Attributes:
        sent: How many letters were replayed; in a dry run, how many would be, like ``queues`` and ``corrected``.
        failed: How many could not be, and stay in the queue.
        failures: The first ten of those.
        stopped: Why the canaries stopped the replay, or what ended the command before; None when nothing did.
        died_again: The letters that canaries left which died again: their ids, and the queues where they stand.
        dry_run: Whether nothing was sent.
        queues: How many letters were sent to which queue.
        corrected: Of how many letters an argument was corrected, and from which type to which: ``amount: float -> str``.
    """

    sent: int
    failed: int
    failures: tuple[Failure, ...] = ()
    stopped: str | None = None
    died_again: dict[str, str] = field(default_factory=dict)
    dry_run: bool = False
    queues: dict[str, int] = field(default_factory=dict)
    corrected: dict[str, int] = field(default_factory=dict)


class Pace:
    """At most so many letters a second.

    Args:
        rate: Letters a second; None for no limit.

    Raises:
        ConfigurationError: When it is no number over 0.
    """

    def __init__(self, rate: float | None) -> None:
        if rate is not None and (type(rate) not in (int, float) or not 0 < rate < float("inf")):
            raise ConfigurationError(
                f"expected rate to be letters a second, over 0, or None for no limit; got {rate!r}"
            )
        self._gap = 0.0 if rate is None else 1 / rate
        self._next = 0.0

    def wait(self, before: Callable[[], object]) -> None:
        """Sleep until the next letter may go; ``before`` is called when that is not now."""
        if self._gap:
            if time.monotonic() < self._next:
                before()
                pause(self._next - time.monotonic())
            self._next = max(self._next, time.monotonic()) + self._gap

    def give_back(self) -> None:
        """Let the next letter go at once: the one that was waited for did not go."""
        self._next = time.monotonic()


class _NotTold(Exception):  # noqa: N818 - it carries an error
    """A letter's end could not be noted, or the caller's ``on_each`` raised.

    As itself, a ``ConnectionError`` of the caller's would be taken for the broker's by the shelf that tells of the end.
    """

    def __init__(self, error: Exception) -> None:
        self.error = error
        super().__init__(error)


class Replayer:
    """One replay, over one or two passes through the queue.

    Args:
        app: The app whose tasks they are.
        ledger: Remembers what was done with a letter: a copy of it is not sent again, one that failed is not tried again.
        pace: How fast.
        to: The queue to send to instead of the one that a letter came from.
        correction: New values for some arguments.
        dry_run: Do all but send, and leave the letters.
        on_each: Told of each letter, and of its failure.
    """

    def __init__(
        self,
        app: Celery,
        ledger: Ledger,
        *,
        pace: Pace,
        to: str | None,
        correction: Correction,
        dry_run: bool,
        on_each: Callable[[Letter, PatternsError | None], object] | None,
    ) -> None:
        self._app = app
        self._ledger = ledger
        self._pace = pace
        self._to = to
        self._correction = correction
        self._dry_run = dry_run
        self._on_each = on_each
        self._sent = self._failed = 0
        self._failures: list[Failure] = []
        self._queues: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()
        self._watched: dict[str, str] | None = None

    def run(self, shelf: Shelf, entries: Iterator[Entry], *, watched: bool = False) -> dict[str, str]:
        """Replay these letters.

        Args:
            shelf: Where they stand.
            entries: The letters, copies of the same death included.
            watched: Whether their tasks are to store a result, whatever they usually do.

        Returns:
            The task ids of what was sent, and the queues it was sent to, when they are watched.
        """
        target = None if self._to is None else shelf.target_named(self._to)
        self._watched = {} if watched else None
        try:
            self._meet_all(shelf, entries, target)
        except _NotTold as trouble:
            raise trouble.error from trouble.error.__cause__
        return self._watched or {}

    def _meet_all(self, shelf: Shelf, entries: Iterator[Entry], target: tuple[str, str] | None) -> None:
        try:
            for entry in entries:
                between_letters()
                self._meet(shelf, entry, target)
        except BaseException:
            _settle(shelf)  # so that what is on its way is counted, and taken out
            raise

    def _meet(self, shelf: Shelf, entry: Entry, target: tuple[str, str] | None) -> None:
        letter = entry.letter
        if self._ledger.get(letter.id) == _FLYING:
            shelf.settle()  # it is a copy
        done = None if is_nameless(letter) else self._ledger.get(letter.id)
        if done in (_SENT, _TAKEN) and not self._dry_run:
            shelf.remove(entry)  # a letter that was written twice is one death, and is replayed once
        elif done in (None, _AGAIN) and not self._is_of_this_run(letter):
            self._replay(shelf, entry, target)

    def report(self, stopped: str | None = None, died_again: dict[str, str] | None = None) -> Replayed:
        """What was done so far."""
        return Replayed(
            sent=self._sent,
            failed=self._failed,
            failures=tuple(self._failures),
            stopped=stopped,
            died_again=died_again or {},
            dry_run=self._dry_run,
            queues=dict(self._queues.most_common()),
            corrected=dict(self._kinds.most_common()),
        )

    def _is_of_this_run(self, letter: Letter) -> bool:
        """A letter of what we have just sent, which died again: it is left for the next time."""
        return letter.replay > 0 and self._ledger.get(str(letter.task_id).replace("-", "")) is not None

    def _replay(self, shelf: Shelf, entry: Entry, target: tuple[str, str] | None) -> None:
        try:
            message, kinds = self.message_of(entry, watched=self._watched is not None)
            target = target or shelf.target_of(entry.letter)
        except (ConfigurationError, PublishFailed, UnsafeValue) as error:
            self._told(entry, False, error)
            return
        changes = [f"{name}: {kind}" for name, kind in kinds.items()]

        def told(of: Entry, sent: bool, failure: PatternsError | None) -> None:
            if sent:
                self._queues[_queue(of, target)] += 1
                self._kinds.update(changes)
            self._told(of, sent, failure)

        if self._dry_run:
            told(entry, True, None)
            return
        self._pace.wait(before=shelf.settle)  # nothing is on its way for as long as that
        if self._watched is not None:
            # An outcome that an earlier replay of this letter left there is not the one that is waited for.
            forget(self._app, entry.letter.replay_id)
        self._ledger.put(entry.letter.id, _FLYING)
        if not shelf.resend(entry, message, target, told, keyed=self._is_keyed(entry.letter.task)):
            entry.again = True
            self._ledger.put(entry.letter.id, _AGAIN)
            self._pace.give_back()  # a connection that does not live through a pause would be waited for without an end

    def _is_keyed(self, name: str | None) -> bool:
        """Whether a message that is sent twice is done once, as far as this app knows."""
        task = self._app.tasks.get(name)
        return worn(task, idempotent) is not None

    def _told(self, entry: Entry, sent: bool, failure: PatternsError | None) -> None:
        try:
            self._note(entry, sent, failure)
        except Exception as error:
            raise _NotTold(error) from error

    def _note(self, entry: Entry, sent: bool, failure: PatternsError | None) -> None:
        letter = entry.letter
        self._ledger.put(letter.id, _FAILED if failure else _SENT if sent else _TAKEN)
        self._sent += sent
        if sent and self._watched is not None:
            self._watched[entry.letter.replay_id] = self._to or letter.queue
        if failure is not None:
            self._failed += 1
            if self._failed <= _NAMED:
                self._failures.append(Failure(letter.id, str(failure)))
        if self._on_each is not None and (sent or failure is not None):
            self._on_each(letter, failure)

    def message_of(self, entry: Entry, *, watched: bool = False) -> tuple[dict[str, Any], dict[str, str]]:
        """What is published, and which types a correction changes.

        Args:
            entry: The letter.
            watched: Whether its task is to store a result, whatever it usually does.

        Returns:
            The arguments to ``Producer.publish``, but for exchange and routing key; and for each corrected argument the type
            it had and gets.

        Raises:
            ConfigurationError: When the correction does not fit this letter.
            UnsafeValue: When a new value would not arrive as it is.
        """
        letter, message = entry.letter, entry.message
        headers = replayed_headers(letter, message.headers)
        if not message.errors:
            headers.pop("compression", None)  # kombu has unpacked the body
        known = _parsed(message)
        body: Any = message.body
        kinds: dict[str, str] = {}
        if known is not None and known[2].get("chord"):
            known[2]["chord"] = None  # it was told when the task died
            body = json.dumps(known).encode()
        if self._correction:
            corrected = self._correction.apply(entry, known, headers)
            body, headers, kinds = corrected.body, corrected.headers, corrected.kinds
        if watched:
            headers["ignore_result"] = False
        return {
            "reply_to": "",
            **{name: value for name in _CARRIED if (value := message.properties.get(name)) is not None},
            "body": body,
            "headers": headers,
            "content_type": message.content_type or "application/octet-stream",
            "content_encoding": (message.content_encoding if body is message.body else "utf-8") or "binary",
            "delivery_mode": 2,
            **({"correlation_id": headers["id"]} if "task" in headers else {}),
            **({} if letter.priority is None else {"priority": letter.priority}),
        }, kinds


def _settle(shelf: Shelf) -> None:
    """Settle all, though each may raise: it is the first error that the caller hears."""
    settled = False
    while not settled:
        with suppress(_NotTold):  # by then one more has landed, so this ends
            shelf.settle()
            settled = True


def _queue(entry: Entry, target: tuple[str, str]) -> str:
    """Where it goes: an exchange of the user's sends it to the queue that it came from."""
    exchange, key = target
    return entry.letter.queue if exchange else key


def _parsed(message: Any) -> tuple[list[Any], dict[str, Any], dict[str, Any]] | None:
    """Arguments and embedded signatures as they stand in the JSON; None where it is something else."""
    if message.content_type != "application/json":
        return None
    try:
        args, kwargs, embed = json.loads(message.body)
    except (TypeError, ValueError, RecursionError):
        return None
    if not (isinstance(args, list) and isinstance(kwargs, Mapping) and isinstance(embed, Mapping)):
        return None
    return args, dict(kwargs), dict(embed)
