"""Keys under every fault at once: processes killed and stopped, workers cut off from the store and from the broker."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from celery_patterns.stores import SQLStore

from .apps.floor import WITNESSED_LEASE
from .cable import Cable
from .conftest import POSTGRES, RABBIT, REDIS
from .harness import Floor, Worker, floor

#: How many workers, each with cables of its own.
WORKERS = 3
#: Between two faults, in seconds.
PAUSE = 1.5
#: How long a process is stopped, or a worker cut off: longer than the lease of the tasks.
LONG = WITNESSED_LEASE + 1.5
#: Every so many orders, one runs longer than its lease.
LONG_ORDER = 40


class _Party:
    """Workers that are started again when they are gone, each on two cables: to the store, and to the broker."""

    def __init__(self, own: Floor, ports: tuple[int, int]) -> None:
        self._own = own
        self.cables = [(Cable(ports[0]), Cable(ports[1])) for _ in range(WORKERS)]
        self.workers = [self._start(at, ready=True) for at in range(WORKERS)]
        self.over = threading.Event()
        self._keeper = threading.Thread(target=self._keep)
        self._keeper.start()

    def _start(self, at: int, ready: bool) -> Worker:
        store, broker = self.cables[at]
        given = self._own.environment
        cut = {
            "FLOOR_STORE": _through(given["FLOOR_STORE"], store),
            "FLOOR_BROKER": _through(given["FLOOR_BROKER"], broker),
        }
        return self._own.worker(concurrency=2, ready=ready, FLOOR_VISIBILITY="8", FLOOR_HASTY="1", **cut)

    def _keep(self) -> None:
        while not self.over.wait(0.05):
            for at, worker in enumerate(self.workers):
                if not worker.alive():
                    self.workers[at] = self._start(at, ready=False)

    def close(self) -> None:
        self.over.set()
        self._keeper.join()
        for worker in self.workers:
            worker.kill()
        for pair in self.cables:
            for cable in pair:
                cable.close()


def _through(url: str, cable: Cable) -> str:
    head, _, tail = url.rpartition(":")
    return f"{head}:{cable.port}/{tail.partition('/')[2]}"


def _kill_child(party: _Party, dice: random.Random) -> None:
    children = [pid for worker in party.workers if worker.alive() for pid in worker.children()]
    if children:
        with suppress(ProcessLookupError):
            os.kill(dice.choice(children), signal.SIGKILL)


def _kill_worker(party: _Party, dice: random.Random) -> None:
    dice.choice(party.workers).kill()


def _kill_all(party: _Party, _dice: random.Random) -> None:
    for worker in list(party.workers):
        worker.kill()


def _stop_child(party: _Party, dice: random.Random) -> None:
    children = [pid for worker in party.workers if worker.alive() for pid in worker.children()]
    if children:
        with _stopped([dice.choice(children)]):
            time.sleep(LONG)


def _stop_worker(party: _Party, dice: random.Random) -> None:
    worker = dice.choice(party.workers)
    with _stopped([*worker.children(), worker.pid] if worker.alive() else []):
        time.sleep(LONG)


def _cut_store(party: _Party, dice: random.Random) -> None:
    with dice.choice(party.cables)[0].cut():
        time.sleep(LONG)


def _cut_broker(party: _Party, dice: random.Random) -> None:
    with dice.choice(party.cables)[1].cut():
        time.sleep(LONG)


@contextmanager
def _stopped(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


FAULTS = [_kill_child, _kill_worker, _stop_child, _cut_store, _kill_child, _stop_worker, _cut_broker, _kill_all]


@pytest.fixture
def own(environment: dict[str, str], store: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Floor]:
    if store == "postgresql":
        environment["FLOOR_STORE"] = request.getfixturevalue("postgres")
        SQLStore(environment["FLOOR_STORE"]).create_table()
    with floor(environment, tmp_path) as made:
        yield made


def _work(own: Floor, kind: str, store: str, number: int, usual: float, seed: int) -> dict[str, Any]:
    """Send the orders, do harm until they are done, and count what the witness saw."""
    dice = random.Random(seed)
    sent: dict[int, list[Any]] = {}
    for order in range(number):
        _send(own, sent, order, usual)
    ports = (
        int(os.environ[REDIS if store == "redis" else POSTGRES]),
        int(os.environ[REDIS if kind == "redis" else RABBIT]),
    )
    done: Counter[str] = Counter()
    with ExitStack() as stack:
        party = stack.enter_context(closing(_Party(own, ports)))
        faults = stack.enter_context(_harm(party, dice, done))
        while len(done) < len(set(FAULTS)):
            _send(own, sent, len(sent), usual)  # there is always something to do harm to
            time.sleep(0.1)
        lost = _until_done(own, kind, sent, faults)
        time.sleep(WITNESSED_LEASE + 1)
        stuck = _held(own)
    begun = own.traces.all("begun")
    results = {order: {one.result for one in pair} for order, pair in sent.items()}
    return {
        "faults": dict(done),
        "lost by Redis and sent again": lost,
        "orders": len(sent),
        "runs": len(begun),
        "unfinished": sorted(order for order, told in results.items() if {type(one) for one in told} != {str}),
        "other results": sorted(order for order, told in results.items() if len(told) != 1),
        "run again after done": sum(recorded for *_, recorded in begun),
        "steps behind a later run's": own.traces.count("stale"),
        "gave up": own.traces.count("gave up"),
        "keys stuck": stuck,
        "letters": [letter.error for letter in own.letters()],
    }


def _send(own: Floor, sent: dict[int, list[Any]], order: int, usual: float) -> None:
    """An order, every tenth twice; some run longer than their lease."""
    seconds = WITNESSED_LEASE * 1.5 if order % LONG_ORDER == 7 else usual
    sent[order] = [own.task("witnessed").delay(order, seconds) for _ in range(2 if order % 10 == 3 else 1)]


def _until_done(own: Floor, kind: str, sent: dict[int, list[Any]], faults: threading.Event) -> int:
    """Wait for each message's end. What Redis lost is sent again, as the page on brokers tells one to; how many these were."""
    own.wait(lambda: len(set(own.traces.all("effects"))) >= len(sent) * 0.95, 60 + len(sent), "most effects")
    faults.set()
    lost = 0
    for _ in range(3):
        with suppress(AssertionError):
            own.wait(lambda: not _open(sent), 90, "each message's end")
            return lost
        assert kind == "redis", f"lost: {_open(sent)}\n{own.logs()}"
        with own.app.connection_for_read() as connection:
            client = connection.default_channel.client
            left = (client.llen(own.queue), client.hlen("unacked"))
        assert left == (0, 0), f"not ended: {_open(sent)}, {left}\n{own.logs()}"
        for order, one in _open(sent):
            lost += 1
            sent[order].remove(one)
            sent[order].append(own.task("witnessed").delay(order, 0.02))
    raise AssertionError(f"not ended: {_open(sent)}\n{own.logs()}")


