"""The broker is restarted, and killed, while tasks fail: there is a letter for each that failed, and for no other.

On Redis, Celery's transport itself may lose what it has taken and not yet noted: the page on brokers says so, in figures.
"""

from __future__ import annotations

import signal
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_patterns import dead_letters
from celery_patterns._queues import ensure_queue, queue_length

from .harness import Floor, Worker, floor
from .servers import RabbitServer, RedisServer

long = pytest.mark.long
ENDS = [
    pytest.param("redis", signal.SIGTERM, id="redis-terminated"),
    pytest.param("redis", signal.SIGKILL, id="redis-killed", marks=long),
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


#: How many workers, each of which a Redis broker that goes away may cost one message: it was taken, and not yet noted.
WORKERS = 2


def _work(own: Floor, server: Any, name: str, number: int, restarts: int, how: int) -> None:
    """Every tenth of these tasks fails; the broker goes away and comes back while they run."""
    sent = {own.task(name).delay(n, n % 10 == 3).id: n for n in range(number)}
    failing = {task_id: n for task_id, n in sent.items() if n % 10 == 3}
    _make_dead_queue(own, server)
    with own.supervised(WORKERS, concurrency=2, FLOOR_VISIBILITY="7"):
        for restart in range(restarts):
            part = number * (restart + 1) // (restarts + 2)
            own.wait(lambda part=part: own.traces.count("orders") >= part, 90, f"{part} done")
            server.stop(how)
            server.start()
        own.wait(lambda: _all_taken(own, server), 120, "an empty queue")
        lost = WORKERS * restarts if isinstance(server, RedisServer) else 0
        own.wait(lambda: len(_ended(own, failing)) >= number - lost, 120, "all ends")
        # A message whose acknowledgement the broker did not keep may come once more, after all others.
        _until_idle(own, sent)
        letters = own.letters()
        died = {failing[letter.task_id] for letter in letters}
        assert len(letters) == len(died)
        assert len(died) >= len(failing) - lost
        own.traces.set("mended")
        assert dead_letters(own.app, own.dead).replay_all().sent == len(letters)
        own.wait(lambda: died <= set(own.traces.all("orders")), 90, "the replayed ones")
        assert own.letters() == []
    _none_double(own, name, died)


def _make_dead_queue(own: Floor, server: Any) -> None:
    """Before the first letter does: RabbitMQ forgets a queue that was made within two seconds of its death by SIGKILL."""
    if isinstance(server, RabbitServer):
        with own.app.connection_for_write() as connection:
            ensure_queue(own.app, connection, own.dead)
        time.sleep(3)  # nothing tells when it is written


def _ended(own: Floor, failing: dict[str, int]) -> set[int]:
    return {*own.traces.all("orders"), *(failing[letter.task_id] for letter in own.letters())}


def _all_taken(own: Floor, server: Any) -> bool:
    """On Redis nothing waits, and nothing waits to be given out again."""
    if not isinstance(server, RedisServer):
        return True
    with own.app.connection_for_read() as connection:
        client = connection.default_channel.client
        return not client.llen(own.queue) and not client.hlen("unacked")


def _until_idle(own: Floor, sent: dict[str, int]) -> None:
    """Wait until nobody works any more; what Celery itself has crippled is killed first, as by a supervisor that asks.

    In about one of 200 restarts under load a child's report is half read when the connection is lost, as the page on brokers
    tells. The rest of it is taken for a new one, and the worker ends badly, or counts that task as running for ever.
    """
    idle = _Idle(own)
    try:
        own.wait(idle, 60, idle)
    except AssertionError:
        crippled = [
            worker for worker in own.workers if worker.alive() and _is_crippled(worker, idle, _ended(own, sent), sent)
        ]
        if not crippled:
            raise
        warnings.warn(f"Celery has crippled a worker, which is killed: {idle}", stacklevel=2)
        for worker in crippled:
            worker.kill()
        own.wait(idle, 60, idle)


def _is_crippled(worker: Worker, idle: _Idle, ended: set[int], sent: dict[str, int]) -> bool:
    """Whether it has misread a report, or calls tasks active that have ended elsewhere, and no others."""
    active = [task["id"] for task in idle.active.get(worker.name, ())]
    return "in _recv_message" in worker.text() or (bool(active) and {sent[task_id] for task_id in active} <= ended)


class _Idle:
    """Nothing waits in the queue, and no worker has anything in its hands; as text, what was seen last."""

    def __init__(self, own: Floor) -> None:
        self._own = own
        self._waiting = 0
        self._reserved: dict[str, Any] = {}
        self.active: dict[str, Any] = {}

    def __call__(self) -> bool:
        own = self._own
        with own.app.connection_for_write() as connection:
            redis = connection.transport.driver_type == "redis"
            self._waiting = 0 if redis else queue_length(connection, own.queue)
            looking = own.app.control.inspect(timeout=2, connection=connection)
            self._reserved, self.active = looking.reserved() or {}, looking.active() or {}
        held = (self._reserved, self.active)
        return not self._waiting and all(len(told) >= WORKERS and not any(told.values()) for told in held)

    def __str__(self) -> str:
        return f"idle workers, and not waiting={self._waiting} reserved={self._reserved} active={self.active}"


def _none_double(own: Floor, name: str, died: set[int]) -> None:
    """A key's work is done once. Without one, what was running when the broker went away may run twice; a replay is not."""
    times = Counter(own.traces.all("orders"))
    expected = set(times) if name == "order_keyed" else died
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
