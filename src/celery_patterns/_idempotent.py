"""The pattern ``idempotent``: a key's work is done once, and every duplicate gets its result."""

from __future__ import annotations

import contextlib
import inspect
import logging
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

from billiard.exceptions import SoftTimeLimitExceeded
from celery.exceptions import Ignore
from celery.result import ResultBase

from . import _codec
from ._call import Claim
from ._equipment import equipment_of
from ._events import emit, type_name
from ._keys import argument_names, canonical, digest
from ._plan import FAILED, REJECTED, REQUEUED, Layer, Pattern
from ._republish import send_waiting_copy
from .exceptions import (
    AlreadyFailed,
    ConfigurationError,
    InProgress,
    InvalidKey,
    KeyMismatch,
    ResultNotKept,
    StoreUnavailable,
    TooManyCrashes,
)
from .typing import Answer, Attempt, Claimed, Done, Ended, Mismatch, Running

if TYPE_CHECKING:
    from ._call import Call, Proceed
    from ._keys import Binder
    from .typing import Store

__all__ = ["idempotent"]

#: How many of those who heard no answer a waiting copy names: as many as look at a key during the default lease, and more.
LONGEST_MEMORY = 16

#: A waiting copy looks again at least this often.
LONGEST_WAIT = timedelta(seconds=30)

#: How often a replacement, which may have other arguments, looks again before the key counts as another's.
HEIRS_LOOKS = 3

Key = str | tuple[str, ...] | Callable[..., Any]

#: Types that a key is made of without any doubt.
_SURE = frozenset({str, int, bool, bytes, UUID})


