"""The result backend goes away: what has ended has its letter, what goes on has none, and the worker hears."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from .harness import Floor, floor
from .servers import RedisServer
from .test_endings import standing


@pytest.fixture
def backend() -> Iterator[RedisServer]:
    made = RedisServer()
    made.start()
    yield made
    made.close()


@pytest.fixture
def shop(backend: RedisServer, broker: str, database: str, tmp_path: Path) -> Iterator[Floor]:
    """A corner whose results go to a server of its own; Celery gives up on it soon."""
    settings = {"FLOOR_BROKER": broker, "FLOOR_STORE": database, "FLOOR_TRACES": database}
    with floor({**settings, "FLOOR_BACKEND": backend.url(), "FLOOR_HASTY": "1"}, tmp_path) as made:
        yield made


def send(shop: Floor, name: str, *args: Any, **options: Any) -> None:
    """As a sender does that reads no results."""
    with Celery("sender", broker=shop.environment["FLOOR_BROKER"], set_as_current=False) as sender:
        sender.send_task(name, args, queue=shop.queue, **options)


def away(shop: Floor, backend: RedisServer, pool: str) -> Any:
    worker = shop.worker(concurrency=1, pool=pool)
    send(shop, "note", "before", ignore_result=True)
    shop.wait(lambda: shop.traces.count("noted") == 1, what="the worker's first task")
    backend.stop(signal.SIGKILL)
    return worker


def hears(shop: Floor) -> bool:
    """Whether the one slot of the worker still takes tasks."""
    send(shop, "note", "after", ignore_result=True)
    shop.wait(lambda: "after" in shop.traces.all("noted"), 40, "the next task")
    return True


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_retry_goes_on_and_leaves_no_letter(shop: Floor, backend: RedisServer, pool: str) -> None:
    """That it is RETRY cannot be stored; its next attempt stands. Work whose result cannot be stored Celery calls a failure."""
    worker = away(shop, backend, pool)
    send(shop, "ends_retried", "retry")
    shop.wait(lambda: shop.traces.count("ends") == 2, 40, "the next attempt")
    assert "mark_as_retry of ends_retried" in worker.text()
    if pool == "prefork":  # in the pool of threads such a success costs Celery the thread
        assert hears(shop)
    assert [letter.attempt for letter in shop.letters()] == ([2] if pool == "prefork" else [])


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("name", ["doomed", "doomed_keyed"])
def test_a_failure_leaves_one_letter(shop: Floor, backend: RedisServer, name: str, pool: str) -> None:
    """That it is FAILURE cannot be stored; its letter stands, once."""
    worker = away(shop, backend, pool)
    send(shop, name, "o-1")
    shop.wait(lambda: standing(shop) == 1, 40, "the letter")
    assert hears(shop)
    assert (standing(shop), worker.alive()) == (1, True)
    assert f"mark_as_failure of {name}" in worker.text()


def test_what_is_rejected_in_the_pool_solo_is_not_malformed(shop: Floor, backend: RedisServer) -> None:
    """Its one process runs the task within what receives it: an error then is not the message's. The worker ends, as without us."""
    away(shop, backend, "solo")
    send(shop, "ends", "reject")
    shop.wait(lambda: standing(shop) == 1, 40, "the letter")
    assert [letter.reason for letter in shop.letters()] == ["rejected"]


@pytest.mark.parametrize("name", ["ends", "ends_keyed"])
def test_what_is_rejected_leaves_one_letter(shop: Floor, backend: RedisServer, name: str) -> None:
    """The main process tells the backend first, and in vain."""
    away(shop, backend, "prefork")
    send(shop, name, *(("reject",) if name == "ends" else ("o-1", "reject")))
    shop.wait(lambda: standing(shop) == 1, 40, "the letter")
    assert shop.letters()[0].reason == "rejected"
    assert hears(shop)
    assert standing(shop) == 1
