"""The app that is measured, once for each row: the same task, the same acknowledgement, no result backend."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
from celery import Celery
from celery.app.task import Task
from celery_once import QueueOnce

import celery_patterns as patterns
from celery_patterns import Pattern
from celery_patterns.stores import RedisStore
from celery_patterns.typing import Claimed, Done

WITHOUT_STORE: tuple[Pattern, ...] = (
    patterns.logged("order_id"),
    patterns.dead_letter("bench.dead", max_crashes=None),
    patterns.retry(on=(ConnectionError, TimeoutError)),
)
LETTERS: tuple[Pattern, ...] = (patterns.dead_letter("bench.dead"),)
EVERYTHING: tuple[Pattern, ...] = (*WITHOUT_STORE, patterns.idempotent(key="order_id", ttl=timedelta(days=1)))


@dataclass(frozen=True)
class Row:
    """One way to run the task.

    Attributes:
        says: What stands in the table.
        level: The worker's ``-l``.
        wears: The task's patterns; an app with any is equipped, and with ``LETTERS`` only so far as these need it.
        celerys_lines: Whether Celery's two lines a task are written, beside our one event.
        keeps_results: Whether Celery keeps the results, in Redis.
        body: For how many seconds the task's body waits, as for a database.
        once: Whether the task is one of celery-once's: its key is locked in Redis as it is sent, and freed at its end.
    """

    says: str
    level: str = "INFO"
    wears: tuple[Pattern, ...] = ()
    celerys_lines: bool = False
    keeps_results: bool = False
    once: bool = False
    body: float = 0.0


PLAIN, PLAIN_INFO, RESULTS, ONCE = "plain", "plain-info", "results", "once"
NO_STORE, ALL, ALL_INFO = "no-store", "all", "all-info"
PINGS = "pings"
PLAIN_AGAIN, DEAD = "plain-again", "dead-letter"
WAITS, WAITS_AGAIN, DEAD_WAITS = "waits", "waits-again", "dead-letter-waits"
WAIT = 0.01
ROWS = {
    PLAIN: Row("plain Celery, -l WARNING", "WARNING"),
    PLAIN_INFO: Row("plain Celery, -l INFO", celerys_lines=True),
    RESULTS: Row("plain Celery, results kept in Redis", "WARNING", keeps_results=True),
    ONCE: Row("celery-once", "WARNING", once=True),
    NO_STORE: Row("all patterns without a store, one event", wears=WITHOUT_STORE),
    PINGS: Row("everything, but the store is asked PING", wears=EVERYTHING),
    ALL: Row("everything, one event", wears=EVERYTHING),
    ALL_INFO: Row("everything, one event and Celery's lines", wears=EVERYTHING, celerys_lines=True),
    PLAIN_AGAIN: Row("plain Celery once more: the noise", "WARNING"),
    DEAD: Row("dead_letter alone, crashes counted, -l WARNING", "WARNING", wears=LETTERS),
    WAITS: Row("plain Celery, a body of 10 ms", "WARNING", body=WAIT),
    WAITS_AGAIN: Row("plain Celery, a body of 10 ms, once more: the noise", "WARNING", body=WAIT),
    DEAD_WAITS: Row("dead_letter alone, crashes counted, a body of 10 ms", "WARNING", wears=LETTERS, body=WAIT),
}


class Pinged(RedisStore):
    """What no store can cost less than: it asks as often, and its server has nothing to do."""

    _PING = b"*1\r\n$4\r\nPING\r\n"

    def claim(self, *_: Any, **__: Any) -> Claimed:
        self._server._ask(self._PING)
        return Claimed(1, 1)

    def complete(self, *_: Any, **__: Any) -> Done:
        self._server._ask(self._PING)
        return Done(None, ours=True)


@dataclass(frozen=True)
class Site:
    """Where a row runs: handed to the worker's process through its environment."""

    row: str
    broker: str
    store: str
    queue: str

    @property
    def elsewhere(self) -> str:
        """A database beside the store's, for what is not ours."""
        return f"{self.store.rpartition('/')[0]}/2"

    def environment(self) -> dict[str, str]:
        return {"BENCH_SITE": json.dumps(vars(self))}

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Site:
        return cls(**json.loads(environment["BENCH_SITE"]))


def make_app(site: Site) -> Celery:
    row = ROWS[site.row]
    backend = site.elsewhere if row.keeps_results else None
    app = Celery(site.queue, broker=site.broker, backend=backend, set_as_current=False)
    if row.wears:
        patterns.use_patterns(app)
        if row.wears is not LETTERS:
            patterns.use_strict_json(app)
            patterns.use_structlog(app)
        if row.wears in (EVERYTHING, LETTERS):
            patterns.use_store(app, Pinged(site.store) if site.row == PINGS else site.store)
    if not row.celerys_lines:
        for name in ("celery.worker.strategy", "celery.app.trace"):
            logging.getLogger(name).setLevel(logging.WARNING)
    app.conf.update(
        task_default_queue=site.queue,
        task_ignore_result=not row.keeps_results,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        broker_connection_retry_on_startup=True,
    )
    # A plain app has no option of this name to give.
    options: dict[str, Any] = {"patterns": row.wears} if row.wears else {}
    if row.once:
        settings = {"url": site.elsewhere, "default_timeout": 3600}
        app.conf.ONCE = {"backend": "celery_once.backends.Redis", "settings": settings}
        options = {"base": QueueOnce, "once": {"keys": ["order_id"]}}

    app.task(waiting_charge if row.body else charge, name="charge", shared=False, **options)
    app.task(hold, name="hold", shared=False, base=Task, ignore_result=True)
    app.task(mark, name="mark", shared=False, base=Task, ignore_result=True)
    return app


def charge(order_id: str, amount: int) -> None:
    """The body of nothing."""


def waiting_charge(*_: object) -> None:
    """The body of one that asks a database, or somebody's service."""
    time.sleep(WAIT)


def hold(gate: str) -> None:
    """Keep one child of the worker until the bench unlocks this file."""
    Path(f"{gate}.{os.getpid()}").touch()
    with Path(gate).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)


def mark(path: str, others: list[int]) -> None:
    """Write down when this message ran, and the CPU seconds that were used by then.

    Args:
        path: The file to write.
        others: Process ids of the servers, which are summed up apart from the worker.
    """
    now = time.monotonic()
    main = own_cpu_seconds(psutil.Process(os.getppid()))
    found = {
        "time": now,
        "main": main,
        "children": cpu_seconds([os.getppid()]) - main,
        "servers": cpu_seconds(others),
    }
    unfinished = Path(f"{path}.new")
    unfinished.write_text(json.dumps(found))
    unfinished.rename(path)


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of these processes and of all their children that live."""
    roots = [psutil.Process(pid) for pid in pids]
    return sum(own_cpu_seconds(process) for root in roots for process in (root, *root.children(recursive=True)))


def own_cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
