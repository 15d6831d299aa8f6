"""How long tenacity's waits can be at the longest, without waiting for luck."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from tenacity import RetryCallState
from tenacity.wait import (
    wait_chain,
    wait_combine,
    wait_exponential,
    wait_exponential_jitter,
    wait_fixed,
    wait_incrementing,
    wait_none,
    wait_random,
    wait_random_exponential,
)

__all__ = ["longest_wait"]

_CERTAIN = (wait_fixed, wait_none, wait_incrementing, wait_exponential)


def longest_wait(wait: Callable[[RetryCallState], float | timedelta], attempt: int) -> float | None:
    """The longest wait, in seconds, behind this attempt.

    Args:
        wait: One of tenacity's, or a function.
        attempt: The attempt that failed; the first is 1.

    Returns:
        None where only the wait itself knows: a function, a subclass, one that looks at the error.
    """
    state = RetryCallState(None, None, (), {})  # type: ignore[arg-type]
    state.attempt_number = attempt
    return _longest(wait, state)


def _longest(wait: Any, state: RetryCallState) -> float | None:
    kind = type(wait)  # a subclass may do something else
    if kind in _CERTAIN:
        return float(wait(state))
    if kind is wait_random:
        return float(max(wait.wait_random_min, wait.wait_random_max))
    if kind is wait_random_exponential:
        return max(float(wait.min), float(wait_exponential.__call__(wait, state)))
    if kind is wait_exponential_jitter:
        return _with_all_jitter(wait, state)
    if kind is wait_chain:
        return _longest(wait.strategies[min(max(state.attempt_number, 1), len(wait.strategies)) - 1], state)
    if kind is wait_combine:
        parts = [_longest(one, state) for one in wait.wait_funcs]
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None
    return None


def _with_all_jitter(wait: Any, state: RetryCallState) -> float:
    first = getattr(wait, "multiplier", None)  # "initial" before tenacity 9.1
    try:
        grown = (wait.initial if first is None else first) * wait.exp_base ** (state.attempt_number - 1) + wait.jitter
    except OverflowError:
        grown = wait.max
    return float(max(getattr(wait, "min", 0), min(grown, wait.max)))