def _open(sent: dict[int, list[Any]]) -> list[tuple[int, Any]]:
    return [(order, one) for order, pair in sent.items() for one in pair if not one.ready()]


@contextmanager
def _harm(party: _Party, dice: random.Random, done: Counter[str]) -> Iterator[threading.Event]:
    over = threading.Event()

    def harm() -> None:
        turn = 0
        while not over.wait(PAUSE):
            fault = FAULTS[turn % len(FAULTS)]
            turn += 1
            fault(party, dice)
            done[fault.__name__] += 1

    thread = threading.Thread(target=harm)
    thread.start()
    try:
        yield over
    finally:
        over.set()
        thread.join()


def _held(own: Floor) -> list[str]:
    """The keys that somebody still holds: one whose lease is over is anybody's, and stands where the work was not recorded."""
    if not own.environment["FLOOR_STORE"].startswith("redis"):
        store = SQLStore(own.environment["FLOOR_STORE"])
        held = sa.select(store.table.c.key).where(
            store.table.c.state == "running", store.table.c.lease_ends > time.time() * 1_000_000
        )
        return [row.key for row in store._database.ask(held, {})]
    client = own.traces.redis
    names = client.scan_iter(f"cp-{own.environment['FLOOR_NAMESPACE']}:*", count=1000)
    records = [(str(name), client.hgetall(name)) for name in names if client.type(name) == b"hash"]
    return [name for name, one in records if one[b"s"] == b"r" and int(one[b"l"]) > time.time() * 1000]


def _judge(told: dict[str, Any]) -> None:
    print(told)  # noqa: T201
    nothing = ("unfinished", "other results", "letters", "keys stuck")
    assert {name: told[name] for name in nothing} == {name: [] for name in nothing}, told
    breaks = ("_kill_worker", "_kill_all", "_stop_worker", "_cut_broker")
    assert told["lost by Redis and sent again"] <= WORKERS * sum(told["faults"].get(name, 0) for name in breaks), told
    assert told["run again after done"] == 0, told
    assert told["steps behind a later run's"] == 0, told


@pytest.mark.parametrize(
    ("broker", "store"), [("redis", "redis"), ("rabbitmq", "redis"), ("rabbitmq", "postgresql")], indirect=["broker"]
)
def test_every_fault_once(own: Floor, store: str, request: pytest.FixtureRequest) -> None:
    """Some hundred orders: each is done, none again, none by two at once, and no key is stuck."""
    _judge(_work(own, request.node.callspec.params["broker"], store, 60, 0.3, 1))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("store", ["redis", "postgresql"])
@pytest.mark.parametrize("broker", ["redis", "rabbitmq"], indirect=True)
def test_faults_all_the_time(own: Floor, store: str, request: pytest.FixtureRequest) -> None:
    """Two thousand orders: the same."""
    _judge(_work(own, request.node.callspec.params["broker"], store, 2000, 0.3, 2))
