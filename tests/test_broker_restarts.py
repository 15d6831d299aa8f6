"""The broker is restarted, and killed, while tasks fail: there is a letter for each that failed, and for no other."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_patterns import dead_letters

from .harness import Floor, floor
from .servers import RabbitServer, RedisServer

long = pytest.mark.long
ENDS = [
    pytest.param("redis", signal.SIGTERM, id="redis-terminated"),
    pytest.param("rabbitmq", signal.SIGTERM, id="rabbitmq-terminated", marks=long),
    pytest.param("rabbitmq", signal.SIGKILL, id="rabbitmq-killed"),
    pytest.param("quorum", signal.SIGTERM, id="quorum-terminated", marks=long),
    pytest.param("quorum", signal.SIGKILL, id="quorum-killed", marks=long),
]


@pytest.fixture
def server(kind: str) -> Iterator[Any]:
    """A broker of the test's own, which it may stop."""
    made = RedisServer() if kind == "redis" else RabbitServer()
    made.start()
    yield made
    made.close()


@pytest.fixture
def own(server: Any, kind: str, database: str, tmp_path: Path) -> Iterator[Floor]:
    """A corner on that broker; store, results and traces are elsewhere, and stay."""
    broker = server.url() if isinstance(server, RedisServer) else server.url
    settings = {"FLOOR_BROKER": broker, "FLOOR_BACKEND": database, "FLOOR_STORE": database, "FLOOR_TRACES": database}
    if kind == "quorum":
        settings["FLOOR_QUEUE_TYPE"] = "quorum"
    with floor(settings, tmp_path) as made:
        yield made


def _work(own: Floor, server: Any, name: str, number: int, restarts: int, how: int) -> None:
    """Every tenth of these tasks fails; the broker goes away and comes back while they run."""
    failed = {n for n in range(number) if n % 10 == 3}
    ids = {n: own.task(name).delay(n, n in failed).id for n in range(number)}
    with own.supervised(2, concurrency=2, FLOOR_VISIBILITY="7"):
        for restart in range(restarts):
            part = number * (restart + 1) // (restarts + 2)
            own.wait(lambda part=part: own.traces.count("orders") >= part, 90, f"{part} done")
            server.stop(how)
            server.start()
        own.wait(lambda: len(set(own.traces.all("orders"))) == number - len(failed), 120, "the healthy ones")
        own.wait(lambda: len(own.letters()) >= len(failed), 90, "the letters")
        assert {letter.task_id for letter in own.letters()} == {ids[n] for n in failed}
        assert len(own.letters()) == len(failed)
        own.traces.set("mended")
        replayed = dead_letters(own.app, own.dead).replay_all()
        assert len(replayed) == len(failed)
        own.wait(lambda: len(set(own.traces.all("orders"))) == number, 90, "the replayed ones")
        assert own.letters() == []
    _none_double(own, name, failed)


def _none_double(own: Floor, name: str, failed: set[int]) -> None:
    """A key's work is done once. Without one, what was running when the broker went away may run twice; a replay is not."""
    times = Counter(own.traces.all("orders"))
    expected = set(times) if name == "order_keyed" else failed
    assert {n for n in expected if times[n] != 1} == set()


@pytest.mark.parametrize(("kind", "how"), ENDS)
def test_a_restart_among_a_hundred_tasks(own: Floor, server: Any, how: int) -> None:
    """One restart: letters and failures are the same, all others are done."""
    _work(own, server, "order", 100, 1, how)


@pytest.mark.long
@pytest.mark.parametrize("name", ["order", "order_keyed"])
@pytest.mark.parametrize(("kind", "how"), ENDS)
def test_two_restarts_among_a_thousand_tasks(own: Floor, server: Any, name: str, how: int) -> None:
    """Two restarts: the same, and with a key each effect is there once."""
    _work(own, server, name, 1000, 2, how)
