"""The letters of one queue, or some of them, and all that can be done with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from datetime import datetime, timedelta
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from .._fit import expect_app
from .._letter import Letter
from .._queues import fitting
from ..exceptions import ConfigurationError, LetterNotFound, PatternsError
from ._canary import expect_backend, unhappy
from ._causes import Cause, causes_of
from ._correct import Correction
from ._entry import Entry, Look, Shelf
from ._file import kept_in, write_lines, written_whole
from ._filter import Filter, checked, moment_of, narrowed
from ._ledger import Ledger
from ._put_back import put_back
from ._rabbitmq import OnRabbitMQ
from ._redis import OnRedis
from ._replay import Pace, Replayed, Replayer

if TYPE_CHECKING:
    from celery import Celery
    from celery.result import AsyncResult

__all__ = ["CANARY_PATIENCE", "DeadLetters", "dead_letters"]

#: How long canaries may take to come to their end.
CANARY_PATIENCE = timedelta(minutes=5)

_ALL = Filter()
_SHELVES: dict[str, type[OnRabbitMQ | OnRedis]] = {"amqp": OnRabbitMQ, "redis": OnRedis}
_LONGEST_NAME = 255


def dead_letters(app: Celery, queue: str) -> DeadLetters:
    """The letters that stand in a dead-letter queue.

    Args:
        app: The app on whose broker the queue is.
        queue: The queue's name, for example ``orders.dead``.

    Raises:
        ConfigurationError: When the app's broker is neither RabbitMQ nor Redis, and when an argument is neither an app nor
            a name.
    """
    expect_app(app, "dead_letters()")
    if not isinstance(queue, str) or not queue:
        raise ConfigurationError(
            f'expected the queue\'s name, for example dead_letters(app, "orders.dead"); got {queue!r}'
        )
    return DeadLetters(app, queue)


class DeadLetters:
    """The letters in one queue, oldest first, or some of them.

    Reading promises to neither lose nor reorder a letter, also when it is killed, and shows one letter for each id. It works
    through those that stood there when it began, in memory that does not grow with their number.

    It does not promise a frozen picture: letters that are written or replayed meanwhile may or may not be seen. On
    RabbitMQ a letter that another reader is looking at is not seen.

    Args:
        app: The app on whose broker the queue is.
        queue: The queue's name.
        chosen: Which of them; all by default. None for none at all.
        look: Told of each message that is looked at, and of how many there are.
    """

    def __init__(
        self, app: Celery, queue: str, chosen: Filter | None = _ALL, look: Look = lambda _looked, _standing: None
    ) -> None:
        self._app = app
        self.queue = fitting(queue)
        self._chosen = chosen
        self._look = look
        with app.connection_for_read() as connection:
            kind = connection.transport.driver_type
        if kind not in _SHELVES:
            raise ConfigurationError(f"dead_letters() reads RabbitMQ and Redis brokers; this app's broker is {kind!r}")
        self._kind = kind

    def where(
        self,
        *,
        task: str | None = None,
        reason: str | None = None,
        error: str | None = None,
        since: datetime | timedelta | None = None,
        until: datetime | timedelta | None = None,
        id: str | None = None,  # noqa: A002 - as the letter calls it
        root_id: str | None = None,
        limit: int | None = None,
    ) -> DeadLetters:
        """Some of these letters: those for which all of it holds.

        Args:
            task: The task's name.
            reason: Why it ended.
            error: The error's type, with its module or without.
            since: Died at this moment or later; a ``datetime`` with a zone, or a ``timedelta`` ago.
            until: Died at this moment or earlier.
            id: The letter's id.
            root_id: The id of the first task of its workflow.
            limit: At most so many, the oldest first.

        Raises:
            ConfigurationError: When an argument is wrong.
        """
        more = checked(
            task=task, reason=reason, error=error, since=since, until=until, id=id, root_id=root_id, limit=limit
        )
        chosen = None if self._chosen is None else narrowed(self._chosen, more)
        return DeadLetters(self._app, self.queue, chosen, self._look)

    def watched(self, look: Look) -> DeadLetters:
        """The same letters; ``look`` is told of each message that is looked at, and of how many stood there.

        Args:
            look: Called with the number of messages looked at so far, and the number that stood there at the start.
        """
        return DeadLetters(self._app, self.queue, self._chosen, look)

    def __iter__(self) -> Iterator[Letter]:
        with ExitStack() as stack:
            shelf = self._open(stack)
            for entry in self._entries(shelf, _ledger(stack)):
                yield entry.letter

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, letter_id: str) -> Letter:
        """The letter of this id.

        Raises:
            LetterNotFound: When none stands in the queue.
        """
        for letter in self.where(id=letter_id, limit=1):
            return letter
        raise self._not_found(letter_id)

    def _not_found(self, letter_id: str) -> LetterNotFound:
        held = "; on RabbitMQ one that somebody is reading is not seen" if self._kind == "amqp" else ""
        return LetterNotFound(f"no letter {letter_id} stands in {self.queue}{held}")

    def stats(self) -> list[Cause]:
        """What the letters died of, the most frequent cause first: task, type of error, and place in the code."""
        return causes_of(self)

    def replay(
        self, letter: Letter | str, *, to: str | None = None, correct: Mapping[str, Any] | None = None
    ) -> AsyncResult[Any]:
        """Send one letter's message to the queue it came from, and take the letter out.

        It is as in :meth:`replay_all`.

        Args:
            letter: The letter, or its id.
            to: The name of another queue to send it to.
            correct: New values for some arguments, by name.

        Returns:
            The replayed task's result.

        Raises:
            LetterNotFound: When none stands in the queue.
            PublishFailed: When the broker did not take the message; the letter stays.
            ConfigurationError: When the task does not take the new values, or nobody knows the queue.
            UnsafeValue: When a new value would not arrive as it is.
        """
        wanted = letter.id if isinstance(letter, Letter) else letter
        known: list[Letter] = []

        def told(found: Letter, error: PatternsError | None) -> None:
            if error is not None:
                raise error
            known.append(found)

        self.where(id=wanted).replay_all(to=to, correct=correct, on_each=told)
        if not known:
            raise self._not_found(wanted)
        return self._app.AsyncResult(known[0].replay_id)

    def replay_all(
        self,
        *,
        rate: float | None = None,
        canary: int | None = None,
        canary_patience: timedelta = CANARY_PATIENCE,
        to: str | None = None,
        correct: Mapping[str, Any] | None = None,
        dry_run: bool = False,
        on_each: Callable[[Letter, PatternsError | None], object] | None = None,
    ) -> Replayed:
        """Send the letters' messages to the queues they came from, oldest first, and take each letter out.

        A message gets a task id made from the letter's id, a fresh budget of attempts, its own key and root id, and no ETA
        or expiry. Its chain and links go with it; the chord it may have been a member of is not told again.

        Killed at any point and called again, it loses no letter. On Redis it sends none twice: the letter leaves in the step
        that sends its message. On RabbitMQ the letter in flight may be sent twice, under the same task id, which a key
        absorbs. Two that replay at once share the work. A letter that cannot be sent stays, and stops no other.

        Args:
            rate: At most so many letters a second; no limit by default.
            canary: Replay so many first, wait for their outcome in the result backend, and stop when one of them dies again
                or takes too long. A canary that is retried meanwhile is waited for.
            canary_patience: How long all the canaries may take; 5 minutes by default.
            to: The name of another queue to send all of them to.
            correct: New values for some arguments, by name. They must fit every one of the letters, or nothing is sent. What
                they were is told by the next letter, should the task die again.
            dry_run: Count what would be sent, and send nothing.
            on_each: Called with each letter that was sent, and with None or the reason why it could not be.

        Raises:
            ConfigurationError: When an argument is wrong, before anything is sent.
            UnsafeValue: When a new value would not arrive as it is, before anything is sent.
        """
        self._refuse_target(to)
        _refuse_canary(self._app, canary, canary_patience)
        if self._chosen is None:
            return Replayed(sent=0, failed=0)
        correction = Correction(self._app, correct or {})
        with ExitStack() as stack:
            replayer = Replayer(
                self._app,
                _ledger(stack),
                pace=Pace(rate),
                to=to,
                correction=correction,
                dry_run=dry_run,
                on_each=on_each,
            )
            if correction:
                self._try_on(replayer)
            if canary is not None and not dry_run:
                stopped = self._send_canaries(replayer, canary, canary_patience)
                if stopped is not None:
                    return replayer.report(stopped)
            self._run(replayer)
        return replayer.report()

    def _run(self, replayer: Replayer, limit: int | None = None, *, watched: bool = False) -> dict[str, str]:
        chosen = self if limit is None else self.where(limit=limit)
        with ExitStack() as stack:
            ledger, shelf = _ledger(stack), self._open(stack)
            return replayer.run(shelf, chosen._entries(shelf, ledger, copies=True), watched=watched)  # noqa: SLF001

    def _send_canaries(self, replayer: Replayer, canary: int, patience: timedelta) -> str | None:
        canaries = self._run(replayer, canary, watched=True)
        if not canaries and replayer.report().failed:
            return f"none of {canary} canaries could be sent"
        return unhappy(self._app, canaries, patience)

    def _try_on(self, replayer: Replayer) -> None:
        """See that the new values fit all letters before one is sent."""
        with ExitStack() as stack:
            shelf = self._open(stack)
            for entry in self._entries(shelf, _ledger(stack)):
                replayer.message_of(entry)

    def _refuse_target(self, to: str | None) -> None:
        if to is None:
            return
        if not isinstance(to, str) or not 0 < len(to.encode()) <= _LONGEST_NAME:
            raise ConfigurationError(f"expected to to be a queue's name of at most 255 bytes, got {to!r}")
        if to == self.queue:
            raise ConfigurationError(f"{to} is where the letters are; expected a queue that a worker consumes")

    def purge(self, *, older_than: timedelta | None = None, kept_in: str | PathLike[str] | None = None) -> int:
        """Delete the letters for good.

        It does not ask, and keeps no copy by itself: see :meth:`export`.

        Args:
            older_than: Only those that died longer ago than this.
            kept_in: Only those that stand in this file, which :meth:`export` has written.

        Returns:
            How many.

        Raises:
            ConfigurationError: When an argument is wrong, or the file is none of ours.
        """
        moment_of("older_than", older_than)
        chosen = self if older_than is None else self.where(until=older_than)
        with ExitStack() as stack:
            ledger, keep = _ledger(stack), _ledger(stack)
            for kept in () if kept_in is None else _kept(kept_in):
                keep.put(kept.id, "kept")
            removed = _ledger(stack)
            shelf, count = self._open(stack), 0
            for entry in chosen._entries(shelf, ledger, copies=True):  # noqa: SLF001 - our own
                if kept_in is not None and keep.get(entry.letter.id) is None:
                    continue
                if shelf.remove(entry) and removed.get(entry.letter.id) is None:
                    removed.put(entry.letter.id, "removed")
                    count += 1
        return count

    def export(self, file: str | PathLike[str] | TextIO) -> int:
        """Write the letters to a file, with all of their messages: one JSON object a line.

        Under its name the file is complete and on the disk, or it is not there. It is readable to its owner only, since it
        holds the arguments.

        Args:
            file: The path of a new file, or an open text file, which is left open.

        Returns:
            How many.

        Raises:
            ConfigurationError: When there is such a file, or it cannot be written.
        """
        with ExitStack() as stack:
            ledger = _ledger(stack)
            stream: Any = file
            if isinstance(file, str | PathLike):
                stream = stack.enter_context(written_whole(Path(fspath(file))))
            with ExitStack() as reading:
                return write_lines(self._entries(self._open(reading), ledger), stream)

    def restore(self, file: str | PathLike[str]) -> int:
        """Put letters of a file back, behind those that stand there: body, headers and properties as they were.

        One whose id stands there already is left out, so a call that was killed may be repeated.

        Args:
            file: A file that :meth:`export` has written.

        Returns:
            How many were put back.

        Raises:
            ConfigurationError: When the file is none of ours, before anything is put back.
            PublishFailed: When the broker did not take a letter; those before it are back.
        """
        for _ in _kept(file):
            continue
        whole = DeadLetters(self._app, self.queue)
        with ExitStack() as stack:
            there = _ledger(stack)
            with ExitStack() as reading:
                for _ in whole._entries(whole._open(reading), there):
                    continue
            shelf, count = whole._open(stack), 0
            for kept in _kept(file):
                if there.get(kept.id) is None:
                    shelf.forget(kept.id)
                    put_back(self._app, self.queue, kept)
                    there.put(kept.id, "back")
                    count += 1
        return count

    def _open(self, stack: ExitStack) -> Shelf:
        return stack.enter_context(closing(_SHELVES[self._kind](self._app, self.queue, self._look)))

    def _entries(self, shelf: Shelf, ledger: Ledger, *, copies: bool = False) -> Iterator[Entry]:
        """The chosen letters' entries; with ``copies`` also the second entry of a death, and each again after trouble."""
        if self._chosen is None:
            return
        limit, count = self._chosen.limit, 0
        walk = shelf.walk()
        try:
            for entry in walk:
                if not self._chosen.takes(entry.letter):
                    continue
                known = ledger.get(entry.letter.id) is not None
                if not known and limit is not None and count >= limit:
                    if not copies:
                        return
                    continue
                if not known:
                    ledger.put(entry.letter.id, "chosen")
                    count += 1
                    if not copies and count == limit:
                        yield entry
                        return
                if copies or not known:
                    yield entry
        finally:
            walk.close()  # type: ignore[attr-defined]


def _ledger(stack: ExitStack) -> Ledger:
    return stack.enter_context(closing(Ledger()))


def _kept(file: str | PathLike[str]) -> Iterator[Any]:
    return kept_in(Path(fspath(file)))


def _refuse_canary(app: Celery, canary: int | None, patience: timedelta) -> None:
    if not isinstance(patience, timedelta) or patience <= timedelta(0):
        raise ConfigurationError(f"expected canary_patience to be a timedelta over 0, got {patience!r}")
    if canary is None:
        return
    if type(canary) is not int or canary < 1:
        raise ConfigurationError(f"expected canary to be at least 1, or None for none, got {canary!r}")
    expect_backend(app)
