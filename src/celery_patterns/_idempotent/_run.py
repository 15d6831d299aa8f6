"""One delivery's way to its key: it is asked for, waited for, or its work was done by another run."""

from __future__ import annotations

import contextlib
import logging
import random
import time
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery.exceptions import Ignore, Retry

from .. import _codec
from .._call import Claim
from .._events import emit
from .._keys import name_in_store
from .._message import new_owner
from .._republish import send_waiting_copy
from ..exceptions import (
    AlreadyFailed,
    ClaimLost,
    FailedBefore,
    InProgress,
    KeyMismatch,
    ResultNotKept,
    StoreUnavailable,
    TooManyCrashes,
)
from ..typing import Answer, Attempt, Claimed, Done, Ended, InspectableStore, Mismatch, Running
from . import _failure
from ._held import Held
from ._renewal import Holder, Unclaimed, local_fence, now

if TYPE_CHECKING:
    from .._call import Call, Proceed
    from ..typing import Store
    from ._pattern import idempotent

__all__ = ["Run"]

#: How many of those who heard no answer a waiting copy names: as many as look at a key during the default lease, and more.
LONGEST_MEMORY = 16

#: A waiting copy looks again at least this often.
LONGEST_WAIT = timedelta(seconds=30)

#: How often a replacement, which may have other arguments, looks again before the key counts as another's.
HEIRS_LOOKS = 3


