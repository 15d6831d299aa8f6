"""A primary dies and a replica takes its place: what a store in Redis loses then, and the option by which it loses nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import timedelta
from typing import Any

import pytest
import redis

from celery_patterns.exceptions import ConfigurationError, StoreUnavailable
from celery_patterns.stores import RedisStore
from celery_patterns.typing import Attempt, Claimed, Done

from .cable import Cable
from .servers import RedisServer, free_port, wait_until

DAY = timedelta(days=1)
SERVICE = "shop"


class Replica(RedisServer):
    """A replica of the server at a port."""

    databases = 16

    def __init__(self, of: int) -> None:
        super().__init__()
        self._of = of

    def command(self) -> list[str]:
        return [*super().command(), "--replicaof", "127.0.0.1", str(self._of)]


class SentinelServer(RedisServer):
    """One Sentinel, which decides alone, and soon."""

    def __init__(self, of: int) -> None:
        super().__init__()
        (self.folder / "sentinel.conf").write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self.folder}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {of} 1\n"
            f"sentinel down-after-milliseconds {SERVICE} 500\nsentinel failover-timeout {SERVICE} 5000\n"
        )

    def command(self) -> list[str]:
        return [super().command()[0], str(self.folder / "sentinel.conf"), "--sentinel"]


class House:
    """A primary, a replica that hears of it by a cable, and a Sentinel, which is there when it is asked for.

    A Sentinel that finds a replica behind a cable puts it on a line of its own, after 8 seconds.
    """

    def __init__(self) -> None:
        self.primary = RedisServer()
        self.primary.start()
        self.cable = Cable(self.primary.port)
        self.replica = Replica(self.cable.port)
        self.replica.start()
        wait_until(
            lambda: self.on_replica().info("replication")["master_link_status"] == "up", 20, "the replica is there"
        )
        self.sentinel = SentinelServer(self.primary.port)
        self.url = f"sentinel://127.0.0.1:{self.sentinel.port}/{SERVICE}"

    def on_replica(self) -> Any:
        return redis.Redis(port=self.replica.port)

    def watch(self) -> None:
        self.sentinel.start()
        watched = redis.Redis(port=self.sentinel.port)
        wait_until(lambda: watched.sentinel_slaves(SERVICE), 20, "the Sentinel knows the replica")

    def fail_over(self) -> None:
        self.primary.stop(9)
        wait_until(lambda: self.on_replica().info("replication")["role"] == "master", 30, "the replica is the primary")

    def close(self) -> None:
        for server in (self.sentinel, self.replica, self.primary):
            server.close()
        self.cable.close()


@pytest.fixture
def house() -> Iterator[House]:
    made = House()
    with closing(made):
        yield made


def work(store: RedisStore, key: str) -> bool:
    """A task's run: whether its claim and its work were recorded, as far as the store said."""
    me = Attempt(f"{key}/0", 0, f"{key}.1")
    with suppress(StoreUnavailable):
        held = store.claim(key, me, "fp", lease=DAY, ttl=DAY)
        if isinstance(held, Claimed):
            return isinstance(store.complete(key, me, "fp", held.fence, b"1", ttl=DAY), Done)
    return False


def kept(house: House, key: str) -> bool:
    store = RedisStore(house.url, patience=timedelta(seconds=20))
    return isinstance(store.claim(key, Attempt("z/0", 0, f"z-{key}"), "fp", lease=DAY, ttl=DAY), Done)


@pytest.mark.parametrize("replicas", [0, 1])
def test_what_a_failover_loses(house: House, replicas: int) -> None:
    """What the primary had not handed on; nothing that was said to be recorded, when it has to be handed on first."""
    store = RedisStore(house.primary.url(), replicas=replicas)
    before = [f"before-{number}" for number in range(20)]
    assert all(work(store, key) for key in before)
    wait_until(lambda: house.on_replica().dbsize() >= 20, 10, "the replica has them")
    meanwhile = [f"meanwhile-{number}" for number in range(3 if replicas else 50)]
    with house.cable.cut():
        recorded = [key for key in meanwhile if work(store, key)]
        house.watch()
        house.fail_over()
    assert all(kept(house, key) for key in before)
    lost = [key for key in recorded if not kept(house, key)]
    print(f"replicas={replicas}: {len(recorded)} recorded while the replica was cut off, {len(lost)} lost")  # noqa: T201
    if replicas:
        assert recorded == lost == []
    else:
        assert len(recorded) == len(lost) == 50


