"""What a store promises, as a Protocol with the answers it gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, Protocol, runtime_checkable

__all__ = [
    "Answer",
    "Attempt",
    "Claimed",
    "Done",
    "Ended",
    "InspectableStore",
    "KeyRecord",
    "Mismatch",
    "Running",
    "Store",
    "TransactionalStore",
]


@dataclass(frozen=True, slots=True)
class Attempt:
    """Who asks: one run of a task.

    Attributes:
        run_id: The task id, with the number of times the task was replaced.
        number: Celery's counter of retries, 0 for the first attempt.
        owner: Another one for each run, so that two deliveries of one message are two owners: the task id and random
            digits.
        heir_of: The owners whose key passes to this one at once: the attempt before, whose body is over, or earlier
            deliveries of the same attempt, which gave up or heard no answer, and were no start.
    """

    run_id: str
    number: int
    owner: str
    heir_of: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Claimed:
    """The key is ours.

    Attributes:
        fence: Greater than that of every earlier claim of the key.
        starts: How many runs in a row began without coming to an end, this one included.
    """

    fence: int
    starts: int


@dataclass(frozen=True, slots=True)
class Running:
    """Another run holds the key.

    Attributes:
        expires_in: How long its lease still is, by the store's clock.
        same_run: True when it is another delivery of the very task that asks: the same task id.
    """

    expires_in: timedelta
    same_run: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Done:
    """The key's work is done.

    Attributes:
        result: The first run's result as it was stored, or its failure; None when it was not kept.
        ours: True when the owner who asks recorded the work; always said to a completion, and by a store with transactions.
    """

    result: bytes | None
    ours: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The key belongs to a call with other arguments."""


@dataclass(frozen=True, slots=True)
class Ended:
    """This attempt, or a later one of the same task, has ended before.

    Attributes:
        failed: True for a final failure; False when the work was handed over to a later attempt or another task.
    """

    failed: bool


Answer = Claimed | Running | Done | Mismatch | Ended


