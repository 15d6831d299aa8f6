"""A key that a run holds, and its end: the work is recorded, or the key is given back."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery.result import ResultBase

from .. import _codec
from .._events import emit
from .._keys import digest
from .._message import KEPT
from .._plan import FAILED, REJECTED, REQUEUED
from ..exceptions import ClaimLost, ConfigurationError, NotCommitted, StoreUnavailable
from ..typing import Answer, Claimed, Done, Ended, TransactionalStore
from . import _failure
from ._renewal import Holder, Renewal, renewer

if TYPE_CHECKING:
    from .._call import Call
    from ..typing import Store
    from ._pattern import idempotent

__all__ = ["Held"]


class Held:
    """A key that a run holds.

    Args:
        pattern: What is worn.
        call: The running call.
        store: Where the key is held.
        holder: Who holds it.
        fingerprint: Of the arguments.
        asked: When the key was asked for, on this process's clock.
    """

    __slots__ = (
        *("_call", "_failure", "_fingerprint", "_holder", "_ledger", "_pattern", "_store"),
        *("crashed", "renewal"),
    )

    def __init__(
        self, pattern: idempotent, call: Call, store: Store, holder: Holder, fingerprint: str, asked: float
    ) -> None:
        self._pattern, self._call, self._store, self._holder = pattern, call, store, holder
        self._fingerprint = fingerprint
        #: The store that knows whether the body's own transaction was committed, when it has one.
        self._ledger: TransactionalStore | None = None
        #: The failure that is to be remembered, once its letter stands.
        self._failure: bytes | None = None
        self.renewal = Renewal(call, store, holder, asked)
        #: Whether its body is not run, since too many runs of it have crashed.
        self.crashed = False

    @property
    def fence(self) -> int:
        return self._holder.fence

    def watch(self) -> None:
        """Renew the lease from now on."""
        renewer.watch(self.renewal)

    def commit(self, connection: Any, result: Any) -> None:
        """Let the record be part of a transaction of the body's own."""
        store, who = self._store, self._holder
        if not isinstance(store, TransactionalStore):
            raise ConfigurationError(
                "commit_with() needs a store in the database of the connection; expected "
                f'equip(app, store="postgresql://…"), got a {type(store).__name__}'
            )
        encoded = self._encoded(result)
        self._ledger = store  # from here on its answer counts, also when the body makes nothing of an error
        if not store.commit(connection, who.key, who.attempt, self._fingerprint, who.fence, encoded, ttl=who.ttl):
            raise ClaimLost(f"{self._call.task}: the key is this run's no longer, so nothing is to be committed")
        self.renewal.committing = True

    def end(self, result: Any) -> Answer | StoreUnavailable | None:
        """Record the work of a body that has returned, or make sure that the body itself has.

        Returns:
            None when its result counts; else what the store said instead, or that it says nothing and the lease is over.

        Raises:
            NotCommitted: When the body's own transaction was to record it and was not committed.
        """
        return self._complete(result) if self._ledger is None else self._confirm(self._ledger, result)

    def _compare(self, result: Any, recorded: bytes | None) -> None:
        """Say so when duplicates will get another result than the first caller."""
        if recorded is None:
            return  # it was not kept, which has been told
        returned = self._json(result)
        if returned != recorded and (returned is None or _codec.loads(returned) != _codec.loads(recorded)):
            reason = "commit_with() was given another one"
            emit(logging.WARNING, "result_not_kept", self._call, result_type=type(result).__qualname__, reason=reason)

    def _complete(self, result: Any) -> Answer | StoreUnavailable | None:
        try:
            answer = self._record(self._encoded(result))
        except SoftTimeLimitExceeded:  # it strikes once, and the work is done
            answer = self._record(self._encoded(result))
        if isinstance(answer, StoreUnavailable):
            return answer if self.renewal.lost else None
        if isinstance(answer, Done) and answer.ours:
            return None
        # Somebody else holds the key by now, so this result is not the key's.
        if not self.renewal.lost:
            with contextlib.suppress(SoftTimeLimitExceeded):
                emit(logging.ERROR, "claim_lost", self._call, fence=self.fence)
        return answer

    def _confirm(self, ledger: TransactionalStore, result: Any) -> Answer | StoreUnavailable | None:
        who = self._holder
        asked = (who.key, who.attempt, self._fingerprint, who.fence)
        try:
            try:
                answer = ledger.committed(*asked)
            except SoftTimeLimitExceeded:  # it strikes once, and the body is over
                answer = ledger.committed(*asked)
        except StoreUnavailable as trouble:  # the next delivery will see
            return trouble
        # A record that is gone was made, and has expired since, if the transaction took it: what runs is renewed.
        if isinstance(answer, Claimed) or (answer is None and not self.renewal.committing):
            raise NotCommitted(
                f"{self._call.task}: commit_with() was called, and its transaction had not been committed when the task's "
                "body ended; expected it to be committed before"
            )
        if answer is None or (isinstance(answer, Done) and answer.ours):
            self.renewal.end()
            self.keep()
            if answer is not None:
                with contextlib.suppress(SoftTimeLimitExceeded):  # too late to undo the work
                    self._compare(result, answer.result)
            return None
        return answer  # it was rolled back, and somebody else has the key since

    def _encoded(self, result: Any) -> bytes | None:
        call, encoded = self._call, self._json(result)
        told: dict[str, Any] = {"result_type": type(result).__qualname__}
        limit = self._pattern.max_result_bytes
        if encoded is None:
            emit(logging.WARNING, "result_not_kept", call, **told, reason="it cannot be stored as JSON")
        elif limit is not None and len(encoded) > limit:
            told.update(reason="it is larger than max_result_bytes", bytes=len(encoded), max_result_bytes=limit)
            emit(logging.WARNING, "result_not_kept", call, **told)
            return None
        return encoded

    def _json(self, result: Any) -> bytes | None:
        # A result that stands for other tasks is kept as their ids, as a result backend would.
        kept = self._call.instance.backend.prepare_value(result) if isinstance(result, ResultBase) else result
        try:
            return _codec.dumps_result(kept)
        except SoftTimeLimitExceeded:
            raise
        except Exception:  # noqa: BLE001 - a value's own __json__ may raise what it likes, and the work is done
            return None

    def _record(self, encoded: bytes | None) -> Answer | StoreUnavailable:
        """Write that the work is done, or how it failed, as long as the key is ours; why not, when the store stayed away.

        A soft time limit that strikes here comes too late to undo the work: the store is asked once more.
        """
        who, patient = self._holder, True
        while True:
            try:
                self.renewal.end()
                answer = self._store.complete(who.key, who.attempt, self._fingerprint, who.fence, encoded, ttl=who.ttl)
                self.keep()
                return answer
            except SoftTimeLimitExceeded:
                patient = False
                continue
            except StoreUnavailable as error:
                left = self.renewal.left if patient else 0.0
                if left <= 0:
                    self.keep()
                    told = {"reason": str(error), "fence": who.fence}
                    with contextlib.suppress(SoftTimeLimitExceeded):  # too late to undo the work, too
                        emit(logging.CRITICAL, "claim_not_recorded", self._call, error=error, **told)
                    return error
            try:
                time.sleep(min(0.5, max(0.01, left)))
            except SoftTimeLimitExceeded:
                patient = False

    def note(self, error: Exception) -> None:
        """Make ready what is to be remembered of a failure; its letter comes first, and says what to forget."""
        call = self._call
        # Where a next attempt was asked for, it could not be published: that is an end, but the broker's.
        if call.asked is None and _failure.is_named(error, self._pattern.remember):
            # Of all deliveries of an attempt it is the same one, as their letters are. A letter's message that is moved
            # back by hand is another attempt of the same number.
            attempt = self._holder.attempt
            name = digest(attempt.run_id, str(attempt.number), call.header.get("failure", ""))
            self._failure = _failure.encoded(name, error)
            call.header = {**call.header, "failure": name}

    def _is_told(self) -> bool:
        """Whether the letter of the failure stands, if its task leaves any: a time limit may have struck before it did."""
        buries = self._call.instance.plan.buries
        return buries is None or bool((self._call.request.delivery_info or {}).get(KEPT))

    def keep(self) -> None:
        """Do not give the key back when the message ends."""
        self._call.settlements = [one for one in self._call.settlements if one != self.release]

    def release(self, outcome: str) -> None:
        """Give the key back, as the message ended."""
        call, who = self._call, self._holder
        self.renewal.end()
        if self.crashed and outcome == REQUEUED:
            return  # it could not be buried, and its starts must not be forgotten: the lease ends it
        if self._failure is not None and outcome == FAILED and self._is_told():
            # Refused, or the store is away: then it is this message's alone. What the body has committed itself stays.
            self._record(self._failure)
            return
        ended = None if outcome == REQUEUED else Ended(failed=outcome in (FAILED, REJECTED))
        if outcome == REJECTED and call.instance.plan.buries is not None:
            # Its letter is still to be written, by the main process, which then gives back a key that it can make.
            given, args, kwargs = call.header.get("key"), call.received_args, call.received_kwargs
            if self._pattern.key_without_code(call.task, call.terms.bound, args, kwargs, given) is not None:
                return
            ended = None  # marked as failed, what comes back without a letter would be let go
        try:
            self._store.release(who.key, who.attempt, who.fence, ended=ended, ttl=who.ttl)
        except StoreUnavailable as error:
            emit(logging.ERROR, "claim_not_released", call, error=error, reason=str(error), fence=who.fence)
