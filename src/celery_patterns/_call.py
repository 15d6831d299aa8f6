"""One attempt of one task, as the patterns see it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from inspect import Signature
from typing import TYPE_CHECKING, Any, Protocol

from billiard.exceptions import SoftTimeLimitExceeded
from celery import current_task

from ._header_values import FAR
from ._keys import Binder
from ._message import HEADER, KEPT, OWNER, came_by, first_sent, remembered, undelayed
from ._received import ATOMS, received
from .exceptions import NotInTask, StoreUnavailable

if TYPE_CHECKING:
    from celery import Celery
    from celery.app.task import Context, Task
    from celery.exceptions import Retry

__all__ = ["EVER_KEPT", "MARK", "Call", "Claim", "Lease", "Proceed", "Terms", "current_call", "current_claim"]

#: Where the running call hangs in its request. ``Task.__call__`` copies a request's attributes into the request of a
#: nested direct call, which is what keeps such a call from being taken for an attempt of its own.
MARK = "_celery_patterns_call"

#: Whether this process has ever kept a letter or a next attempt: where it has not, as one that only sends, nobody need ask.
EVER_KEPT: list[bool] = []

_NOTHING: dict[str, Any] = {}


class Lease(Protocol):
    """How the running call holds its key."""

    @property
    def owner(self) -> str:
        """As whom it holds it, in the store."""
        ...

    @property
    def left(self) -> float:
        """For how many seconds it surely does, on this process's clock."""
        ...

    @property
    def committing(self) -> bool:
        """Whether the body has recorded its work in a transaction of its own, which holds the key while it is open."""
        ...

    def renew(self) -> bool:
        """Ask the store for another lease; False when the key is this run's no longer."""
        ...

    def is_lost(self) -> bool:
        """Whether the key is this run's no longer; the store is asked only when the lease is over."""
        ...

    def end(self) -> None:
        """Renew it no more: the run is over."""
        ...


