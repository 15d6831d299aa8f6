"""The pattern ``retry``: a failed attempt is followed by another one, for a bounded time, without a herd."""

from __future__ import annotations

import inspect
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from billiard.exceptions import SoftTimeLimitExceeded
from celery.exceptions import Ignore, Reject, Retry
from tenacity import RetryCallState
from tenacity.retry import retry_base, retry_if_exception_type, retry_if_not_result, retry_if_result
from tenacity.wait import wait_random_exponential

from ._events import emit
from ._message import moment
from ._plan import Layer, Pattern
from ._republish import next_attempt
from .exceptions import AttemptTooLate, ClaimLost, ConfigurationError, PatternsError

if TYPE_CHECKING:
    from ._call import Call, Proceed

__all__ = ["retry"]

On = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool] | retry_base

#: Between 1 and 4 seconds, then 1 and 8, 1 and 16, 1 and 32, and so on, never more than 300.
DEFAULT_WAIT = wait_random_exponential(multiplier=4, min=1, max=300)


@dataclass(frozen=True, init=False)
class retry(Pattern):  # noqa: N801 - used as a call, like tenacity's own policies
    """Try a failed task again when that can help.

    It promises at most ``attempts`` runs, none of them starting after ``within``, and that the next one is confirmed by
    the broker before this one is over, and thus, with late acknowledgement, before it is acknowledged. The last error
    reaches the caller as itself. ``Retry``, ``Ignore`` and ``Reject`` pass through untouched; the body's own
    ``self.retry()`` counts against the same attempts.

    It does not promise when the next attempt runs: not before its wait is over, and later when the queue is long. While
    it waits, no worker slot is used, but the worker that received it holds it in memory (about 9 KB each). An exceeded
    soft time limit, a pydantic ``ValidationError`` and an error of this library are not retried unless named.

    Args:
        on: What is tried again: exception types, a predicate that takes the exception, or one of tenacity's
            ``retry_if_*`` objects.
        attempts: How many runs there may be in all, the first included; 5 by default.
        within: No later attempt starts after this much time since the first one started, by the workers' clocks; no
            such limit by default.
        wait: How long to wait before the next attempt, in seconds: any of tenacity's ``wait_*`` objects, or a function of
            tenacity's ``RetryCallState``. Rounded up to whole seconds. By default random between 1 second and 4, then 8,
            16 and 32 seconds, never more than 300: full jitter with a floor.
        stop: A further reason to stop: any of tenacity's ``stop_*`` objects; none by default.

    Raises:
        ConfigurationError: When an argument is wrong.

    The schedule is "full jitter" from Marc Brooker, *Exponential Backoff and Jitter*, AWS Architecture Blog, 2015.
    """

    layer: ClassVar[Layer] = Layer.RETRY

    on: tuple[type[Exception], ...] | Callable[[Exception], bool] | retry_base
    attempts: int
    within: timedelta | None
    wait: Callable[[RetryCallState], float | timedelta]
    stop: Callable[[RetryCallState], bool] | None

    def __init__(
        self,
        *,
        on: On,
        attempts: int = 5,
        within: timedelta | None = None,
        wait: Callable[[RetryCallState], float | timedelta] = DEFAULT_WAIT,
        stop: Callable[[RetryCallState], bool] | None = None,
    ) -> None:
        if type(attempts) is not int:
            raise ConfigurationError(f"expected attempts to be an int, got {attempts!r}")
        if attempts < 1:
            raise ConfigurationError(f"expected attempts to be at least 1, the first included, got {attempts}")
        if within is not None and not isinstance(within, timedelta):
            raise ConfigurationError(
                f"expected within to be a timedelta, for example timedelta(hours=1), got {within!r}"
            )
        if within is not None and within <= timedelta(0):
            raise ConfigurationError(f"expected within to be longer than nothing, got {within}")
        if not callable(wait):
            raise ConfigurationError(f"expected wait to be one of tenacity's, for example wait_fixed(10), got {wait!r}")
        if stop is not None and not callable(stop):
            raise ConfigurationError(
                f"expected stop to be one of tenacity's, for example stop_after_delay(60), got {stop!r}"
            )
        for name, value in (
            ("on", _on(on)),
            ("attempts", attempts),
            ("within", within),
            ("wait", wait),
            ("stop", stop),
        ):
            object.__setattr__(self, name, value)

    def around(self, proceed: Proceed, call: Call) -> Any:
        if self.within is not None and call.attempt > 1 and self._over(call, 0):
            raise self._too_late(call)
        try:
            result = proceed(call)
        except Retry as asked:
            if self._over(call, _asked_wait(asked)):
                emit(logging.WARNING, "retries_exhausted", call, error=asked.exc, limit="within")
                call.asked = None
                raise asked.exc if isinstance(asked.exc, Exception) else _exhausted(call) from None
            raise
        except (Ignore, Reject, ClaimLost):
            raise
        except Exception as error:
            wait = self._wait_for(call, error)
            if wait is None:
                if call.asked is not None:
                    self._forget_late(call, call.asked)
                raise
            raise next_attempt(call, wait, error) from error
        if call.asked is not None:
            self._forget_late(call, call.asked)
        return result

    def _forget_late(self, call: Call, asked: Retry) -> None:
        """Drop what the body asked for with ``throw=False``, when it may not start any more."""
        if self._over(call, _asked_wait(asked)):
            emit(logging.WARNING, "retries_exhausted", call, error=asked.exc, limit="within")
            call.asked = None

    def _too_late(self, call: Call) -> AttemptTooLate:
        last = next(
            (one.get("error") for one in reversed(call.header.get("history", ())) if isinstance(one, dict)), None
        )
        return AttemptTooLate(
            f"{call.task}: attempt {call.attempt} was delivered after within={self.within} had passed, so it was "
            f"not run; the attempt before failed with {last}",
        )

    def _over(self, call: Call, wait: float) -> bool:
        return self.within is not None and time.time() + wait > call.first_started + self.within.total_seconds()

    def _wait_for(self, call: Call, error: Exception) -> float | None:
        """Seconds until the next attempt, or None when this failure is final."""
        try:
            state = _state(call, error)
            if not self._wanted(state, error):
                return None
            if call.is_last or call.spent:
                _tell_last(call, error, "attempts")
                return None
            # tenacity's stop_before_delay reads the sleep that would come, so the wait is asked first.
            wait = _seconds(self.wait(state))
            state.upcoming_sleep = wait
            if self.stop is not None and self.stop(state):
                _tell_last(call, error, "stop")
                return None
            if self._over(call, math.ceil(wait)):
                _tell_last(call, error, "within")
                return None
            return wait
        except Exception as broken:  # noqa: BLE001 - whatever a user's policy raises
            # A mistake in a policy must not cost the task: its own error stands, and is final.
            emit(logging.ERROR, "retry_policy_failed", call, error=broken)
            return None

    def _wanted(self, state: RetryCallState, error: Exception) -> bool:
        named = _types_of(self.on)
        if named is not None:
            permanent = _permanent_kind(error)
            return isinstance(error, named) and (
                permanent is None or any(issubclass(kind, permanent) for kind in named)
            )
        if isinstance(self.on, retry_base):
            return bool(self.on(state))
        assert callable(self.on)
        return bool(self.on(error))


