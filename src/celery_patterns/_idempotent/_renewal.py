"""Renewing the leases of bodies that take long: one thread a process, in every pool."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from .._events import emit
from ..exceptions import StoreUnavailable

if TYPE_CHECKING:
    from .._call import Call
    from ..typing import Attempt, Store

__all__ = ["Holder", "Renewal", "Unclaimed", "local_fence", "now", "renewer"]

logger = logging.getLogger("celery_patterns")

#: Which part of its lease a body has run when the lease is renewed, and which part is waited after a store that was away.
FIRST, AGAIN = 1 / 3, 1 / 6

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Seconds on a clock of this machine's that goes on while the machine sleeps, where it has one."""
    return time.clock_gettime(_CLOCK)


class Holder(NamedTuple):
    """What the store is asked with: the key, who holds it since which claim, and the two spans of its pattern."""

    key: str
    attempt: Attempt
    fence: int
    lease: timedelta
    ttl: timedelta


class Renewal:
    """The lease of one key that a running body holds.

    Args:
        call: The running call.
        store: Where the key is held.
        holder: Who holds it, and for how long at a time.
        asked: When the key was asked for, on this process's clock.
    """

    __slots__ = ("_call", "_deadline", "_holder", "_seconds", "_store", "committing", "due", "lost", "over")

    def __init__(self, call: Call, store: Store, holder: Holder, asked: float) -> None:
        self._call, self._store, self._holder, self._seconds = call, store, holder, holder.lease.total_seconds()
        #: Whether the run gives the key back, or has: a refusal then is no loss.
        self.over = False
        #: Whether the body has recorded its work in a transaction of its own: while that is open, the store cannot renew the
        #: lease, and nobody else can have the key.
        self.committing = False
        #: Whether the store has said that the key is another's, and the log has been told.
        self.lost = False
        self._held_since(asked)

    def _held_since(self, asked: float) -> None:
        self._deadline = asked + self._seconds
        #: When to renew it, on this process's clock.
        self.due = asked + self._seconds * FIRST

    @property
    def owner(self) -> str:
        return self._holder.attempt.owner

    @property
    def left(self) -> float:
        return max(0.0, self._deadline - now())

    def is_lost(self) -> bool:
        return self.lost or (not self.left and not self.renew())

    def renew(self) -> bool:
        """Ask the store for another lease; False when the key is this run's no longer.

        Raises:
            StoreUnavailable: When the store does not say.
        """
        if self._is_over():
            return False
        # Read before the question is sent: the store begins to count later, so we never trust a lease longer than it does.
        asked, who = now(), self._holder
        mine = self._store.renew(who.key, who.attempt, who.fence, lease=who.lease, ttl=who.ttl)
        if self._is_over():  # another thread was told so meanwhile, or the run has given its key back
            return False
        if mine:
            self._held_since(asked)
            return True
        self.lost, self._deadline = True, asked
        emit(logging.ERROR, "claim_lost", self._call, fence=who.fence)
        return False

    def _is_over(self) -> bool:
        return self.lost or self.over

    def renew_in_time(self) -> None:
        """Renew it if it is due; a store that is away is logged, and asked again."""
        if self._is_over() or self.due > now():
            return
        self.due = now() + self._seconds * AGAIN
        try:
            self.renew()
        except StoreUnavailable as error:
            self.due = now() + self._seconds * AGAIN
            if error.locked and self.committing:
                return
            told = {"reason": str(error), "expires_in": round(self.left, 3)}
            emit(logging.WARNING, "claim_not_renewed", self._call, error=error, **told)

    def end(self) -> None:
        renewer.forget(self)


@dataclass(frozen=True)
class Unclaimed:
    """A run that has claimed nothing: in eager mode, where nobody can take the key, or while the store is away.

    Args:
        left: For how many seconds it counts as held.
        mine: Whether nobody else can have it.
    """

    left: float
    mine: bool
    owner: str = ""
    committing: bool = False

    def renew(self) -> bool:
        return self.mine

    def is_lost(self) -> bool:
        return False  # nobody knows of another run

    def end(self) -> None: ...


def local_fence() -> int:
    """A fence where no store gives one: this machine's clock, in microseconds, as a store's would be."""
    return int(time.time() * 1_000_000)


class _Renewer:
    """The bodies that run in this process, and the thread that renews their leases.

    The thread sleeps until the first lease is due, so a body that ends sooner costs it nothing.
    """

    def __init__(self) -> None:
        self._held: dict[int, Renewal] = {}
        #: When the thread wakes up by itself.
        self._wakes = math.inf
        # Locks are not used: a soft time limit is raised anywhere in a body's thread, also when it has just taken one. This
        # queue's steps are each one, and so are a dict's.
        self._bell: queue.SimpleQueue[float] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def watch(self, renewal: Renewal) -> None:
        """Renew this lease from now on."""
        self._held[id(renewal)] = renewal
        if self._thread is None:
            self._start()
        elif renewal.due < self._wakes:
            self._bell.put(renewal.due)

    def forget(self, renewal: Renewal) -> None:
        """The run gives its key back, or is gone."""
        renewal.over = True
        self._held.pop(id(renewal), None)

    def _start(self) -> None:
        self._bell = queue.SimpleQueue()  # gevent's, where it took the place of Python's since we were imported
        thread = self._thread = threading.Thread(target=self._run, name="celery-patterns-renewer", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # there are too many of them: the key is held for one lease, and the next one tries again
            self._thread = None
            logger.exception("no thread can be started to renew leases")
        except BaseException:
            self._thread = None  # two of them would do no harm
            raise

    def _run(self) -> None:
        rung = math.inf
        while True:
            # In this order: who adds a renewal that is not seen here finds a time that tells it to ring. And who rang has
            # perhaps ended by now: its time is kept, or each of many short bodies would ring.
            self._wakes = math.inf
            self._wakes = wakes = min((one.due for one in list(self._held.values())), default=math.inf)
            if rung > now():
                self._wakes = wakes = min(wakes, rung)
            try:
                rung = self._bell.get(timeout=None if wakes == math.inf else max(0.0, wakes - now()))
            except queue.Empty:
                rung = math.inf
            for renewal in list(self._held.values()):
                try:
                    renewal.renew_in_time()
                except Exception:  # a store of the user's, or a log handler: the other leases are renewed here, too
                    with contextlib.suppress(Exception):
                        logger.exception("a lease could not be renewed")
                if renewal.lost:
                    self._held.pop(id(renewal), None)


renewer = _Renewer()
# A forked child has none of its parent's threads, and runs none of its bodies.
os.register_at_fork(after_in_child=renewer.__init__)  # type: ignore[misc]
