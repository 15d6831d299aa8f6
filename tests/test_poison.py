"""A body that ends its process runs as often as it may, and others go on meanwhile."""

from __future__ import annotations

import signal
import time

import pytest

from .harness import BROKERS, Floor

#: Above the 5 s that Celery may take to notice a dead child: a Redis broker gives a killed worker's messages out again then.
VISIBILITY = "7"


def _naps(shop: Floor, number: int, begin: int) -> float:
    """Send healthy tasks and wait until nearly all are done: how many seconds that took.

    Not all, because the last of those that ran beside a killed one come back late on Redis, and are seen to elsewhere.
    """
    began = time.monotonic()
    for name in range(begin, begin + number):
        shop.task("nap").delay(name)
    enough = begin + number * 0.95
    shop.wait(lambda: len(set(shop.traces.all("naps"))) >= enough, 120, "the naps")
    return time.monotonic() - began


def _one_letter(shop: Floor, task_id: str) -> None:
    def crashed() -> bool:
        return [letter.task_id for letter in shop.letters()] == [task_id]

    shop.wait(crashed, 90, "the letter")
    assert shop.letters()[0].reason == "crashed"
    assert shop.traces.count("kills") == 3


@pytest.mark.parametrize("kind", BROKERS)
@pytest.mark.long
def test_a_body_that_kills_its_child(corner: Floor, kind: str) -> None:
    """Three starts, one letter, and the others keep over 80 % of their rate."""
    # Celery may take 5 s to notice a dead child, whose slot is lost meanwhile: one in ten.
    worker = corner.worker(concurrency=10)
    _naps(corner, 100, 0)
    alone = _naps(corner, 800, 100)
    task_id = corner.task("killer").delay("o-1").id
    beside = _naps(corner, 800, 900)
    assert alone / beside > 0.8, f"{alone / beside:.2f} of the rate"
    _one_letter(corner, task_id)
    corner.wait(lambda: len(set(corner.traces.all("naps"))) == 1700, 30, "all the others")
    assert worker.alive()


@pytest.mark.parametrize("kind", BROKERS)
@pytest.mark.long
def test_a_body_that_kills_its_worker(corner: Floor, kind: str) -> None:
    """The same, where the whole worker goes each time and a supervisor starts another one."""
    with corner.supervised(3, concurrency=6, FLOOR_VISIBILITY=VISIBILITY):
        _naps(corner, 100, 0)
        alone = 1000 / _naps(corner, 1000, 100)
        task_id = corner.task("killer_whole").delay("o-1").id
        # Long enough that three times the start of a worker, which is no work of ours, are a small part of it.
        beside = 4500 / _naps(corner, 4500, 1100)
        _one_letter(corner, task_id)
        corner.wait(lambda: len(set(corner.traces.all("naps"))) >= _least(kind, 5_600), 30, "all the others")
    assert beside / alone > 0.8, f"{beside / alone:.2f} of the rate"


def _least(kind: str, number: int) -> int:
    """Celery's Redis transport loses a message that it has taken and not yet noted when it is killed: one a kill at most."""
    return number - 3 if kind == "redis" else number


@pytest.mark.parametrize("kind", BROKERS)
@pytest.mark.parametrize("name", ["killer", "killer_whole"])
def test_what_was_never_started_has_crashed_nothing(corner: Floor, kind: str, name: str) -> None:
    """Three rolling restarts give the message back unstarted: its body still runs as often as it may."""
    task_id = corner.task(name).delay("o-1").id
    for _ in range(3):
        _take_and_give_back(corner, task_id)
    assert corner.traces.count("kills") == 0
    with corner.supervised(1, concurrency=1, FLOOR_VISIBILITY=VISIBILITY):
        _one_letter(corner, task_id)


def _take_and_give_back(corner: Floor, task_id: str) -> None:
    """A worker whose only child is busy receives the message, and is shut down."""
    second = f"{corner.queue}-second"
    worker = corner.worker(concurrency=1, FLOOR_PREFETCH="4", FLOOR_CONSUME=second)
    held = corner.traces.count("held")
    corner.task("held").apply_async(queue=second)
    corner.wait(lambda: corner.traces.count("held") == held + 1, what="the busy child")
    corner.app.control.add_consumer(corner.queue, destination=[worker.name], reply=True, timeout=5)
    corner.wait(lambda: task_id in worker.text(), what="the message")
    worker.process.send_signal(signal.SIGTERM)
    corner.wait(lambda: "Warm shutdown" in worker.text(), what="the shutdown")
    corner.traces.set("go")
    assert worker.process.wait(20) == 0
    corner.traces.unset("go")


@pytest.mark.parametrize("kind", BROKERS)
def test_a_key_that_kills_its_worker(corner: Floor, kind: str) -> None:
    """The claim counts the starts: three, and one letter."""
    with corner.supervised(1, concurrency=2, FLOOR_VISIBILITY=VISIBILITY):
        _one_letter(corner, corner.task("killer_whole_keyed").delay("o-1").id)


ALONE = [(pool, kind) for pool in ("threads", "solo", "gevent") for kind in ("redis", "rabbitmq")]


@pytest.mark.parametrize(("pool", "kind"), [one for one in ALONE if one != ("gevent", "redis")])
def test_a_body_that_kills_the_one_process_there_is(corner: Floor, pool: str) -> None:
    """Where tasks run in the worker itself: three starts, and one letter."""
    with corner.supervised(1, pool=pool, FLOOR_VISIBILITY=VISIBILITY):
        _one_letter(corner, corner.task("killer").delay("o-1").id)


@pytest.mark.parametrize("kind", ["redis"])
def test_a_green_worker_on_redis_looks_when_it_polls_slowly(corner: Floor) -> None:
    """Celery's gevent workers look for a killed worker's messages only when a poll of two seconds found nothing."""
    with corner.supervised(1, pool="gevent", FLOOR_VISIBILITY=VISIBILITY, FLOOR_POLLING="3"):
        _one_letter(corner, corner.task("killer").delay("o-1").id)