def _on(on: On) -> tuple[type[Exception], ...] | Callable[[Exception], bool] | retry_base:
    if isinstance(on, type):
        on = (on,)
    if isinstance(on, tuple):
        if not on:
            raise ConfigurationError("expected on to name at least one exception type, got an empty tuple")
        for kind in on:
            if not (isinstance(kind, type) and issubclass(kind, Exception)):
                raise ConfigurationError(f"expected on to hold exception types, subclasses of Exception; got {kind!r}")
        return on
    if isinstance(on, retry_if_result | retry_if_not_result):
        raise ConfigurationError(
            f"expected on to look at exceptions; {type(on).__name__} looks at results: raise instead"
        )
    if isinstance(on, retry_base):
        return on
    if callable(on):
        if inspect.iscoroutinefunction(on):
            raise ConfigurationError("expected on to be a plain function, got an async one")
        return on
    raise ConfigurationError(f"expected on to be exception types or a predicate, got {on!r}")


def _types_of(on: object) -> tuple[type[Exception], ...] | None:
    if isinstance(on, tuple):
        return on
    if type(on) is retry_if_exception_type:
        kinds = on.exception_types
        return kinds if isinstance(kinds, tuple) else (kinds,)  # type: ignore[return-value]
    return None


def _permanent_kind(error: Exception) -> Any:
    """The kind of error that trying again does not cure, unless the user names it."""
    if isinstance(error, SoftTimeLimitExceeded):
        return SoftTimeLimitExceeded
    if isinstance(error, PatternsError):
        return PatternsError
    for kind in type(error).__mro__:  # by name: pydantic need not be installed
        if kind.__name__ == "ValidationError" and kind.__module__.startswith("pydantic"):
            return kind
    return None


def _state(call: Call, error: Exception) -> RetryCallState:
    """What tenacity would know, had it kept the task in its own loop; its retry object and function are not known."""
    state = RetryCallState(None, None, call.args, call.kwargs)  # type: ignore[arg-type]
    state.attempt_number = call.attempt
    state.start_time = time.monotonic() - max(0.0, time.time() - call.first_started)
    state.idle_for = float(call.header.get("waited", 0))
    state.set_exception((type(error), error, error.__traceback__))
    return state


def _seconds(wait: float | timedelta) -> float:
    seconds = wait.total_seconds() if isinstance(wait, timedelta) else float(wait)
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"expected wait to give a number of seconds, got {seconds}")
    return seconds


def _asked_wait(asked: Retry) -> float:
    """How long the body's own ``self.retry()`` asked to wait, in seconds."""
    options = asked.sig.options if asked.sig is not None else {}
    eta = options.get("eta")
    if isinstance(eta, datetime):
        return moment(eta) - time.time()
    return float(options.get("countdown") or 0)


def _tell_last(call: Call, error: Exception, limit: str) -> None:
    emit(logging.WARNING, "retries_exhausted", call, error=error, limit=limit)


def _exhausted(call: Call) -> Any:
    return call.instance.MaxRetriesExceededError(f"{call.task}: no attempt may start any more")