@dataclass(frozen=True, init=False)
class idempotent(Pattern):  # noqa: N801 - used as a call, like every pattern
    """Do a key's work once.

    It promises that a key's work is never run by two workers at once while its lease holds, and never again once it is
    done and recorded, for ``ttl``; a duplicate returns the first run's result. A duplicate of running work waits, using
    no worker slot and no attempt. A failure frees the key: the next call with it runs. When a worker is killed, the
    redelivered message takes the key over once the lease is over; after the ``max_crashes`` of
    :class:`dead_letter`, 3 without it, it is not run again.

    It does not promise exactly-once effects in another system: a worker killed between the effect and the record
    runs the effect again. Hand ``current_claim().key`` to that system for this case. In this version a lease is not renewed:
    a body that outlives it may be run by a second worker at the same time.

    Args:
        key: What makes two calls the same work: an argument's name, a tuple of names, or a function that takes the
            task's arguments and returns the value. One call's own key: ``.set(idempotency_key="…")``.
        ttl: How long the record, and with it the result, is kept after the work is done.
        same: The arguments that duplicates must agree on, by name; all by default. Others may differ.
        lease: How long a killed worker keeps the key; 5 minutes by default. Must be longer than the task's time limit.
        wait_within: How long a duplicate waits for running work before it fails with ``InProgress``; 1 hour by default.

    Raises:
        ConfigurationError: When an argument is wrong, and when a task without such an argument wears it.
    """

    layer: ClassVar[Layer] = Layer.CLAIM

    key: Key
    ttl: timedelta
    same: tuple[str, ...] | None
    lease: timedelta
    wait_within: timedelta

    def __init__(
        self,
        *,
        key: Key,
        ttl: timedelta,
        same: tuple[str, ...] | None = None,
        lease: timedelta = timedelta(minutes=5),
        wait_within: timedelta = timedelta(hours=1),
    ) -> None:
        for name, span in (("ttl", ttl), ("lease", lease), ("wait_within", wait_within)):
            if not isinstance(span, timedelta):
                raise ConfigurationError(
                    f"expected {name} to be a timedelta, for example timedelta(days=1), got {span!r}"
                )
            if span <= timedelta(0):
                raise ConfigurationError(f"expected {name} to be longer than nothing, got {span}")
        if not callable(key):
            _expect_names("key", key if isinstance(key, tuple) else (key,))
        elif inspect.iscoroutinefunction(key):
            raise ConfigurationError("expected key to be a plain function, got an async one")
        if same is not None:
            if not isinstance(same, tuple):
                raise ConfigurationError(f"expected same to be a tuple of argument names, got {same!r}")
            _expect_names("same", same, empty=True)
        for name, value in (("key", key), ("ttl", ttl), ("same", same), ("lease", lease), ("wait_within", wait_within)):
            object.__setattr__(self, name, value)

    def check(self, task: str, signature: inspect.Signature) -> None:
        names = argument_names(signature)
        for role, wanted in (("key", self._key_names()), ("same", self.same or ())):
            for name in wanted:
                if name not in names:
                    takes = ", ".join(names) or "no named arguments"
                    raise ConfigurationError(f"{role} names {name!r}, but {task}() takes ({takes})")

    def _key_names(self) -> tuple[str, ...]:
        if callable(self.key):
            return ()
        return self.key if isinstance(self.key, tuple) else (self.key,)

    def around(self, proceed: Proceed, call: Call) -> Any:
        arguments = call.terms.bound(call.received_args, call.received_kwargs)
        key = self.key_of(call.task, arguments, call.received_args, call.received_kwargs, call.header.get("key"))
        if call.eager:
            # Nothing is claimed, but a body that hands its key on can be run.
            call.claim = Claim(key, int(time.time() * 1_000_000), self.lease.total_seconds())
            return proceed(call)
        run = _Run(self, call, equipment_of(call.app).store, key, self.fingerprint(call.terms.bound.stated(arguments)))
        return run.claim(proceed)

    def check_call(self, task: str, bound: Binder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = self._key_names()
        for name in names:  # what is no doubt a key is let pass without making it
            if type(bound.one(name, args, kwargs)) not in _SURE:
                break
        else:
            if names:
                return
        try:
            arguments = bound(args, kwargs)
        except TypeError:
            return  # Celery's own check, which can be switched off, speaks of missing arguments
        self.key_of(task, arguments, args, kwargs)

    def key_of(
        self,
        task: str,
        arguments: dict[str, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: str | None = None,
    ) -> str:
        """The key's digest for these arguments; the task's name is in it.

        Raises:
            InvalidKey: When a value in the key is no plain value, or is a float, and when the key function fails.
        """
        if given is not None:
            if not isinstance(given, str) or not given:
                raise InvalidKey(
                    f"{task} was sent with a key of its own that is none: expected a str that is not empty"
                )
            return digest(task, "given", canonical(given, where="idempotency_key", floats=False))
        if callable(self.key):
            try:
                value = self.key(*args, **kwargs)
            except SoftTimeLimitExceeded:
                raise
            except Exception as error:
                raise InvalidKey(f"the key function of {task} raised {type_name(error)}") from error
            if value is None:
                raise InvalidKey(f"the key function of {task} returned None; expected a value that names the work")
            return digest(task, "function", canonical(value, where=f"the key of {task}", floats=False))
        parts = [canonical(arguments[name], where=f"{task}(): {name}", floats=False) for name in self._key_names()]
        return digest(task, "names", *parts)

    def fingerprint(self, arguments: dict[str, Any]) -> str:
        """A digest of the arguments that duplicates must agree on.

        Args:
            arguments: Those that differ from their defaults.

        Raises:
            InvalidKey: When one of them is NaN, or no plain value.
        """
        agreed = {name: value for name, value in arguments.items() if self.same is None or name in self.same}
        return digest(canonical(agreed, where="arguments", floats=True))


def _expect_names(role: str, names: tuple[Any, ...], *, empty: bool = False) -> None:
    if not names and not empty:
        raise ConfigurationError(f"expected {role} to name at least one argument, got an empty tuple")
    for name in names:
        if not isinstance(name, str) or not name:
            raise ConfigurationError(
                f"expected {role} to be an argument's name, a tuple of names or a function, got {name!r}"
            )


class _Run:
    """One delivery's way to its key, and back."""

    def __init__(self, pattern: idempotent, call: Call, store: Store, key: str, fingerprint: str) -> None:
        self.pattern = pattern
        self.call = call
        self.store = store
        self.key = key
        self.fingerprint = fingerprint
        #: Who asked before for this message, and heard no answer.
        self.unheard = tuple(str(owner) for owner in call.header.get("asked_by", ()))
        anew = call.header.get("anew")
        run_id = call.run_id if anew is None else f"{call.run_id}/{anew}"
        # Random for each run: a redelivery has the same task id, and must not pass for the first run.
        self.attempt = Attempt(run_id, call.attempt - 1, call.owner or secrets.token_hex(8), self.unheard)
        self.fence = 0
        self.crashed = False
        self.looks = int(call.header.get("looks") or 0)

    def claim(self, proceed: Proceed) -> Any:
        try:
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
            emit(logging.WARNING, "claim_postponed", self.call, error=error, reason=str(error))
            return self._wait(LONGEST_WAIT, error)
        if isinstance(answer, Claimed):
            return self._hold(answer, proceed)
        return self._follow(answer)

    def _ask(self) -> Answer:
        pattern = self.pattern
        answer = self.store.claim(self.key, self.attempt, self.fingerprint, lease=pattern.lease, ttl=pattern.ttl)
        if isinstance(answer, Claimed):
            self.fence = answer.fence
            self.call.settlements.append(self._release)
        return answer

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
        call = self.call
        call.claim = Claim(self.key, claimed.fence, self.pattern.lease.total_seconds())
        limit = call.terms.crash_limit
        if limit is not None and claimed.starts > limit:
            self.crashed = True
            raise TooManyCrashes(
                f"{call.task} was started {limit} times and never came to an end; it was not run again"
            )
        if claimed.starts > 1:
            emit(logging.WARNING, "claim_taken_over", call, starts=claimed.starts, fence=claimed.fence)
        result = proceed(call)
        if call.asked is not None:
            return result  # it asked with throw=False: the work is not done, and the next attempt needs the key
        return self._complete(result)

    def _complete(self, result: Any) -> Any:
        call = self.call
        try:
            encoded = self._encoded(result)
        except SoftTimeLimitExceeded:  # it strikes once, and the work is done
            encoded = self._encoded(result)
        answer = self._record(encoded)
        call.settlements.remove(self._release)
        if answer is None or (isinstance(answer, Done) and answer.ours):
            return result
        # Somebody else holds the key by now, so this result is not the key's.
        with contextlib.suppress(SoftTimeLimitExceeded):
            emit(logging.ERROR, "claim_lost", call, fence=self.fence)
        return self._follow(answer)

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
        if encoded is None:
            emit(logging.WARNING, "result_not_kept", call, result_type=type(result).__qualname__)
        return encoded

    def _record(self, encoded: bytes | None) -> Answer | None:
        """Write that the work is done, as long as the key is ours; None when the store stayed away.

        A soft time limit that strikes here comes too late to undo the work: the store is asked once more.
        """
        ttl, patient = self.pattern.ttl, True
        while True:
            try:
                return self.store.complete(self.key, self.attempt, self.fingerprint, self.fence, encoded, ttl=ttl)
            except SoftTimeLimitExceeded:
                patient = False
                continue
            except StoreUnavailable as error:
                left = self.call.claim.expires_in.total_seconds() if self.call.claim and patient else 0.0
                if left <= 0:
                    told = {"reason": str(error), "fence": self.fence}
                    with contextlib.suppress(SoftTimeLimitExceeded):  # too late to undo the work, too
                        emit(logging.CRITICAL, "claim_not_recorded", self.call, error=error, **told)
                    return None
            try:
                time.sleep(min(0.5, max(0.01, left)))
            except SoftTimeLimitExceeded:
                patient = False

    def _release(self, outcome: str) -> None:
        if self.crashed and outcome == REQUEUED:
            return  # it could not be buried, and its starts must not be forgotten: the lease ends it
        ended = None if outcome == REQUEUED else Ended(failed=outcome in (FAILED, REJECTED))
        if outcome == REJECTED and self.call.instance.plan.buries is not None:
            # Its letter is still to be written, by the main process, which then gives back a key that it can make.
            if not callable(self.pattern.key) or self.call.header.get("key") is not None:
                return
            ended = None  # marked as failed, what comes back without a letter would be let go
        try:
            self.store.release(self.key, self.attempt, self.fence, ended=ended, ttl=self.pattern.ttl)
        except StoreUnavailable as error:
            emit(logging.ERROR, "claim_not_released", self.call, error=error, reason=str(error), fence=self.fence)

    def _follow(self, answer: Answer) -> Any:
        """The key is another's, or its work is over: what this delivery does instead."""
        call = self.call
        if isinstance(answer, Done):
            if answer.result is None:
                raise ResultNotKept(f"{call.task}: the key's work is done, but its result could not be stored as JSON")
            emit(logging.INFO, "duplicate_returned", call)
            return _codec.loads(answer.result)
        if isinstance(answer, Ended):
            emit(logging.INFO, "ended_attempt_skipped", call, failed=answer.failed)
            if answer.failed:
                raise AlreadyFailed(f"{call.task}: attempt {call.attempt} has failed before; it was not run again")
            raise Ignore("this attempt has ended before: its work was handed over")
        if isinstance(answer, Mismatch):
            if call.request.replaced_task_nesting and self.looks < HEIRS_LOOKS:
                # replace() publishes us from inside the body that holds the key: it is about to let go.
                return self._wait(self._next_look(LONGEST_WAIT), None)
            raise KeyMismatch(f"{call.task}: the key was used before with other arguments; it belongs to that call")
        assert isinstance(answer, Running)
        return self._wait(self._next_look(answer.expires_in), None)

    def _next_look(self, expires_in: timedelta) -> timedelta:
        """When to look again: soon at first, since most work is short, then twice as late each time.

        Never later than when the lease is over, and with jitter, so that a crowd of duplicates does not come back at
        the same second.
        """
        jitter = random.uniform(0, 1)  # noqa: S311
        doubling = timedelta(seconds=2 ** min(self.looks, 5) * (1 + jitter))
        return min(expires_in + timedelta(seconds=jitter), doubling, LONGEST_WAIT)

    def _wait(self, wait: timedelta, error: StoreUnavailable | None) -> None:
        call = self.call
        # A message that comes back was perhaps run, and has the whole wait before it again, for its own dead run.
        since = float((not call.redelivered and call.header.get("waiting")) or time.time())
        if time.time() - since > self.pattern.wait_within.total_seconds():
            raise error or InProgress(
                f"{call.task}: another run of the same key did not end within {self.pattern.wait_within}"
            )
        emit(logging.INFO, "duplicate_waiting", call, wait=round(wait.total_seconds(), 3))
        unheard = () if error is None else (*self.unheard, self.attempt.owner)[-LONGEST_MEMORY:]
        send_waiting_copy(
            call,
            wait,
            waiting=since,
            looks=self.looks + 1,
            asked_by=list(unheard) or None,
        )