@pytest.mark.long
@pytest.mark.parametrize("replicas", [0, 1])
def test_what_a_failover_loses_under_load(house: House, replicas: int) -> None:
    """A replica that keeps up: only what was under way between the two, and nothing that was confirmed by it."""
    house.watch()
    store = RedisStore(house.url, patience=timedelta(seconds=20), replicas=replicas)
    recorded: list[str] = []
    over = threading.Event()

    def run(thread: int) -> None:
        number = 0
        while not over.is_set():
            number += 1
            if work(store, f"{thread}-{number}"):
                recorded.append(f"{thread}-{number}")

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    house.fail_over()
    known = len(recorded)
    if not replicas:  # the new primary has none left
        wait_until(lambda: len(recorded) > known + 50, 30, "the work goes on")
    over.set()
    for thread in threads:
        thread.join(30)
    lost = [key for key in recorded if not kept(house, key)]
    print(f"replicas={replicas}: {len(recorded)} recorded around the failover, {len(lost)} lost")  # noqa: T201
    assert len(lost) <= (0 if replicas else 200)


def test_a_fence_grows_over_a_failover(house: House) -> None:
    """Also that of a key whose claim was lost: it is made of the clock."""
    store = RedisStore(house.url, patience=timedelta(seconds=20))
    house.watch()
    with house.cable.cut():
        first = store.claim("k", Attempt("a/0", 0, "a"), "fp", lease=DAY, ttl=DAY)
        house.fail_over()
    second = store.claim("k", Attempt("b/0", 0, "b"), "fp", lease=DAY, ttl=DAY)
    assert isinstance(first, Claimed)
    assert isinstance(second, Claimed)
    assert second.fence > first.fence


def test_too_few_replicas_are_a_store_that_is_away() -> None:
    """It says how many have what was written; what was written is its owner's when it asks again."""
    with closing(RedisServer()) as server:
        server.start()
        store = RedisStore(server.url(), replicas=1)
        me = Attempt("a/0", 0, "me")
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="0 of 1 replicas have what was written"):
                store.claim("k", me, "fp", lease=DAY, ttl=DAY)
        alone = RedisStore(server.url())
        assert isinstance(alone.claim("k", me, "fp", lease=DAY, ttl=DAY), Claimed)
        assert [record.key for record in store.records()] == ["k"]
        assert len(store._server._free) == 1


@pytest.mark.parametrize(
    "url", ["sentinel://", "sentinel://host:26379", "sentinel://host:x/shop", "sentinel://h:1/shop?nonsense=7"]
)
def test_a_url_that_names_no_service_is_refused(url: str) -> None:
    """It says what was expected, and shows no password."""
    with pytest.raises(ConfigurationError, match="sentinel://host:port,host:port/service"):
        RedisStore(url)


def test_a_url_of_sentinels_is_read() -> None:
    """Several of them, a login for the servers, a database, and options."""
    store = RedisStore("sentinel://me:secret@one:1,two:2,three/shop/3?socket_timeout=2")
    pool: Any = store._server._pool
    given = pool.connection_kwargs
    assert (given["username"], given["password"], given["db"], given["socket_timeout"]) == ("me", "secret", 3, 2.0)
    assert [one.connection_pool.connection_kwargs["port"] for one in pool.sentinel_manager.sentinels] == [1, 2, 26379]
    assert pool.service_name == "shop"


@pytest.mark.parametrize("replicas", [-1, True, "1", 0.5])
def test_a_wrong_number_of_replicas_is_refused(replicas: Any) -> None:
    """When the store is made."""
    with pytest.raises(ConfigurationError, match="expected replicas to be a number of them"):
        RedisStore(f"redis://127.0.0.1:{free_port()}/0", replicas=replicas)


def test_nobody_answers_for_a_service() -> None:
    """It is a store that is away."""
    store = RedisStore(f"sentinel://127.0.0.1:{free_port()}/shop", patience=timedelta(seconds=0.2))
    with pytest.raises(StoreUnavailable, match="redis did not answer"):
        store.claim("k", Attempt("a/0", 0, "a"), "fp", lease=DAY, ttl=DAY)
