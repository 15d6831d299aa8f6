"""One delivery's way to its key, and back."""

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
from celery.result import ResultBase

from .. import _codec
from .._call import Claim
from .._events import emit
from .._keys import digest, name_in_store
from .._message import new_owner
from .._plan import FAILED, REJECTED, REQUEUED
from .._republish import send_waiting_copy
from ..exceptions import (
    AlreadyFailed,
    ClaimLost,
    ConfigurationError,
    FailedBefore,
    InProgress,
    KeyMismatch,
    NotCommitted,
    ResultNotKept,
    StoreUnavailable,
    TooManyCrashes,
)
from ..typing import Answer, Attempt, Claimed, Done, Ended, InspectableStore, Mismatch, Running, TransactionalStore
from . import _failure
from ._renewal import Holder, Renewal, Unclaimed, local_fence, now, renewer

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
    """One delivery's way to its key, and back."""

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
        self.fence = 0
        #: When the key was asked for, on this process's clock: before the store begins to count the lease.
        self.asked = 0.0
        self.renewal: Renewal | None = None
        self.crashed = False
        #: The store that knows whether the body's own transaction was committed, when it has one.
        self.ledger: TransactionalStore | None = None
        #: The failure that is to be remembered, once its letter stands.
        self.failure: bytes | None = None
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
            return self._hold(answer, proceed)
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

    def _release_unheard(self, _outcome: str) -> None:
        """The question may have been heard, and only its answer lost: a key that nobody holds would count as a crash."""
        with contextlib.suppress(StoreUnavailable):  # then the lease ends it
            self.store.release(self.name, self.attempt, None, ended=None, ttl=self.pattern.ttl)

    def _ask(self) -> Answer:
        pattern = self.pattern
        self.asked = now()
        answer = self.store.claim(self.name, self.attempt, self.fingerprint, lease=pattern.lease, ttl=pattern.ttl)
        if isinstance(answer, Claimed):
            self.fence = answer.fence
            if self._release not in self.call.settlements:
                self.call.settlements.append(self._release)
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

    def _hold(self, claimed: Claimed, proceed: Proceed) -> Any:
        call, pattern = self.call, self.pattern
        holder = Holder(self.name, self.attempt, claimed.fence, pattern.lease, pattern.ttl)
        renewal = self.renewal = call.lease = Renewal(call, self.store, holder, self.asked)
        call.claim = Claim(self.key, claimed.fence, renewal, self._commit)
        limit = call.terms.crash_limit
        if limit is not None and claimed.starts > limit:
            self.crashed = True
            raise TooManyCrashes(
                f"{call.task} was started {limit} times and never came to an end; it was not run again"
            )
        if claimed.starts > 1:
            emit(logging.WARNING, "claim_taken_over", call, starts=claimed.starts, fence=claimed.fence)
        renewer.watch(renewal)
        try:
            result = proceed(call)
        except (Retry, Ignore):
            raise  # what goes on stands: the next attempt, or a replacement
        except Exception as error:  # noqa: BLE001 - and raised again where it counts
            return self._give_up(error)
        if call.asked is not None:
            return result  # it asked with throw=False: the work is not done, and the next attempt needs the key
        return self._complete(result) if self.ledger is None else self._confirm(result, self.ledger)

    def _give_up(self, error: Exception) -> Any:
        """What a body that failed leaves: its failure, or, when that is not the key's, what a duplicate does.

        The message of a run that lost its key must not end while the other run lives: on Redis a message that was given out
        twice is acknowledged by whichever comes first, and the other run would be unprotected.
        """
        try:
            try:
                answer = self._answer_if_lost()
            except SoftTimeLimitExceeded:  # it strikes once, and the body is over
                answer = self._answer_if_lost()
        except StoreUnavailable as trouble:  # and the lease is over: nobody says whose the key is
            return self._bequeath(LONGEST_WAIT, trouble)
        if answer is not None and not isinstance(answer, Claimed):
            return self._follow(answer)
        if isinstance(error, ClaimLost):  # it is not, or is free by now
            return self._bequeath(self._next_look(LONGEST_WAIT), None)
        self._note(error)
        raise error

    def _note(self, error: Exception) -> None:
        """Make ready what is to be remembered of a failure; its letter comes first, and says what to forget."""
        call = self.call
        # Where a next attempt was asked for, it could not be published: that is an end, but the broker's.
        if call.asked is None and _failure.is_named(error, self.pattern.remember):
            # Of all deliveries of an attempt it is the same one, as their letters are. A letter's message that is moved
            # back by hand is another attempt of the same number.
            name = digest(self.attempt.run_id, str(self.attempt.number), call.header.get("failure", ""))
            self.failure = _failure.encoded(name, error)
            call.header = {**call.header, "failure": name}

    def _answer_if_lost(self) -> Answer | None:
        assert self.renewal is not None
        return self._ask() if self.renewal.is_lost() else None

    def _bequeath(self, wait: timedelta, trouble: StoreUnavailable | None) -> None:
        """Let the message wait, and then have what this run may hold, as the same start."""
        if trouble is not None:
            emit(logging.WARNING, "claim_postponed", self.call, error=trouble, reason=str(trouble))
        self.bequests = [*self.unheard, self.attempt.owner][-LONGEST_MEMORY:]
        try:
            self._wait(wait, trouble)
        except Ignore:  # the copy stands
            self._forget_release()
            raise

    def _forget_release(self) -> None:
        self.call.settlements = [one for one in self.call.settlements if one != self._release]

    def _complete(self, result: Any) -> Any:
        call, renewal = self.call, self.renewal
        assert renewal is not None
        try:
            answer = self._record(self._encoded(result))
        except SoftTimeLimitExceeded:  # it strikes once, and the work is done
            answer = self._record(self._encoded(result))
        if isinstance(answer, StoreUnavailable):
            return self._bequeath(LONGEST_WAIT, answer) if renewal.lost else result
        if isinstance(answer, Done) and answer.ours:
            return result
        # Somebody else holds the key by now, so this result is not the key's.
        if not renewal.lost:
            with contextlib.suppress(SoftTimeLimitExceeded):
                emit(logging.ERROR, "claim_lost", call, fence=self.fence)
        return self._follow(answer)

    def _commit(self, connection: Any, result: Any) -> None:
        """Let the record be part of a transaction of the body's own."""
        store = self.store
        if not isinstance(store, TransactionalStore):
            raise ConfigurationError(
                "commit_with() needs a store in the database of the connection; expected "
                f'equip(app, store="postgresql://…"), got a {type(store).__name__}'
            )
        encoded, ttl = self._encoded(result), self.pattern.ttl
        self.ledger = store  # from here on its answer counts, also when the body makes nothing of an error
        if not store.commit(connection, self.name, self.attempt, self.fingerprint, self.fence, encoded, ttl=ttl):
            raise ClaimLost(f"{self.call.task}: the key is this run's no longer, so nothing is to be committed")
        if self.renewal is not None:
            self.renewal.committing = True

    def _commit_nothing(self, _connection: Any, _result: Any) -> None:
        raise ClaimLost(f"{self.call.task}: nothing was claimed, since the store was away, so nothing can be recorded")

    def _confirm(self, result: Any, ledger: TransactionalStore) -> Any:
        """The body's own transaction has recorded its work, if it was committed."""
        asked = (self.name, self.attempt, self.fingerprint, self.fence)
        try:
            try:
                answer = ledger.committed(*asked)
            except SoftTimeLimitExceeded:  # it strikes once, and the body is over
                answer = ledger.committed(*asked)
        except StoreUnavailable as trouble:  # the next delivery will see
            return self._bequeath(LONGEST_WAIT, trouble)
        assert self.renewal is not None
        # A record that is gone was made, and has expired since, if the transaction took it: what runs is renewed.
        if isinstance(answer, Claimed) or (answer is None and not self.renewal.committing):
            raise NotCommitted(
                f"{self.call.task}: commit_with() was called, and its transaction had not been committed when the task's "
                "body ended; expected it to be committed before"
            )
        if answer is None or (isinstance(answer, Done) and answer.ours):
            self.renewal.end()
            self._forget_release()
            return result
        return self._follow(answer)  # it was rolled back, and somebody else has the key since

    def _encoded(self, result: Any) -> bytes | None:
        call = self.call
        # A result that stands for other tasks is kept as their ids, as a result backend would.
        kept = call.instance.backend.prepare_value(result) if isinstance(result, ResultBase) else result
        try:
            encoded = _codec.dumps_result(kept)
        except SoftTimeLimitExceeded:
            raise
        except Exception:  # noqa: BLE001 - a value's own __json__ may raise what it likes, and the work is done
            encoded = None
        told: dict[str, Any] = {"result_type": type(result).__qualname__}
        limit = self.pattern.max_result_bytes
        if encoded is None:
            emit(logging.WARNING, "result_not_kept", call, **told, reason="it cannot be stored as JSON")
        elif limit is not None and len(encoded) > limit:
            told.update(reason="it is larger than max_result_bytes", bytes=len(encoded), max_result_bytes=limit)
            emit(logging.WARNING, "result_not_kept", call, **told)
            return None
        return encoded

    def _record(self, encoded: bytes | None) -> Answer | StoreUnavailable:
        """Write that the work is done, or how it failed, as long as the key is ours; why not, when the store stayed away.

        A soft time limit that strikes here comes too late to undo the work: the store is asked once more.
        """
        assert self.renewal is not None
        ttl, patient = self.pattern.ttl, True
        while True:
            try:
                self.renewal.end()
                answer = self.store.complete(self.name, self.attempt, self.fingerprint, self.fence, encoded, ttl=ttl)
                self._forget_release()
                return answer
            except SoftTimeLimitExceeded:
                patient = False
                continue
            except StoreUnavailable as error:
                left = self.renewal.left if patient else 0.0
                if left <= 0:
                    self._forget_release()
                    told = {"reason": str(error), "fence": self.fence}
                    with contextlib.suppress(SoftTimeLimitExceeded):  # too late to undo the work, too
                        emit(logging.CRITICAL, "claim_not_recorded", self.call, error=error, **told)
                    return error
            try:
                time.sleep(min(0.5, max(0.01, left)))
            except SoftTimeLimitExceeded:
                patient = False

    def _release(self, outcome: str) -> None:
        if self.renewal is not None:
            self.renewal.end()
        if self.crashed and outcome == REQUEUED:
            return  # it could not be buried, and its starts must not be forgotten: the lease ends it
        if self.failure is not None and outcome == FAILED:
            # Refused, or the store is away: then it is this message's alone. What the body has committed itself stays.
            self._record(self.failure)
            return
        ended = None if outcome == REQUEUED else Ended(failed=outcome in (FAILED, REJECTED))
        if outcome == REJECTED and self.call.instance.plan.buries is not None:
            # Its letter is still to be written, by the main process, which then gives back a key that it can make.
            call, bound = self.call, self.call.terms.bound
            given, args, kwargs = call.header.get("key"), call.received_args, call.received_kwargs
            if self.pattern.key_without_code(call.task, bound, args, kwargs, given) is not None:
                return
            ended = None  # marked as failed, what comes back without a letter would be let go
        try:
            self.store.release(self.name, self.attempt, self.fence, ended=ended, ttl=self.pattern.ttl)
        except StoreUnavailable as error:
            emit(logging.ERROR, "claim_not_released", self.call, error=error, reason=str(error), fence=self.fence)

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
        return bool(heir) or self.patient or self.renewal is not None or self.call.redelivered

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
        begun = call.started if self.renewal is not None else time.time()
        since = float((not call.redelivered and call.header.get("waiting")) or begun) + (time.time() - begun)
        if bounded and time.time() - since > self.pattern.wait_within.total_seconds():
            raise error or InProgress(
                f"{call.task}: another run of the same key did not end within {self.pattern.wait_within}"
            )
        emit(logging.INFO, "duplicate_waiting", call, wait=round(wait.total_seconds(), 3))
        send_waiting_copy(
            call,
            wait,
            waiting=since,
            looks=self.looks + 1,
            patient=self.patient or self.renewal is not None or None,
            asked_by=self.bequests or None,
        )
