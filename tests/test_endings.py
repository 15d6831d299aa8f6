"""Every end that Celery knows leaves one letter, on every broker and pool, and the worker goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from .harness import Floor


@dataclass(frozen=True)
class Row:
    """One way to end."""

    name: str
    send: Callable[[Floor], str]
    reason: str
    state: str = "FAILURE"
    runs: int = 1
    errbacks: int = 1
    pools: tuple[str, ...] = ("prefork", "threads", "solo")


def call(how: str, task: str = "ends", **options: Any) -> Callable[[Floor], str]:
    def send(shop: Floor) -> str:
        errback = shop.task("failed_errback").si(how)
        return str(shop.task(task).apply_async((how,), link_error=errback, **options).id)

    return send


ROWS = [
    Row("exception", call("exception"), "failed"),
    Row("rejected", call("reject"), "rejected"),
    Row("not encodable", call("unencodable"), "result_not_encodable"),
    Row("memory", call("memory"), "failed"),
    Row("soft limit", call("soft", soft_time_limit=1), "failed", pools=("prefork",)),
    Row("hard limit", call("hard", time_limit=1), "time_limit", errbacks=2, pools=("prefork",)),
    Row("killed", call("kill"), "crashed", runs=2, pools=("prefork",)),
    Row("exit", call("exit"), "crashed", runs=2, pools=("prefork",)),
    Row("exit outside of prefork", call("exit"), "failed", pools=("threads", "solo")),
    Row("killed, early", call("kill", "ends_early"), "worker_lost", pools=("prefork",)),
    Row("killed, not waited for", call("kill", "ends_lost"), "worker_lost", pools=("prefork",)),
    Row("hard limit, early", call("hard", "ends_early", time_limit=1), "time_limit", errbacks=2, pools=("prefork",)),
    Row("expired", call("expired", expires=-1), "expired", state="REVOKED", runs=0, errbacks=0),
]


@pytest.mark.parametrize("row", [row for row in ROWS if "prefork" in row.pools], ids=lambda row: row.name)
def test_an_end_on_prefork(shop: Floor, row: Row) -> None:
    """One letter with its reason and id; the state Celery gives; the errback as often as Celery calls it."""
    check(shop, row, "prefork")


@pytest.mark.parametrize("pool", ["threads", "solo"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_end_on_other_pools(shop: Floor, row: Row, pool: str) -> None:
    """As on prefork, where the pool has this end."""
    if pool in row.pools:
        check(shop, row, pool)


def check(shop: Floor, row: Row, pool: str) -> None:
    worker = shop.worker(pool=pool)
    task_id = row.send(shop)
    shop.wait(lambda: len(shop.letters()) == 1, 40, "the letter")
    after = shop.task("add").delay(1, 1)
    assert after.get(timeout=20) == 2
    shop.wait(lambda: shop.traces.count("errback") >= row.errbacks, 10, "the errbacks")
    (letter,) = shop.letters()
    assert (letter.reason, letter.task_id) == (row.reason, task_id)
    assert shop.app.AsyncResult(task_id).state == row.state
    assert shop.traces.count("ends") == row.runs
    assert shop.traces.count("errback") == row.errbacks
    assert worker.alive()
