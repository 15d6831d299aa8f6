"""Sending letters' messages on their way again: what is sent, how fast, and how it is told."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._letter import Letter, replayed_headers
from .._task import PatternTask
from ..exceptions import ConfigurationError, PatternsError, PublishFailed
from ._correct import Correction
from ._entry import Entry, Shelf
from ._ledger import Ledger

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Failure", "Pace", "Replayed", "Replayer"]

#: How many failures a report names.
_NAMED = 10

#: The properties of a message that its replay has, too. Not its time to live, and not ``user_id``, which is its sender's.
_CARRIED = ("correlation_id", "reply_to", "message_id", "timestamp", "type", "app_id")

_FLYING, _SENT, _FAILED, _TAKEN = "flying", "sent", "failed", "taken"


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
        sent: How many letters were replayed; in a dry run, how many would be.
        failed: How many could not be, and stay in the queue.
        failures: The first ten of those.
        stopped: Why the canaries stopped the replay; None when they did not.
    """

    sent: int
    failed: int
    failures: tuple[Failure, ...] = ()
    stopped: str | None = None


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

    def wait(self) -> None:
        """Sleep until the next letter may go."""
        if self._gap:
            time.sleep(max(0.0, self._next - time.monotonic()))
            self._next = max(self._next, time.monotonic()) + self._gap


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
        self._watched: dict[str, str] | None = None

    def run(self, shelf: Shelf, entries: Iterator[Entry], *, watched: bool = False) -> dict[str, str]:
        """Replay these letters.

        Args:
            shelf: Where they stand.
            entries: The letters, copies of the same death included.
            watched: Whether their tasks are to store a result, whatever they usually do.

        Returns:
            The task ids of what was sent, and the letters' ids, when they are watched.
        """
        target = None if self._to is None else shelf.target_named(self._to)
        self._watched = {} if watched else None
        for entry in entries:
            letter = entry.letter
            if self._ledger.get(letter.id) == _FLYING:
                shelf.settle()  # it is a copy
            done = self._ledger.get(letter.id)
            if done in (_SENT, _TAKEN) and not self._dry_run:
                shelf.remove(entry)  # a letter that was written twice is one death, and is replayed once
            elif done is None and not self._is_of_this_run(letter):
                self._replay(shelf, entry, target)
        return self._watched or {}

    def report(self, stopped: str | None = None) -> Replayed:
        """What was done so far."""
        return Replayed(sent=self._sent, failed=self._failed, failures=tuple(self._failures), stopped=stopped)

    def _is_of_this_run(self, letter: Letter) -> bool:
        """A letter of what we have just sent, which died again: it is left for the next time."""
        return letter.replay > 0 and self._ledger.get(str(letter.task_id).replace("-", "")) is not None

    def _replay(self, shelf: Shelf, entry: Entry, target: tuple[str, str] | None) -> None:
        watched = self._watched is not None
        try:
            message = self.message_of(entry, watched=watched)
            target = target or shelf.target_of(entry.letter)
        except (ConfigurationError, PublishFailed) as error:
            self._told(entry, False, error)
            return
        if self._dry_run:
            self._told(entry, True, None)
            return
        self._pace.wait()
        if watched:
            # An outcome that an earlier replay of this letter left there is not the one that is waited for.
            try:
                self._app.AsyncResult(entry.letter.replay_id).forget()
            except NotImplementedError:
                pass
            except Exception as error:  # noqa: BLE001 - each backend has errors of its own
                self._told(
                    entry, False, PublishFailed(f"the result backend did not answer: {type(error).__name__}", True)
                )
                return
        self._ledger.put(entry.letter.id, _FLYING)
        shelf.resend(entry, message, target, self._told, keyed=self._is_keyed(entry.letter.task))

    def _is_keyed(self, name: str | None) -> bool:
        """Whether a message that is sent twice is done once, as far as this app knows."""
        task = self._app.tasks.get(name)
        return isinstance(task, PatternTask) and task.plan is not None and task.plan.terms.keyed

    def _told(self, entry: Entry, sent: bool, failure: PatternsError | None) -> None:
        letter = entry.letter
        self._ledger.put(letter.id, _FAILED if failure else _SENT if sent else _TAKEN)
        self._sent += sent
        if sent and self._watched is not None:
            self._watched[entry.letter.replay_id] = letter.id
        if failure is not None:
            self._failed += 1
            if self._failed <= _NAMED:
                self._failures.append(Failure(letter.id, str(failure)))
        if self._on_each is not None and (sent or failure is not None):
            self._on_each(letter, failure)

    def message_of(self, entry: Entry, *, watched: bool = False) -> dict[str, Any]:
        """What is published, as arguments to ``Producer.publish``, but for exchange and routing key.

        Raises:
            ConfigurationError: When the correction does not fit this letter.
        """
        letter, message = entry.letter, entry.message
        headers = replayed_headers(letter, message.headers)
        if not message.errors:
            headers.pop("compression", None)  # kombu has unpacked the body
        known = _parsed(message)
        body: Any = message.body
        if known is not None and known[2].get("chord"):
            known[2]["chord"] = None  # it was told when the task died
            body = json.dumps(known).encode()
        if self._correction:
            body, headers = self._correction.apply(entry, known, headers)
        if watched:
            headers["ignore_result"] = False
        return {
            "reply_to": "",
            **{name: value for name in _CARRIED if (value := message.properties.get(name)) is not None},
            "body": body,
            "headers": headers,
            "content_type": message.content_type or "application/octet-stream",
            "content_encoding": message.content_encoding or "binary",
            "delivery_mode": 2,
            **({"correlation_id": headers["id"]} if "task" in headers else {}),
            **({} if letter.priority is None else {"priority": letter.priority}),
        }


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