@runtime_checkable
class Store(Protocol):
    """Where keys are claimed.

    Every method is one atomic step on the store's own clock, and may be repeated by the same owner without harm, so
    that a lost answer can be asked for again. Trouble of any kind is
    :class:`~celery_patterns.exceptions.StoreUnavailable`.
    """

    def claim(self, key: str, attempt: Attempt, fingerprint: str, *, lease: timedelta, ttl: timedelta) -> Answer:
        """Take the key, or say why not.

        Args:
            key: The key's name in the store.
            attempt: Who asks.
            fingerprint: A digest of the arguments that must agree between duplicates.
            lease: How long the key is ours unless we end first.
            ttl: How long the record outlives the lease.
        """
        ...

    def renew(self, key: str, attempt: Attempt, fence: int, *, lease: timedelta, ttl: timedelta) -> bool:
        """Hold the key for another lease, from now on.

        A lease that is over is renewed too, as long as nobody has taken the key. Work that this owner has recorded needs
        no lease: nobody can have its key.

        Args:
            attempt: Who asks: its ``owner`` must hold the key.
            fence: That of the claim.
            lease: How long the key is ours unless we end first.
            ttl: How long the record outlives the lease.

        Returns:
            False when the key is no longer ours, or the store knows nothing of it; nothing was changed.
        """
        ...

    def complete(
        self,
        key: str,
        attempt: Attempt,
        fingerprint: str,
        fence: int,
        result: bytes | None,
        *,
        ttl: timedelta,
    ) -> Answer:
        """Write that the work is done.

        Args:
            result: The encoded result, or failure, which is any bytes to the store; None when it is not to be kept.
            ttl: How long the record is kept from now on.

        Returns:
            Done, and ``ours``, when the record is this owner's; otherwise what a claim would have answered: the key was
            lost to a later owner.
        """
        ...

    def release(self, key: str, attempt: Attempt, fence: int | None, *, ended: Ended | None, ttl: timedelta) -> bool:
        """Give the key back, forgetting owner, arguments and starts; the fence is kept.

        Args:
            attempt: Who gives it back: its ``owner`` must hold the key. Which run ended is what the record says.
            fence: That of the claim; None where only the owner is known, which claims no key twice.
            ended: How the attempt ended, or None when it is to be delivered and run once more.
            ttl: How long the mark is kept.

        Returns:
            False when the key was no longer ours, and nothing was changed.
        """
        ...

    def count_start(self, key: str, owner: str, *, ttl: timedelta) -> int:
        """Count one start of a message that came back and holds no key, and return how many there were, this one included.

        The first delivery is not counted but assumed to have been a start, unless :meth:`excuse_start` said otherwise.

        Args:
            key: What stands for the message.
            owner: Random for each start: the same one is counted once.
            ttl: How long the starts are remembered.
        """
        ...

    def excuse_start(self, key: str, *, ttl: timedelta) -> None:
        """Remember that the first delivery of a message was given back before it was started.

        Args:
            key: What stands for the message.
            ttl: How long this is remembered.
        """
        ...

    def forget_starts(self, key: str) -> None:
        """Forget what :meth:`count_start` counted."""
        ...


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What a store knows of one key.

    Attributes:
        key: The key's name in the store: the task's name, a colon, and the digest that ``current_claim().key`` is.
        state: ``running``; ``done``; ``failed``, with an error that ``remember`` names; or ``free``: then only the ends of
            earlier attempts are remembered.
        owner: Who has the key, or has done its work: the task id, a dot, and what tells its deliveries apart.
        fence: That of the last claim: the store's clock then, in microseconds.
        starts: Of what runs, how many runs in a row began without coming to an end, the last one included.
        held_for: Since when it is held, if it is.
        lease_left: For how long its lease still is, if it is held; 0 when that is over, and anybody may have the key.
        expires_in: For how long the record is kept, unless it is renewed.
    """

    key: str
    state: Literal["running", "done", "failed", "free"]
    owner: str
    fence: int
    starts: int
    held_for: timedelta | None
    lease_left: timedelta | None
    expires_in: timedelta


@runtime_checkable
class InspectableStore(Store, Protocol):
    """A store that can be looked through, as ``celery patterns claims`` does."""

    def records(self, beginning: str = "") -> Iterator[KeyRecord]:
        """Each key whose name begins like this, in no order; one that changes meanwhile may be told as it was or as it is.

        Args:
            beginning: The first characters of a key's name in the store.
        """
        ...

    def record(self, key: str) -> KeyRecord | None:
        """What is known of one key; None where that is nothing."""
        ...

    def free(self, key: str, fence: int, *, living: bool = False) -> bool:
        """Take a key from the run that has it, which can then neither renew, complete nor release it.

        Args:
            key: The key's name in the store.
            fence: That of the claim which is meant.
            living: Whether it is taken also while its lease holds.

        Returns:
            False when that claim does not hold the key, or its lease holds and ``living`` is not said; nothing was changed.
        """
        ...

    def forget(self, key: str, *, fence: int | None = None, beginning: bytes = b"") -> bool:
        """Forget that a key's work is done, or that its failure is remembered, so that it is run again.

        Args:
            key: The key's name in the store.
            fence: That of the claim whose work is meant; whichever by default.
            beginning: What the recorded result must begin with; nothing by default.

        Returns:
            False when it was not done, or its result is another one, and nothing was changed.
        """
        ...


@runtime_checkable
class TransactionalStore(Store, Protocol):
    """A store that can record work in a transaction of the task's own."""

    def commit(
        self,
        connection: Any,
        key: str,
        attempt: Attempt,
        fingerprint: str,
        fence: int,
        result: bytes | None,
        *,
        ttl: timedelta,
    ) -> bool:
        """Write that the work is done, in the transaction that is open on a connection, which is then still to be committed.

        Until it has ended, a claim of the key is answered with Running, however long that takes.

        Args:
            connection: One to the store's own database.

        Returns:
            False when the key is no longer the attempt's own, and nothing was changed.

        Raises:
            ConfigurationError: When the connection is of no known kind, commits each statement by itself, is in a savepoint,
                or is to a database without this key.
        """
        ...

    def committed(self, key: str, attempt: Attempt, fingerprint: str, fence: int) -> Answer | None:
        """What became of the transaction of :meth:`commit`; nothing is changed.

        Returns:
            Done, and ``ours``, when it was committed; Claimed when it was not, and the key is still the attempt's; otherwise
            what a claim would be answered: the key was lost to a later owner. None when nothing is known of the key any
            more.
        """
        ...
