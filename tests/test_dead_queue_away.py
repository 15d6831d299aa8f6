"""The dead-letter queue takes nothing for a while, and the worker, or the broker, ends meanwhile."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from .endings import call, raw
from .harness import Floor
from .servers import RabbitServer, RedisServer
from .tap import ACK, REJECT, Tap

#: How long the queue is away, in seconds.
AWAY = 10.0
#: How many letters wait for it in the main process.
DAMAGED = 5


@contextmanager
def refusing(shop: Floor) -> Iterator[None]:
    """The dead-letter queue refuses every message."""
    with shop.app.connection_for_write() as connection:
        channel: Any = connection.default_channel
        on_redis = connection.transport.driver_type == "redis"
        if on_redis:
            channel.client.set(shop.dead, "no list")
        else:
            full = {"x-max-length": 0, "x-overflow": "reject-publish"}
            channel.queue_delete(shop.dead)  # the worker's
            channel.queue_declare(shop.dead, durable=True, auto_delete=False, arguments=full)
    yield
    with shop.app.connection_for_write() as connection:
        channel = connection.default_channel
        channel.client.delete(shop.dead) if on_redis else channel.queue_delete(shop.dead)


class _Watch:
    """How many letters were tried, and how many messages were let go, by a worker that is set up with ``settings``."""

    def __init__(self, server: Any, dead: str) -> None:
        self._dead = dead
        self.settings: dict[str, str] = {}
        if isinstance(server, RabbitServer):
            self._tap: Tap | None = Tap(server.port)
            self.settings = {"FLOOR_BROKER": f"amqp://guest:guest@127.0.0.1:{self._tap.port}//"}
        else:
            self._tap, self._client = None, redis.Redis(port=server.port)

    def tries(self) -> int:
        if self._tap is not None:
            return self._tap.published[self._dead]
        errors: Any = self._client.info("errorstats")
        return int(errors.get("errorstat_WRONGTYPE", {"count": 0})["count"])

    def let_go(self) -> int:
        """Of the messages that were taken."""
        if self._tap is not None:
            return self._tap.sent[ACK] + self._tap.sent[REJECT]
        return 2 + DAMAGED - int(self._client.hlen("unacked"))


def test_the_queue_is_away_for_ten_seconds(own: Floor, server: Any) -> None:
    """A child's letter and the main process' letters: none lost, nothing acknowledged, few tries, then one letter each."""
    watch = _Watch(server, own.dead)
    worker = own.worker(concurrency=2, FLOOR_PREFETCH="8", **watch.settings)
    with refusing(own):
        ids = {
            *(own.task("ends").delay(how).id for how in ("exception", "reject")),
            *(raw(own, body=b"[[") for _ in range(DAMAGED)),
        }
        own.wait(lambda: own.traces.count("ends") == 2, what="the starts")
        began, before = time.monotonic(), watch.tries()
        own.wait(lambda: time.monotonic() - began > AWAY, AWAY + 5, "ten seconds")
        tries, let_go = watch.tries() - before, watch.let_go()
        assert let_go == 0
        assert 5 <= tries / (time.monotonic() - began) * 10 <= 40, f"{tries} tries in {AWAY} s for {len(ids)} letters"
        assert own.traces.count("ends") == 2
    own.wait(lambda: len(own.letters()) == len(ids), 30, "the letters")
    assert {letter.task_id for letter in own.letters()} == ids
    assert own.task("add").delay(1, 1).get(timeout=20) == 2
    assert own.traces.count("ends") == 2
    assert worker.alive()


def test_others_go_on_while_the_queue_is_away(own: Floor, server: Any) -> None:
    """More letters wait in the main process than it takes messages ahead, and other tasks are done at once."""
    own.worker(concurrency=2, FLOOR_PREFETCH="1")
    with refusing(own):
        for _ in range(DAMAGED):
            raw(own, body=b"[[")
        rejected = [call("reject")(own) for _ in range(DAMAGED)]
        own.wait(lambda: own.traces.count("ends") == DAMAGED, what="the starts")
        own.wait(lambda: f"waiting={2 * DAMAGED}" in own.logs(), 30, "a try, with all ends known")
        began = time.monotonic()
        assert [own.task("add").delay(n, n).get(timeout=20) for n in range(20)] == [2 * n for n in range(20)]
        assert time.monotonic() - began < 8
        assert own.app.control.inspect().stats().popitem()[1]["prefetch_count"] == 2 + 2 * DAMAGED
    own.wait(lambda: len(own.letters()) == 2 * DAMAGED, 30, "the letters")
    assert {*rejected} < {letter.task_id for letter in own.letters()}
    assert own.app.control.inspect().stats().popitem()[1]["prefetch_count"] == 2


def test_a_limit_of_the_prefetch_is_kept(own: Floor) -> None:
    """``worker_eta_task_limit`` bounds those that wait for their letters, too, and afterwards all is as before."""
    own.worker(concurrency=2, FLOOR_PREFETCH="2", FLOOR_ETA_LIMIT="6")

    def prefetch() -> int:
        return int(own.app.control.inspect().stats().popitem()[1]["prefetch_count"])

    with refusing(own):
        for _ in range(5):
            raw(own, body=b"[[")
        own.wait(lambda: "waiting=5" in own.logs(), 30, "a try, with all ends known")
        assert prefetch() in (4 + 2, 4 + 5)  # before kombu 5.6 there is no limit
        assert own.task("add").delay(1, 1).get(timeout=20) == 2
    own.wait(lambda: len(own.letters()) == 5, 30, "the letters")
    assert prefetch() == 4


@pytest.mark.parametrize("task", ["ends", "ends_early"])
def test_the_broker_goes_while_a_letter_waits(own: Floor, server: Any, task: str) -> None:
    """One letter when all is back: of a message that comes back, and of one that was acknowledged before it ran."""
    worker = own.worker(concurrency=1, FLOOR_VISIBILITY="20")
    with refusing(own):
        task_id = call("reject", task)(own)
        own.wait(lambda: "dead_letter_postponed" in worker.text(), what="a try")
        server.stop()
        said = ("Cannot connect to", "Connection to broker lost")
        own.wait(lambda: any(one in own.logs() for one in said) or not worker.alive(), 30, "the loss")
        server.start()
        own.wait(lambda: worker.text().count("Connected to") >= 2 or not worker.alive(), 60, "the worker is back")
    if not worker.alive():  # see the page on brokers: a supervisor starts another one
        assert task == "ends"
        own.worker(concurrency=1, FLOOR_VISIBILITY="20")
    # Releases of kombu before 5.6 look for what comes back every hundred seconds or so.
    own.wait(lambda: len(own.letters()) == 1, 160, "the letter")
    assert (own.letters()[0].task_id, own.letters()[0].reason) == (task_id, "rejected")


def test_the_worker_ends_while_a_letter_waits(own: Floor) -> None:
    """What will come back is left alone; what was acknowledged early is told of, loudly."""
    worker = own.worker(concurrency=1, FLOOR_PREFETCH="4")
    with refusing(own):
        late, early = call("reject")(own), call("reject", "ends_early")(own)
        own.wait(lambda: own.traces.count("ends") == 2, what="the starts")
        # Celery drops the end of a task that it has not read when it is stopped, and its child waits 30 seconds for that.
        own.wait(lambda: "waiting=2" in worker.text(), what="a try, with both ends known")
        assert worker.stop() == 0
    given_up = [line for line in worker.text().splitlines() if "dead_letter_not_published" in line]
    assert len(given_up) == 1
    assert early in given_up[0]
    assert "requeued=False" in given_up[0]
    own.worker(concurrency=1)
    own.wait(lambda: len(own.letters()) == 1, 30, "the other letter")
    assert own.letters()[0].task_id == late


@pytest.mark.parametrize("task", ["ends_keyed_shortly", "ends_keyed_by"])
def test_the_worker_ends_while_the_letter_of_a_task_with_a_key_waits(own: Floor, task: str) -> None:
    """The key does not remember a failure that has no letter: the next worker rejects it again, and writes it."""
    worker = own.worker(concurrency=1)
    with refusing(own):
        sent = own.task(task).delay("o-1", "reject")
        own.wait(lambda: "waiting=1" in worker.text(), what="a try")
        assert worker.stop() == 0
    own.worker(concurrency=1)
    own.wait(lambda: len(own.letters()) == 1, 60, "the letter")
    assert (own.letters()[0].task_id, own.letters()[0].reason) == (sent.id, "rejected")


@pytest.mark.parametrize("server", [RedisServer], indirect=True)  # on RabbitMQ it is given back after five minutes
def test_a_rejection_that_is_given_back_is_run_again(own: Floor) -> None:
    """Its key, whose lease is ten minutes, is free by then, and no failure is remembered."""
    worker = own.worker(concurrency=1, FLOOR_VISIBILITY="8")
    with refusing(own):
        sent = own.task("ends_keyed").delay("o-1", "reject")
        own.wait(lambda: "dead_letter_not_published" in worker.text(), 30, "the end of its patience")
    own.wait(lambda: len(own.letters()) == 1, 30, "the letter")
    assert (own.letters()[0].task_id, own.letters()[0].reason) == (sent.id, "rejected")
    assert own.traces.count("ends") >= 2


POINTS = ["letter.before", "letter.after"]
ENDS: dict[str, Callable[[Floor], str]] = {
    "time_limit": call("hard", time_limit=1),
    "worker_lost": call("kill", "ends_lost"),
    "unreadable": lambda shop: raw(shop, body=b"[["),
    "failed": call("exception"),
    "rejected": lambda shop: str(shop.task("ends_keyed_shortly").delay("o-1", "reject").id),
}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("reason", ENDS)
def test_killed_around_the_letter(shop: Floor, reason: str, point: str) -> None:
    """The whole worker is killed before the letter is confirmed, or between that and the acknowledgement: one is listed."""
    worker = shop.worker(concurrency=1, FLOOR_CRASH=point, FLOOR_VISIBILITY="7")
    task_id = ENDS[reason](shop)
    shop.wait(lambda: not worker.alive(), 30, "the worker's end")
    assert len(shop.letters()) == (1 if point == "letter.after" else 0)
    other = shop.worker(concurrency=1, FLOOR_CRASH=point, FLOOR_VISIBILITY="7")
    shop.wait(lambda: "dead_lettered" in other.text(), 120, "the letter of the message that came back")
    assert shop.task("add").delay(1, 1).get(timeout=20) == 2
    assert [(letter.reason, letter.task_id) for letter in shop.letters()] == [(reason, task_id)]


@pytest.mark.parametrize("broker", ["redis"], indirect=True)  # a message of RabbitMQ's is with one worker at a time
def test_two_workers_on_one_damaged_message(shop: Floor) -> None:
    """The first is frozen before its letter, the second gets the message too, the first goes on: one letter is listed."""
    frozen = shop.worker(concurrency=1, FLOOR_CRASH="letter.before", FLOOR_FREEZES="1", FLOOR_VISIBILITY="4")
    task_id = raw(shop, body=b"[[")
    shop.wait(lambda: shop.traces.redis.exists(shop.traces._name("crashed")), what="the first one's attempt")
    other = shop.worker(concurrency=1, FLOOR_VISIBILITY="4")
    shop.wait(lambda: "dead_lettered" in other.text(), 120, "the second one's letter")
    os.kill(frozen.pid, signal.SIGCONT)
    shop.wait(lambda: "dead_lettered" in frozen.text(), 30, "the first one's letter")
    assert [letter.task_id for letter in shop.letters()] == [task_id]
    assert [shop.task("add").delay(n, 1).get(timeout=20) for n in range(4)] == [1, 2, 3, 4]
    assert (frozen.alive(), other.alive()) == (True, True)
