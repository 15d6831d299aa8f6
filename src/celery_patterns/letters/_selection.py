"""The letters of one queue, or some of them, and all that can be done with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import datetime, timedelta
from os import PathLike
from typing import TYPE_CHECKING, Any, TextIO

from .._fit import expect_app
from .._letter import Letter
from ..exceptions import ConfigurationError, LetterNotFound, PatternsError
from ._causes import Cause, causes_of
from ._correct import Correction
from ._entry import Look
from ._filter import checked, narrowed
from ._keep import exported, purged, restored
from ._known import refuse_consumed
from ._replay import Pace, Replayed, Replayer
from ._rounds import refuse_canary, refuse_target, replayed
from ._walk import Walk, ledger_in

if TYPE_CHECKING:
    from celery import Celery
    from celery.result import AsyncResult

__all__ = ["CANARY_TIMEOUT", "DeadLetters", "dead_letters"]

#: How long canaries may take to finish.
CANARY_TIMEOUT = timedelta(minutes=5)


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
    return DeadLetters(Walk(app, queue))


class DeadLetters:
    """The letters in one queue, oldest first, or some of them.

    Reading promises to neither lose nor reorder a letter, also when it is killed, and shows one letter for each id; but each
    of equal messages that RabbitMQ buried and nothing tells apart. It works through those that stood there when it began, in
    memory that does not grow with their number.

    It does not promise a frozen picture: letters that are written or replayed meanwhile may or may not be seen. On
    RabbitMQ a letter that another reader is looking at is not seen.

    Args:
        walk: Which letters these are.
    """

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._app = walk.app
        self.queue = walk.queue

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
        cause: str | None = None,
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
            cause: The fingerprint of its cause, as :meth:`stats` gives it.
            limit: At most so many, the oldest first.

        Raises:
            ConfigurationError: When an argument is wrong.
        """
        more = checked(
            task=task,
            reason=reason,
            error=error,
            since=since,
            until=until,
            id=id,
            root_id=root_id,
            cause=cause,
            limit=limit,
        )
        old = self._walk
        chosen = None if old.chosen is None else narrowed(old.chosen, more)
        return DeadLetters(Walk(self._app, self.queue, chosen, old.look))

    def watched(self, look: Look) -> DeadLetters:
        """The same letters; ``look`` is told of each message that is looked at, and of how many stood there.

        Args:
            look: Called with the number of messages looked at so far, and the number that stood there at the start.
        """
        return DeadLetters(Walk(self._app, self.queue, self._walk.chosen, look))

    def __iter__(self) -> Iterator[Letter]:
        with ExitStack() as stack:
            shelf = self._walk.open(stack)
            for entry in self._walk.entries(shelf, ledger_in(stack)):
                yield entry.letter

    def count(self) -> int:
        """How many there are: it reads the queue, as iterating does."""
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
        held = "; on RabbitMQ one that somebody is reading is not seen" if self._walk.kind == "amqp" else ""
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

        self.where(id=wanted, limit=1).replay_all(to=to, correct=correct, on_each=told)
        if not known:
            raise self._not_found(wanted)
        return self._app.AsyncResult(known[0].replay_id)

    def replay_all(
        self,
        *,
        rate: float | None = None,
        canary: int | None = None,
        canary_timeout: timedelta = CANARY_TIMEOUT,
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
            canary_timeout: How long all the canaries may take; 5 minutes by default.
            to: The name of another queue to send all of them to.
            correct: New values for some arguments, by name. They must fit every one of the letters, or nothing is sent; and
                they must not give letters of several keys one key, of which only one would be run. What they were is told
                by the next letter, should the task die again.
            dry_run: Count what would be sent, and send nothing.
            on_each: Called with each letter that was sent, and with None or the reason why it could not be.

        Raises:
            ConfigurationError: When an argument is wrong, before anything is sent.
            UnsafeValue: When a new value would not arrive as it is, before anything is sent.
            BackendUnavailable: When the result backend does not answer before a canary is sent.
        """
        refuse_target(self._walk, to)
        refuse_canary(self._app, canary, canary_timeout)
        if self._walk.chosen is None:
            return Replayed(sent=0, failed=0, dry_run=dry_run)
        with ExitStack() as stack:
            correction = Correction(self._app, correct or {}, ledger_in(stack))
            replayer = Replayer(
                self._app,
                ledger_in(stack),
                pace=Pace(rate),
                to=to,
                correction=correction,
                dry_run=dry_run,
                on_each=on_each,
            )
            return replayed(
                self._walk,
                replayer,
                tried_on=bool(correction),
                canary=None if dry_run else canary,
                patience=canary_timeout,
                to=to,
            )

    def purge(
        self,
        *,
        kept_in: str | PathLike[str] | None = None,
        on_each: Callable[[Letter], object] | None = None,
    ) -> int:
        """Delete the letters for good.

        It does not ask, and keeps no copy by itself: see :meth:`export`.

        Args:
            kept_in: Only those that stand in this file, which :meth:`export` has written; of equal messages that nothing
                tells apart, as many as stand there, in each call.
            on_each: Called with each letter that was deleted.

        Returns:
            How many.

        Raises:
            ConfigurationError: When an argument is wrong, or the file is none of ours.
        """
        return purged(self._walk, kept_in, on_each)

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
        return exported(self._walk, file)

    def restore(
        self, file: str | PathLike[str] | TextIO, *, on_each: Callable[[str, bool], object] | None = None
    ) -> int:
        """Put letters of a file back, behind those that stand there: body, headers and properties as they were.

        One whose id stands there already is left out, so a call that was killed may be repeated.

        Args:
            file: A file that :meth:`export` has written, or an open text file with what stands in one.
            on_each: Called with the id of each letter of the file, and whether it was put back.

        Returns:
            How many were put back.

        Raises:
            ConfigurationError: When the file is none of ours, and when this is a queue that the app's tasks go to; before
                anything is put back.
            PublishFailed: When the broker did not take a letter; those before it are back.
        """
        refuse_consumed(self._app, self.queue)
        return restored(Walk(self._app, self.queue), file, on_each)