class Claim:
    """The key that the running call holds; get it from :func:`current_claim`.

    Attributes:
        key: The key's digest: stable for a task name and a key, and safe to hand to other systems, for example as an
            ``Idempotency-Key`` header.
        fence: A number that is greater for every later claim of the same key, also after the record expired.
    """

    __slots__ = ("_commit", "_lease", "fence", "key")

    def __init__(self, key: str, fence: int, lease: Lease, commit: Callable[[Any, Any], None]) -> None:
        self.key = key
        self.fence = fence
        self._lease = lease
        self._commit = commit

    @property
    def expires_in(self) -> timedelta:
        """For how long it surely is ours, on this process's clock; 0 when that is over, or it is another's.

        A third of a lease after it was taken, or renewed, the lease is renewed.
        """
        return timedelta(seconds=self._lease.left)

    def still_mine(self) -> bool:
        """Whether this run still holds the key: the store is asked, and renews the lease.

        Ask it before an effect that must not come from two runs, and raise
        :class:`~celery_patterns.exceptions.ClaimLost` when it is False. It does not promise that the key is still ours a
        moment later: hand ``fence`` to a system that can refuse the smaller one. When the store does not answer, it is
        what the store last promised: whether the lease still runs. In eager mode nothing is claimed, and it is True.
        """
        try:
            return self._lease.renew()
        except StoreUnavailable as error:
            return self._lease.left > 0 or (error.locked and self._lease.committing)

    def commit_with(self, connection: Any, result: Any = None) -> Any:
        """Record in a transaction of your own that the work is done, with its result.

        It promises that the record and what else the transaction writes stand together, or not at all. Once it is
        committed, no delivery runs the body again for the pattern's ``ttl``, whatever is killed, and each returns
        ``result``; when it is rolled back, nothing has happened. A run that has lost its key cannot commit, and from here
        to the end of the transaction nobody else can have the key.

        It does not commit: end the transaction before the body ends, or the task fails with
        :class:`~celery_patterns.exceptions.NotCommitted`. In eager mode nothing is claimed, and nothing is recorded.

        Args:
            connection: A SQLAlchemy ``Session`` or ``Connection``, or a Django connection, with a transaction on the
                database of the app's :class:`~celery_patterns.stores.SQLStore`.
            result: What a duplicate is to return; None by default. Give the body's own result: where they differ, the event
                ``result_not_kept`` says so.

        Returns:
            The result, for the body to return.

        Raises:
            ClaimLost: When the key is this run's no longer: let it pass, so that the transaction is rolled back.
            ConfigurationError: When the app's store is none in SQL, or the connection none of these, one to another
                database, one that commits each statement by itself, or one in a savepoint; and in a second transaction
                when the first one was committed.
            StoreUnavailable: When the store's own connection is asked whether it was, and does not answer.
        """
        self._commit(connection, result)
        return result

    def __repr__(self) -> str:
        return f"<Claim {self.key} fence={self.fence}>"


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for every call of one task.

    Attributes:
        signature: The body's signature as callers see it.
        bound: Gives a call's arguments by name.
        attempts: How many attempts there are in all; None when Celery's own limits hold.
        keyed: Whether the calls claim a key, which then counts their starts.
        crash_limit: How many starts may come to no end; None for no limit.
    """

    signature: Signature
    bound: Binder
    attempts: int | None
    keyed: bool
    crash_limit: int | None


class Call:
    """The running attempt of a task; get it from :func:`current_call`.

    It promises the values that the message arrived with, and nothing about the arguments: those belong to the body.
    """

    __slots__ = (
        "args",
        "asked",
        "claim",
        "eager",
        "header",
        "instance",
        "kwargs",
        "lease",
        "over",
        "received_args",
        "received_kwargs",
        "repeats",
        "request",
        "settlements",
        "shown",
        "spent",
        "started",
        "terms",
    )

    def __init__(
        self, instance: Task, request: Context, args: tuple[Any, ...], kwargs: dict[str, Any], terms: Terms
    ) -> None:
        self.instance = instance
        self.request = request
        self.args = args
        self.kwargs = kwargs
        self.terms = terms
        self.claim: Claim | None = None
        #: How the claim's key is held.
        self.lease: Lease | None = None
        #: The retry that the body or the policy asked for; published when the body is over, never before.
        self.asked: Retry | None = None
        #: Whether the body's own ``self.retry(max_retries=…)`` said that no attempt is left.
        self.spent = False
        #: Whether its end is that of an earlier run once more, which has left a letter if the task leaves any.
        self.repeats = False
        #: Run last, with how the attempt ended, after every durable copy exists.
        self.settlements: list[Callable[[str], None]] = []
        #: The arguments that may be shown, by name.
        self.shown: tuple[str, ...] = ()
        self.started = time.time()
        header: Any = request.headers.get(HEADER) if request.headers else None
        # Nearly each carries when it was sent, and nothing else, which is seen here: a call more is paid by each task.
        is_first = (
            type(header) is dict
            and len(header) == 1
            and type(header.get("sent")) is float
            and abs(header["sent"]) < FAR
        )
        self.header: Mapping[str, Any] = header if is_first else remembered(header)
        self.eager = bool(request.is_eager)
        #: The soft time limit, when it struck before any pattern could know; the body is not begun then.
        self.over: SoftTimeLimitExceeded | None = None
        # Taken before the body runs: whatever is published later is made from these.
        changing = bool(kwargs)
        for value in args:
            changing = changing or type(value) not in ATOMS
        self.received_args, self.received_kwargs = self._kept(args, kwargs) if changing else (args, kwargs)

    def keep(self) -> None:
        """Say that the letter or the next attempt stands: however a hook fails now, there is nothing more to keep."""
        if self.request.delivery_info is not None:
            if not EVER_KEPT:
                EVER_KEPT.append(True)
            self.request.delivery_info[KEPT] = True

    def again(self, args: Any, kwargs: Any) -> None:
        """Make the next attempt of an eager call from these arguments."""
        self.received_args, self.received_kwargs = self._kept(tuple(args), dict(kwargs))
        self.args, self.kwargs = self._kept(tuple(args), dict(kwargs))
        self.asked, self.spent = None, False

    def _kept(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            return received(args, self._copied), received(kwargs, self._copied) if kwargs else {}
        except SoftTimeLimitExceeded as over:
            self.over = over
            return args, kwargs
        except RecursionError:  # too deep for a message: the caller's own, in eager mode
            return args, kwargs

    def _copied(self, value: Any) -> Any:
        if self.eager:
            return value  # the caller's own object, which may be one of a kind: no message would have carried it
        try:
            return copy.deepcopy(value)
        except SoftTimeLimitExceeded:
            raise
        except Exception:  # noqa: BLE001 - it was unpickled, and does not take a copy: better shared than lost
            return value

    @property
    def task(self) -> str:
        """The task's name."""
        return str(self.instance.name)

    @property
    def id(self) -> str:
        """The task id, which is the same for every attempt."""
        return str(self.request.id)

    @property
    def attempt(self) -> int:
        """Which attempt this is; the first is 1."""
        return (self.request.retries or 0) + 1

    @property
    def attempts(self) -> int | None:
        """How many attempts there are in all; None when Celery's own limits hold."""
        return self.terms.attempts

    @property
    def is_last(self) -> bool:
        """True when a failure of this attempt is final because of the number of attempts."""
        return self.attempts is not None and self.attempt >= self.attempts

    @property
    def app(self) -> Celery:
        return self.instance.app

    @property
    def redelivered(self) -> bool:
        # delivery_info only: the Redis transport's *header* of this name is copied into the next message by a retry.
        return bool((self.request.delivery_info or {}).get("redelivered"))

    @property
    def late(self) -> bool:
        """True when the message is acknowledged after the attempt, so that it can still go back to its queue."""
        return bool(self.instance.acks_late)

    @property
    def queue(self) -> str:
        """The routing key the message came by: on the default exchange, its queue."""
        key = str((self.request.delivery_info or _NOTHING).get("routing_key") or "")
        return undelayed(key)

    @property
    def came_by(self) -> tuple[str | None, str]:
        """Exchange and routing key of its delivery."""
        return came_by(self.request.delivery_info or _NOTHING)

    @property
    def run_id(self) -> str:
        """The task id, told apart from a replacement of the task, which keeps the id."""
        return f"{self.id}/{self.request.replaced_task_nesting or 0}"

    @property
    def owner(self) -> str | None:
        """Who this run is to claim as, if the worker's main process said so."""
        owner = (self.request.delivery_info or _NOTHING).get(OWNER)
        return owner if isinstance(owner, str) else None

    @property
    def first_started(self) -> float:
        """When the first attempt started, in seconds since the epoch on that worker's clock."""
        return float(self.header.get("started", self.started))

    @property
    def first_sent(self) -> float | None:
        """When the task was first published, by its sender's clock; None when the sender did not say."""
        return first_sent(self.header, self.attempt)

    def facts(self, told: dict[str, Any] | None = None) -> dict[str, Any]:
        """What every event says of the call: of its arguments nothing but those that ``logged`` named.

        Args:
            told: Where to add it; a new dict by default.
        """
        if told is None:
            told = {}
        request, terms = self.request, self.terms
        told["task"] = self.instance.name
        told["messaging.message.id"] = request.id
        told["messaging.destination.name"] = self.queue
        told["attempt"] = (request.retries or 0) + 1
        if terms.attempts is not None:
            told["attempts"] = terms.attempts
        for name in self.shown:
            told[name] = terms.bound.one(name, self.args, self.kwargs)
        return told

    def __repr__(self) -> str:
        return f"<Call {self.task}[{self.id}] attempt {self.attempt}>"


#: The rest of a call, from a pattern's point of view: the patterns further inside, and the body.
Proceed = Callable[[Call], Any]


def current_call() -> Call:
    """The running attempt: its ``task``, ``id``, ``attempt``, ``attempts`` and ``is_last``.

    Raises:
        NotInTask: Outside of a task that wears a pattern, in a direct call of one, and when the attempt is over, as in a
            task's ``on_success``.
    """
    request = current_task.request if current_task else None
    call = request.__dict__.get(MARK) if request is not None else None
    if call is None:
        raise NotInTask(
            "there is no running task that wears a pattern here: current_call() and current_claim() speak of one; call "
            "them in the body of a task that a worker runs, or .apply()"
        )
    assert isinstance(call, Call)
    return call


def current_claim() -> Claim:
    """The key that the running attempt holds: its ``key``, ``fence`` and ``expires_in``.

    Raises:
        NotInTask: When the running task wears no ``idempotent``, outside of a task, and in a direct call. In eager mode
            the key is that which a worker would claim; nothing is claimed.
    """
    claim = current_call().claim
    if claim is None:
        raise NotInTask("current_claim() was asked in a call that holds no key; does the task wear idempotent()?")
    return claim
