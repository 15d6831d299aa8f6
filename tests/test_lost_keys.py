"""The key of a run that could not give it back itself: the main process does, once the letter stands."""

from __future__ import annotations

from typing import Any

import pytest
from celery.result import AsyncResult

from .harness import Floor

ENDS = [
    pytest.param("prefork", "ends_keyed", "hard", {"time_limit": 1}, "time_limit", id="hard-limit"),
    pytest.param("gevent", "ends_keyed", "hard", {"time_limit": 1}, "time_limit", id="hard-limit-gevent"),
    pytest.param("prefork", "ends_keyed_early", "kill", {}, "worker_lost", id="lost-child"),
]


@pytest.mark.parametrize(("pool", "task", "how", "options", "reason"), ENDS)
def test_a_lost_runs_key_is_free_when_its_letter_stands(
    shop: Floor, pool: str, task: str, how: str, options: dict[str, Any], reason: str
) -> None:
    """The next call with the key runs at once, with other arguments too, and not when the lease of ten minutes is over."""
    shop.worker(pool=pool)
    shop.task(task).apply_async(("o-1", how), **options)
    shop.wait(lambda: len(shop.letters()) == 1, 30, "the letter")
    assert shop.letters()[0].reason == reason
    assert shop.task(task).delay("o-1", "fine").get(timeout=20) == "fine"


def test_a_terminated_runs_key_is_left_to_its_lease(shop: Floor) -> None:
    """Its letter stands at once, but the run may go on: the children ignore SIGINT, and the key is still its own."""
    worker = shop.worker()
    result = shop.task("ends_keyed").delay("o-1", "terminated")
    shop.wait(lambda: shop.traces.count("ends") == 1, what="the start")
    result.revoke(terminate=True, signal="SIGINT")
    shop.wait(lambda: len(shop.letters()) == 1, 30, "the letter")
    second = shop.task("ends_keyed").delay("o-1", "terminated")
    shop.wait(lambda: "duplicate_waiting" in worker.text(), 20, "the wait for the key")
    assert not second.ready()
    assert shop.traces.all("ends") == ["terminated"]


@pytest.mark.parametrize("task", ["ends_keyed", "ends_keyed_quiet"])
def test_a_terminated_runs_key_is_free_once_its_child_has_gone(shop: Floor, task: str) -> None:
    """Also after more revocations than there may be crashes: none of them was one."""
    shop.worker()
    for time in range(1, 6):
        result = shop.task(task).delay("o-1", "terminated")
        shop.wait(lambda time=time: shop.traces.count("ends") == time, 30, f"start {time}")
        result.revoke(terminate=True)
    shop.wait(lambda: len(shop.letters()) == (5 if task == "ends_keyed" else 0), what="the letters")
    assert {letter.reason for letter in shop.letters()} <= {"revoked"}


def test_a_function_that_makes_keys_is_not_called_by_the_main_process(shop: Floor) -> None:
    """It may be what hung: such a key is free when its lease is over, unless the call had a key of its own."""
    worker = shop.worker()
    task = shop.task("ends_keyed_by")
    task.apply_async(("o-1", "hard"), time_limit=1)
    task.apply_async(("o-1", "hard"), time_limit=1, idempotency_key="mine")
    shop.wait(lambda: len(shop.letters()) == 2, 30, "the letters")
    assert task.apply_async(("o-1", "fine"), idempotency_key="mine").get(timeout=20) == "fine"
    held = task.delay("o-1", "hard")
    shop.wait(lambda: "duplicate_waiting" in worker.text(), 20, "the wait for the key")
    assert worker.pid not in shop.traces.all("asked for a key")
    assert not AsyncResult(held.id, app=shop.app).ready()


def test_what_was_done_stays_done(shop: Floor) -> None:
    """A child that is lost after its work was recorded frees nothing: a duplicate gets the result."""
    shop.worker()
    assert shop.task("ends_keyed").delay("o-1", "fine").get(timeout=20) == "fine"
    shop.task("ends_keyed").apply_async(("o-2", "hard"), time_limit=1)
    shop.wait(lambda: len(shop.letters()) == 1, 30, "the letter")
    assert shop.task("ends_keyed").delay("o-1", "fine").get(timeout=20) == "fine"
    assert shop.traces.all("ends") == ["fine", "hard"]
