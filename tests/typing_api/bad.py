"""Type-checked, never run: every line marked ``wrong`` must be refused, and no other."""

from __future__ import annotations

from datetime import timedelta

from celery_patterns import DeadLetters, dead_letter, idempotent, logged, retry, without

retry()  # wrong
retry(OSError)  # wrong
retry(on="OSError")  # wrong
retry(on=OSError, attempts="3")  # wrong
retry(on=OSError, within=60)  # wrong
retry(on=OSError, wait=10)  # wrong
idempotent(key="a")  # wrong
idempotent(key="a", ttl=60)  # wrong
idempotent("a", ttl=timedelta(1))  # wrong
idempotent(key=7, ttl=timedelta(1))  # wrong
idempotent(key="a", scope=7, ttl=timedelta(1))  # wrong
idempotent(key="a", ttl=timedelta(1), when_running="stop")  # wrong
dead_letter(7)  # wrong
logged(7)  # wrong
without(retry(on=OSError))  # wrong


@retry(on=OSError)
def charge(order_id: str) -> int:
    return len(order_id)


charge(7)  # wrong
text: str = charge("o-1")  # wrong
charge("o-1", amount=1)  # wrong


def operate(letters: DeadLetters) -> None:
    letters.where(since="yesterday")  # wrong
    letters.where(nosuch=1)  # wrong
    letters.replay_all(5)  # wrong
    letters.replay_all(rate="fast")  # wrong
    letters.replay_all(correct=["amount"])  # wrong
    letters.where(until=30)  # wrong
    letters.export(5)  # wrong
