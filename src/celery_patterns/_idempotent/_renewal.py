"""Renewing the leases of bodies that take long: one thread a process, in every pool."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from .._call import Claim
from .._events import emit
from ..exceptions import StoreUnavailable

if TYPE_CHECKING:
    from .._call import Call
    from ..typing import Attempt, Store

__all__ = ["Renewal", "renewer"]

logger = logging.getLogger("celery_patterns")

#: Which part of its lease a body has run when the lease is renewed, and which part is waited after a store that was away.
FIRST, AGAIN = 1 / 3, 1 / 6


class Renewal:
    """One key that a running body holds, as long as its lease is renewed.

    Args:
        call: The running call.
        store: Where the key is held.
        attempt: Who holds it.
        claim: What the body knows of it.
        lease: For how long each renewal holds.
        ttl: How long the record outlives the lease.
    """

    __slots__ = ("_attempt", "_call", "_lease", "_lost", "_store", "_ttl", "claim", "due", "over")

    def __init__(
        self, call: Call, store: Store, attempt: Attempt, claim: Claim, *, lease: timedelta, ttl: timedelta
    ) -> None:
        self._call, self._store, self._attempt, self._lease, self._ttl = call, store, attempt, lease, ttl
        self.claim = claim
        #: When to renew it, on this process's clock.
        self.due = time.monotonic() + lease.total_seconds() * FIRST
        #: Whether the run gives the key back, or has: a refusal then is no loss.
        self.over = False
        self._lost = False

    def renew(self) -> bool:
        """Ask the store for another lease; False when the key is this run's no longer.

        Raises:
            StoreUnavailable: When the store does not say.
        """
        if self._lost:
            return False
        # Read before the question is sent: the store begins to count later, so we never trust a lease longer than it does.
        asked, lease, claim = time.monotonic(), self._lease.total_seconds(), self.claim
        if self._store.renew(claim.key, self._attempt, claim.fence, lease=self._lease, ttl=self._ttl):
            claim.holds_until(asked + lease)
            self.due = asked + lease * FIRST
            return True
        if not self.over:
            self._lost = True
            claim.holds_until(asked)
            emit(logging.ERROR, "claim_lost", self._call, fence=claim.fence)
        return False

    @property
    def lost(self) -> bool:
        """Whether the store has said that the key is another's, and the log has been told."""
        return self._lost

    def renew_in_time(self) -> None:
        """Renew it if it is due; what is wrong is logged, and tried again."""
        if self.over or self._lost or self.due > time.monotonic():
            return
        try:
            self.renew()
        except StoreUnavailable as error:
            left = round(self.claim.expires_in.total_seconds(), 3)
            emit(logging.WARNING, "claim_not_renewed", self._call, error=error, reason=str(error), expires_in=left)
        except Exception:  # a store of the user's, and the other bodies' leases are renewed by this thread too
            logger.exception("a lease could not be renewed")
        else:
            return
        self.due = time.monotonic() + self._lease.total_seconds() * AGAIN


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
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def watch(self, renewal: Renewal) -> None:
        """Renew this lease from now on."""
        self._held[id(renewal)] = renewal
        if self._thread is None:
            self._start()
        elif renewal.due < self._wakes:
            self._bell.put(None)

    def forget(self, renewal: Renewal) -> None:
        """The run gives its key back."""
        renewal.over = True
        self._held.pop(id(renewal), None)

    def _start(self) -> None:
        thread = self._thread = threading.Thread(target=self._run, name="celery-patterns-renewer", daemon=True)
        try:
            thread.start()
        except BaseException:
            self._thread = None  # the next body's claim starts it; two of them would do no harm
            raise

    def _run(self) -> None:
        while True:
            # In this order: who adds a renewal that is not seen here finds a time that tells it to ring.
            self._wakes = math.inf
            self._wakes = wakes = min((one.due for one in list(self._held.values())), default=math.inf)
            with contextlib.suppress(queue.Empty):
                self._bell.get(timeout=None if wakes == math.inf else max(0.0, wakes - time.monotonic()))
            for renewal in list(self._held.values()):
                renewal.renew_in_time()
                if renewal.lost:
                    self._held.pop(id(renewal), None)


renewer = _Renewer()
# A forked child has none of its parent's threads, and runs none of its bodies.
os.register_at_fork(after_in_child=renewer.__init__)  # type: ignore[misc]