class Run:
    """One delivery's way to its key."""

    def __init__(self, pattern: idempotent, call: Call, store: Store, key: str, fingerprint: str) -> None:
        self.pattern = pattern
        self.call = call
        self.store = store
        self.key = key
        #: What the store calls it.
        self.name = name_in_store(call.task, key)
        self.fingerprint = fingerprint
        #: Who asked before for this message, and heard no answer.
        self.unheard = tuple(str(owner) for owner in call.header.get("asked_by", ()))
        #: Whose key the waiting copy is to have.
        self.bequests: list[str] = []
        anew = call.header.get("anew")
        run_id = call.run_id if anew is None else f"{call.run_id}/{anew}"
        # Random for each run: a redelivery has the same task id, and must not pass for the first run.
        self.attempt = Attempt(run_id, call.attempt - 1, call.owner or new_owner(call.id), self.unheard)
        #: The key, once it is this run's.
        self.held: Held | None = None
        self.looks = int(call.header.get("looks") or 0)
        #: Whether it waits for running work whatever ``when_running`` says: the task has, or had, a run of its own.
        self.patient = bool(call.header.get("patient"))

    def claim(self, proceed: Proceed) -> Any:
        answer: Answer | StoreUnavailable
        try:
            self._forget_failure()
            answer = self._ask()
            if isinstance(answer, Ended) and answer.failed and self._is_sent_anew():
                # New work under an old id, and so are its later attempts and its copies that wait.
                owner = self.attempt.owner
                self.call.header = {**self.call.header, "anew": owner}
                self.attempt = replace(self.attempt, run_id=f"{self.attempt.run_id}/{owner}")
                answer = self._ask()
        except SoftTimeLimitExceeded:
            self._let_go()
            raise
        except StoreUnavailable as error:
            answer = error.with_traceback(None)  # no body is run in here, or its errors would be told as a consequence
        if isinstance(answer, StoreUnavailable):
            if self.pattern.when_store_down == "run" and not answer.locked:  # locked, it is somebody's
                return self._run_unclaimed(proceed, answer)
            return self._bequeath(LONGEST_WAIT, answer)
        if isinstance(answer, Claimed):
            assert self.held is not None
            return self._work(self.held, answer.starts, proceed)
        return self._follow(answer)

    def _run_unclaimed(self, proceed: Proceed, trouble: StoreUnavailable) -> Any:
        call = self.call
        emit(logging.WARNING, "run_without_claim", call, error=trouble, reason=str(trouble))
        call.lease = Unclaimed(0.0, mine=False, owner=self.attempt.owner)
        call.claim = Claim(self.key, local_fence(), call.lease, self._commit_nothing)
        call.settlements.append(self._release_unheard)
        with contextlib.suppress(ClaimLost):
            return proceed(call)
        return self._bequeath(LONGEST_WAIT, trouble)

    def _commit_nothing(self, _connection: Any, _result: Any) -> None:
        raise ClaimLost(f"{self.call.task}: nothing was claimed, since the store was away, so nothing can be recorded")

    def _release_unheard(self, _outcome: str) -> None:
        """The question may have been heard, and only its answer lost: a key that nobody holds would count as a crash."""
        with contextlib.suppress(StoreUnavailable):  # then the lease ends it
            self.store.release(self.name, self.attempt, None, ended=None, ttl=self.pattern.ttl)

    def _ask(self) -> Answer:
        pattern, call = self.pattern, self.call
        asked = now()  # before the store begins to count the lease
        answer = self.store.claim(self.name, self.attempt, self.fingerprint, lease=pattern.lease, ttl=pattern.ttl)
        if isinstance(answer, Claimed):
            if self.held is not None:  # lost, and free again
                self.held.renewal.end()
                self.held.keep()
            holder = Holder(self.name, self.attempt, answer.fence, pattern.lease, pattern.ttl)
            self.held = Held(pattern, call, self.store, holder, self.fingerprint, asked)
            call.settlements.append(self.held.release)
        return answer

    def _forget_failure(self) -> None:
        """Who sends a letter's message again, says: try again. What somebody else has recorded since stays."""
        name = self.call.header.get("failure")
        if name is not None and isinstance(self.store, InspectableStore):
            self.store.forget(self.name, beginning=_failure.beginning(name))

    def _let_go(self) -> None:
        """The soft time limit struck while the key was asked for: it may be ours, and is asked for again to know."""
        if not self.call.settlements:
            with contextlib.suppress(StoreUnavailable):  # then the lease ends it
                self._ask()

    def _is_sent_anew(self) -> bool:
        """A first attempt that is no redelivery, of a task id that has failed: somebody chose the id, and sent it again."""
        call = self.call
        return call.attempt == 1 and not call.redelivered and call.header.keys().isdisjoint(("waiting", "anew"))

    def _work(self, held: Held, starts: int, proceed: Proceed) -> Any:
        call, renewal = self.call, held.renewal
        call.lease = renewal
        call.claim = Claim(self.key, held.fence, renewal, held.commit)
        limit = call.terms.crash_limit
        if limit is not None and starts > limit:
            held.crashed = True
            raise TooManyCrashes(
                f"{call.task} was started {limit} times and never came to an end; it was not run again"
            )
        if starts > 1:
            emit(logging.WARNING, "claim_taken_over", call, starts=starts, fence=held.fence)
        held.watch()
        try:
            result = proceed(call)
        except (Retry, Ignore):
            raise  # what goes on stands: the next attempt, or a replacement
        except Exception as error:  # noqa: BLE001 - and raised again where it counts
            return self._give_up(held, error)
        if call.asked is not None:
            return result  # it asked with throw=False: the work is not done, and the next attempt needs the key
        answer = held.end(result)
        if answer is None:
            return result
        return self._bequeath(LONGEST_WAIT, answer) if isinstance(answer, StoreUnavailable) else self._follow(answer)

    def _give_up(self, held: Held, error: Exception) -> Any:
        """What a body that failed leaves: its failure, or, when that is not the key's, what a duplicate does.

        The message of a run that lost its key must not end while the other run lives: on Redis a message that was given out
        twice is acknowledged by whichever comes first, and the other run would be unprotected.
        """
        try:
            try:
                answer = self._ask() if held.renewal.is_lost() else None
            except SoftTimeLimitExceeded:  # it strikes once, and the body is over
                answer = self._ask() if held.renewal.is_lost() else None
        except StoreUnavailable as trouble:  # and the lease is over: nobody says whose the key is
            return self._bequeath(LONGEST_WAIT, trouble)
        if answer is not None and not isinstance(answer, Claimed):
            return self._follow(answer)
        if isinstance(error, ClaimLost):  # it is not, or is free by now
            return self._bequeath(self._next_look(LONGEST_WAIT), None)
        assert self.held is not None  # another one, where the key was lost, and free again
        self.held.note(error)
        raise error

    def _bequeath(self, wait: timedelta, trouble: StoreUnavailable | None) -> None:
        """Let the message wait, and then have what this run may hold, as the same start."""
        self.bequests = [*self.unheard, self.attempt.owner][-LONGEST_MEMORY:]
        try:
            self._wait(wait, trouble)
        except Ignore:  # the copy stands
            if self.held is not None:
                self.held.keep()
            raise

    def _follow(self, answer: Answer) -> Any:
        """The key is another's, or its work is over: what this delivery does instead."""
        call = self.call
        if isinstance(answer, Done):
            if answer.result is None:
                raise ResultNotKept(
                    f"{call.task}: the key's work is done, but its result was not kept: it could not be stored as JSON, or "
                    "was larger than max_result_bytes"
                )
            failure = _failure.failure_in(answer.result)
            if failure is not None:
                emit(logging.INFO, "duplicate_failed", call, first_error=failure[0])
                call.repeats = True
                raise FailedBefore(call.task, *failure)
            emit(logging.INFO, "duplicate_returned", call)
            return _codec.loads(answer.result)
        if isinstance(answer, Ended):
            emit(logging.INFO, "ended_attempt_skipped", call, failed=answer.failed)
            if answer.failed:
                call.repeats = True
                raise AlreadyFailed(f"{call.task}: attempt {call.attempt} has failed before; it was not run again")
            raise Ignore("this attempt has ended before: its work was handed over")
        if isinstance(answer, Mismatch):
            if call.request.replaced_task_nesting and self.looks < HEIRS_LOOKS:
                # replace() publishes us from inside the body that holds the key: it is about to let go.
                return self._wait(self._next_look(LONGEST_WAIT), None)
            raise KeyMismatch(f"{call.task}: the key was used before with other arguments; it belongs to that call")
        assert isinstance(answer, Running)
        self.patient = self.patient or answer.same_run
        if self.pattern.when_running == "raise" and not self._waits_all_the_same():
            raise InProgress(f"{call.task}: another run of the same key is not over")
        # Another delivery of the same task is waited for as long as it runs: to fail would be to fail that task.
        return self._wait(self._next_look(answer.expires_in), None, bounded=not answer.same_run)

    def _waits_all_the_same(self) -> bool:
        """Whether to fail would be to fail a task that is no duplicate: one with a run of its own, or its replacement."""
        # replace() publishes us from inside the body that holds the key.
        heir = self.call.request.replaced_task_nesting and self.looks < HEIRS_LOOKS
        return bool(heir) or self.patient or self.held is not None or self.call.redelivered

    def _next_look(self, expires_in: timedelta) -> timedelta:
        """When to look again: soon at first, since most work is short, then twice as late each time.

        Never later than when the lease is over, and with jitter, so that a crowd of duplicates does not come back at
        the same second.
        """
        jitter = random.uniform(0, 1)  # noqa: S311
        doubling = timedelta(seconds=2 ** min(self.looks, 5) * (1 + jitter))
        return min(expires_in + timedelta(seconds=jitter), doubling, LONGEST_WAIT)

    def _wait(self, wait: timedelta, error: StoreUnavailable | None, *, bounded: bool = True) -> None:
        call = self.call
        # A message that comes back was perhaps run, and has the whole wait before it again, for its own dead run.
        # And while its body ran, it did not wait.
        begun = call.started if self.held is not None else time.time()
        since = float((not call.redelivered and call.header.get("waiting")) or begun) + (time.time() - begun)
        if bounded and time.time() - since > self.pattern.wait_within.total_seconds():
            raise error or InProgress(
                f"{call.task}: another run of the same key did not end within {self.pattern.wait_within}"
            )
        seconds = round(wait.total_seconds(), 3)
        if error is None:
            emit(logging.INFO, "duplicate_waiting", call, wait=seconds)
        else:
            emit(logging.WARNING, "claim_postponed", call, error=error, reason=str(error), wait=seconds)
        send_waiting_copy(
            call,
            wait,
            waiting=since,
            looks=self.looks + 1,
            patient=self.patient or self.held is not None or None,
            asked_by=self.bequests or None,
        )
