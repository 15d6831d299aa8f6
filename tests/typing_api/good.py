"""Type-checked, never run: what a user writes, and the types that must come through."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal

from tenacity import retry_if_exception_message, stop_after_delay, wait_fixed
from typing_extensions import assert_type

import celery_patterns as patterns
from celery_patterns import dead_letter, idempotent, logged, retry


@retry(on=OSError, attempts=3, within=timedelta(hours=1), wait=wait_fixed(3), stop=stop_after_delay(9))
@idempotent(key="order_id", ttl=timedelta(days=1), same=("order_id",), lease=timedelta(minutes=1))
@dead_letter("orders.dead", max_crashes=None)
@logged("order_id")
def charge(order_id: str, amount: Decimal = Decimal(0)) -> dict[str, str]:
    return {order_id: str(amount)}


assert_type(charge("o-1", Decimal(1)), dict[str, str])
as_callable: Callable[[str, Decimal], dict[str, str]] = charge


@retry(on=(OSError, ValueError))
@retry(on=lambda error: "later" in str(error))
@retry(on=retry_if_exception_message(match="later"), wait=lambda state: state.attempt_number * 2.0)
@idempotent(key=("a", "b"), ttl=timedelta(1))
@idempotent(key=lambda a, b: a, ttl=timedelta(1))
@idempotent(key="a.id", scope="b", ttl=timedelta(1), when_running="raise")
@idempotent(key=("a", "b.id"), scope=("a", "b.tenant"), ttl=timedelta(1), when_running="wait")
@idempotent(key="a", scope=lambda a, b: b, ttl=timedelta(1))
@idempotent(key="a", scope=None, ttl=timedelta(1))
def other(a: int, b: int) -> None:
    assert_type(patterns.current_call().attempt, int)
    assert_type(patterns.current_claim().fence, int)


class OrderTask(patterns.PatternTask):
    patterns = (retry(on=OSError), patterns.without(logged))


def operate(all_letters: patterns.DeadLetters) -> None:
    letters = all_letters.where(error="ValueError", since=timedelta(hours=2), limit=5)
    assert_type(letters, patterns.DeadLetters)
    assert_type(letters["id"], patterns.Letter)
    assert_type([cause.count for cause in letters.stats()], list[int])
    report = letters.replay_all(rate=50, canary=3, correct={"amount": Decimal(1)}, on_each=lambda letter, error: None)
    assert_type(report, patterns.Replayed)
    assert_type([failure.error for failure in report.failures], list[str])
    assert_type(letters.export("letters.jsonl"), int)
    assert_type(letters.where(until=timedelta(days=30)).purge(kept_in="letters.jsonl"), int)
    assert_type(letters.restore("letters.jsonl"), int)
