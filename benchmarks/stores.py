"""What a task's two questions to its store take, beside two that ask nothing on the same connection."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from typing import Any

import sqlalchemy as sa

from celery_patterns.stores import RedisStore, SQLStore
from celery_patterns.typing import Attempt, Claimed, Store
from tests.servers import PostgresServer

from .lane import BenchRedis
from .measure import Section, Spread, Table, interleaved, ratios

LEASE, TTL = timedelta(seconds=30), timedelta(days=1)
PRINT = "0" * 32
KEY, NOTHING = "claim and complete", "nothing, twice"
_numbers = count()


def measure(*, quick: bool) -> Section:
    rounds, tasks = (11, 100) if quick else (41, 400)
    rows = []
    raw = {}
    for name, server in (("Redis", BenchRedis()), ("PostgreSQL", PostgresServer())):
        server.start()
        try:
            asked = _in_redis(server.url(1)) if isinstance(server, BenchRedis) else _in_sql(server.url())
            found = raw[name] = _rounds(*asked, tasks, rounds)
        finally:
            server.close()
        micros = {what: Spread.of([1e6 * one for one in values]).text(0) for what, values in found.items()}
        rows.append((name, micros[NOTHING], micros[KEY], Spread.of(ratios(found[KEY], found[NOTHING])).text(2)))
    return Section(
        "stores",
        [
            Table(
                f"A task's two questions, µs: median of {rounds} interleaved rounds of {tasks} keys (quartiles)",
                ("store", NOTHING, KEY, "ratio"),
                rows,
                "Nothing is PING in Redis, and SELECT 1 as a transaction in PostgreSQL, sent as the store sends its own, "
                "on the same connection. Neither server waits for its disk.",
            )
        ],
        [],
        {"seconds per key": raw},
    )


def _rounds(store: Store, nothing: Callable[[], Any], tasks: int, rounds: int) -> dict[str, list[float]]:
    cases = {NOTHING: lambda: _timed(tasks, nothing, nothing), KEY: lambda: _keys(tasks, store)}
    interleaved(cases, 2)  # connects
    return interleaved(cases, rounds)


def _in_redis(url: str) -> tuple[Store, Callable[[], Any]]:
    store = RedisStore(url)
    return store, lambda: store._server._ask(b"*1\r\n$4\r\nPING\r\n")


def _in_sql(url: str) -> tuple[Store, Callable[[], Any]]:
    store, nothing = SQLStore(url), sa.text("SELECT 1")
    store.create_table()
    return store, lambda: store._database.ask(nothing, {})


def _keys(tasks: int, store: Store) -> float:
    keys = [f"bench.charge:{next(_numbers):032x}" for _ in range(tasks)]
    tried = [Attempt(f"{key[-32:]}/0", 0, key[-32:]) for key in keys]
    began = time.perf_counter()
    for key, attempt in zip(keys, tried, strict=True):
        claimed = store.claim(key, attempt, PRINT, lease=LEASE, ttl=TTL)
        assert isinstance(claimed, Claimed)
        store.complete(key, attempt, PRINT, claimed.fence, b"null", ttl=TTL)
    return (time.perf_counter() - began) / tasks


def _timed(times: int, *steps: Callable[[], Any]) -> float:
    began = time.perf_counter()
    for _ in range(times):
        for step in steps:
            step()
    return (time.perf_counter() - began) / times
