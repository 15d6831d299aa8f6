"""Every end that Celery knows leaves one letter, on every broker and pool, and the worker goes on."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from celery_patterns._queues import queue_length

from .harness import ROOT, Floor, floor


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


def revoke(**options: Any) -> Callable[[Floor], str]:
    """Call off a task that waits for its time, or one that runs."""
    running = bool(options)

    def send(shop: Floor) -> str:
        task_id = call("terminated" if running else "revoked", **({} if running else {"countdown": 4}))(shop)
        if running:
            shop.wait(lambda: shop.traces.count("ends") == 1, what="the task's start")
        shop.app.control.revoke(task_id, **options)
        return task_id

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
    Row("revoked", revoke(), "revoked", state="REVOKED", runs=0, errbacks=0),
    Row(
        "terminated",
        revoke(terminate=True, signal="SIGKILL"),
        "revoked",
        state="REVOKED",
        errbacks=0,
        pools=("prefork",),
    ),
    Row("expired", call("expired", expires=-1), "expired", state="REVOKED", runs=0, errbacks=0),
]


BROKERS = ("redis", "rabbitmq", "quorum")
#: What every run of the tests has: each row on prefork with each broker, and on each other pool once.
ALWAYS = {("prefork", broker) for broker in BROKERS} | {("threads", "redis"), ("solo", "rabbitmq")}
PRODUCT = [
    pytest.param(
        row,
        pool,
        broker,
        id=f"{row.name}-{pool}-{broker}",
        marks=() if (pool, broker) in ALWAYS else (pytest.mark.long,),
    )
    for row in ROWS
    for pool in row.pools
    for broker in BROKERS
]


@pytest.mark.parametrize(("row", "pool", "kind"), PRODUCT)
def test_an_end(request: pytest.FixtureRequest, tmp_path: Path, row: Row, pool: str, kind: str) -> None:
    """One letter with its reason and id; the state Celery gives; the errback as often as Celery calls it; a worker that goes on."""
    database = request.getfixturevalue("database")
    environment = {
        "FLOOR_BROKER": database if kind == "redis" else request.getfixturevalue("rabbit"),
        **{f"FLOOR_{name}": database for name in ("BACKEND", "STORE", "TRACES")},
        **({"FLOOR_QUEUE_TYPE": "quorum"} if kind == "quorum" else {}),
    }
    with floor(environment, tmp_path) as shop:
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
    assert standing(shop) == 1


def standing(shop: Floor) -> int:
    """How many messages are in the dead-letter queue; a list of letters shows two of one death as one."""
    with shop.app.connection_for_read() as connection:
        if connection.transport.driver_type == "redis":
            return int(connection.default_channel.client.llen(shop.dead))
        return queue_length(connection, shop.dead) or 0


@pytest.mark.parametrize("restarts", [1, 3])
def test_a_rolling_restart_is_no_crash(shop: Floor, restarts: int) -> None:
    """What a worker gives back unstarted has crashed nothing: the body still runs as often as it may."""
    task_id = shop.task("killer").apply_async(("o-1",), countdown=3 + 4 * restarts).id
    for _ in range(restarts):
        _hold_and_stop(shop, task_id)
    shop.worker(concurrency=1)
    shop.wait(lambda: len(shop.letters()) == 1, 60, "the letter")
    assert shop.traces.count("kills") == 3
    assert shop.letters()[0].reason == "crashed"


def _hold_and_stop(shop: Floor, task_id: str) -> None:
    worker = shop.worker(concurrency=1)
    shop.wait(lambda: task_id in worker.text(), what="the message")
    assert worker.stop() == 0


def raw(
    shop: Floor,
    *,
    body: Any = b'[["raw"], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]',
    content_type: str | None = "application/json",
    encoding: str = "utf-8",
    properties: dict[str, Any] | None = None,
    **headers: Any,
) -> str:
    """Send a message as it is, with the headers of a good one of ``ends`` where nothing else is said."""
    task_id = str(uuid.uuid4())
    good = {
        "lang": "py",
        "task": "ends",
        "id": task_id,
        "root_id": task_id,
        "retries": 0,
        "argsrepr": "",
        "kwargsrepr": "",
    }
    kept = {name: value for name, value in {**good, **headers}.items() if value is not ABSENT}
    with shop.app.connection_for_write() as connection, connection.Producer() as producer:
        producer.publish(
            body,
            exchange="",
            routing_key=shop.queue,
            headers=kept,
            content_type=content_type,
            content_encoding=encoding,
            **(properties or {"correlation_id": task_id}),
        )
    return task_id


ABSENT: Any = object()


def test_the_page_tells_each_reason_that_is_shown_here() -> None:
    """The table of ends has each reason that a row above shows, and no other."""
    page = (ROOT / "docs/patterns/dead-letter.md").read_text(encoding="utf-8")
    table = page.partition("## Every end, and its reason")[2].partition("\n\n|")[2].partition("\n\n")[0]
    told = {line.split("|")[-4].strip(" `") for line in table.splitlines()[2:]}
    assert told == {row.reason for row in ROWS} | {reason for _, _, reason in DAMAGED}


def test_a_letter_that_is_refused_for_a_while(shop: Floor) -> None:
    """The dead-letter queue takes nothing for some seconds: nothing is acknowledged, nothing runs again, no hot loop."""
    worker = shop.worker()
    with _refusing(shop):
        call("reject")(shop)
        shop.wait(lambda: worker.text().count("dead_letter_postponed") >= 3, 30, "three tries")
        assert shop.task("add").delay(1, 1).get(timeout=20) == 2
        assert worker.text().count("dead_letter_postponed") < 6
    shop.wait(lambda: len(shop.letters()) == 1, 30, "the letter")
    assert shop.traces.count("ends") == 1
    assert shop.task("add").delay(1, 1).get(timeout=20) == 2


@pytest.mark.parametrize(
    "broker", ["redis"], indirect=True
)  # RabbitMQ has no such timeout: there it takes five minutes
def test_what_cannot_be_buried_goes_back(shop: Floor) -> None:
    """Half a visibility timeout was in vain: the message is in its queue again, and its task runs once more, as is said."""
    worker = shop.worker(FLOOR_VISIBILITY="6")
    with _refusing(shop):
        call("reject")(shop)
        raw(shop, body=b"[[")
        shop.wait(lambda: worker.text().count("dead_letter_not_published") >= 2, 40, "both given up")
        assert shop.task("add").delay(1, 1).get(timeout=20) == 2
    shop.wait(lambda: len(shop.letters()) == 2, 40, "the letters")
    assert {letter.reason for letter in shop.letters()} == {"rejected", "unreadable"}
    assert shop.traces.count("ends") >= 2
    assert worker.alive()


@contextmanager
def _refusing(shop: Floor) -> Iterator[None]:
    with shop.app.connection_for_write() as connection:
        channel: Any = connection.default_channel
        if connection.transport.driver_type == "redis":
            channel.client.set(shop.dead, "no list")
        else:
            full = {"x-max-length": 0, "x-overflow": "reject-publish"}
            channel.queue_declare(shop.dead, durable=True, auto_delete=False, arguments=full)
        yield
        if connection.transport.driver_type == "redis":
            channel.client.delete(shop.dead)
        else:
            channel.queue_delete(shop.dead)


DAMAGED = [
    ("cut", {"body": b'[["raw"], {}, {"call'}, "unreadable"),
    ("not utf-8", {"body": b'[["\xff\xfe"], {}, {}]'}, "unreadable"),
    ("unknown mark", {"body": b'[[{"__type__": "x", "__value__": 1}], {}, {}]'}, "unreadable"),
    ("deep", {"body": b"[" * 100_000}, "unreadable"),
    ("compressed by nobody", {"compression": "application/x-gzip"}, "unreadable"),
    ("pickle", {"content_type": "application/x-python-serialize", "encoding": "binary"}, "content_type_refused"),
    ("no content type", {"content_type": "application/nothing"}, "content_type_refused"),
    ("a number", {"body": b"5"}, "malformed"),
    ("two parts", {"body": b"[[], {}]"}, "malformed"),
    ("args no list", {"body": b'["raw", {}, {}]'}, "malformed"),
    ("kwargs no mapping", {"body": b"[[], [], {}]"}, "malformed"),
    ("embedded no mapping", {"body": b'[["raw"], {}, 7]'}, "malformed"),
    ("time limit no pair", {"timelimit": "abc"}, "malformed"),
    ("time limit no numbers", {"timelimit": ["a", "b"]}, "malformed"),
    ("retries no number", {"retries": "many"}, "malformed"),
    ("eta no time", {"eta": "tomorrow"}, "malformed"),
    ("expires no time", {"expires": {"a": 1}}, "malformed"),
    ("id a list", {"id": ["a"]}, "malformed"),
    ("no id", {"id": ABSENT}, "malformed"),
    ("task a mapping", {"task": {"a": 1}}, "malformed"),
    ("no task", {"task": ABSENT}, "malformed"),
    ("unknown task", {"task": "nobody.knows"}, "unknown_task"),
    ("unknown task without id", {"task": "nobody.knows", "id": ABSENT}, "malformed"),
    ("callbacks no signatures", {"body": b'[["raw"], {}, {"callbacks": [1]}]'}, "malformed"),
    ("chain no signatures", {"body": b'[["raw"], {}, {"chain": [5]}]'}, "malformed"),
    ("chord no signature", {"body": b'[["raw"], {}, {"chord": 5}]'}, "malformed"),
    ("arguments it does not take", {"body": b'[["raw", 1, 2], {}, {}]'}, "failed"),
]


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_damaged_messages(shop: Floor, pool: str) -> None:
    """Whatever is wrong with a message: one letter that says what, its bytes unchanged, and the worker goes on."""
    worker = shop.worker(pool=pool)
    sent = {}
    for name, damage, reason in DAMAGED:
        headers = damage.copy()
        sent[raw(shop, **headers)] = name, reason
    shop.wait(lambda: len(shop.letters()) >= len(DAMAGED), 30, "a letter for each")
    assert shop.task("add").delay(1, 1).get(timeout=20) == 2
    letters = shop.letters()
    assert len(letters) == len(DAMAGED)
    assert worker.alive()
    reasons = {letter.task_id: letter.reason for letter in letters if letter.task_id}
    for task_id, (name, reason) in sent.items():
        if task_id in reasons:
            assert (name, reasons[task_id]) == (name, reason)


def _mutated(rng: random.Random, number: int) -> dict[str, Any]:
    """A message of ``swallow`` with something wrong about it, or about several things."""
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    body: bytes = json.dumps([[number], {}, embed]).encode()
    made: dict[str, Any] = {"task": "swallow", "id": f"m-{number}"}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        how = rng.choice(("cut", "flip", "type", "header", "drop", "content", "huge", "deep", "shape", "embed"))
        if how == "cut":
            body = body[: rng.randrange(len(body) + 1)]
        elif how == "flip" and body:
            at = rng.randrange(len(body))
            body = body[:at] + bytes([body[at] ^ (1 << rng.randrange(8))]) + body[at + 1 :]
        elif how == "type":
            body = json.dumps(rng.choice(ODD)).encode()
        elif how == "header":
            # Not kombu's own mark: Redis messages are JSON as a whole, and what kombu cannot read there ends any worker.
            made[rng.choice(HEADERS)] = rng.choice(ODD[:-1])
        elif how == "drop":
            made[rng.choice(("task", "id", "lang", "retries", "argsrepr"))] = ABSENT
        elif how == "content":
            made["content_type"] = rng.choice(
                ("application/x-yaml", "text/plain", "", "application/x-python-serialize")
            )
        elif how == "huge":
            body = json.dumps([[number, "x" * 300_000], {}, embed]).encode()
        elif how == "deep":
            body = b"[" * rng.choice((10, 5_000)) + body
        elif how == "shape":
            parts = [[number], {}, embed]
            parts[rng.randrange(3)] = rng.choice(ODD)
            body = json.dumps(parts).encode()
        elif how == "embed":
            odd = {**embed, rng.choice(("callbacks", "errbacks", "chain", "chord")): rng.choice(ODD)}
            body = json.dumps([[number], {}, odd]).encode()
    return {**made, "body": body}


ODD: list[Any] = [5, -1, "text", "", [], {}, [1, 2], {"a": 1}, [[]], [{}], True, 1.5, {"__type__": "x", "__value__": 1}]
HEADERS = (
    "task", "id", "lang", "retries", "timelimit", "eta", "expires", "shadow", "root_id", "parent_id", "group", "group_index",
    "argsrepr", "kwargsrepr", "origin", "ignore_result", "stamped_headers", "stamps", "replaced_task_nesting",
    "celery_patterns", "compression", "reply_to", "correlation_id",
)  # fmt: skip


@pytest.mark.parametrize("pool", ["prefork", pytest.param("threads", marks=pytest.mark.long)])
def test_two_thousand_mutated_messages(shop: Floor, pool: str) -> None:
    """Among healthy tasks: those are done, the worker lives, and each mutated message ran or is one letter."""
    worker = shop.worker(pool=pool)
    rng = random.Random(7)
    for number in range(2000):
        made = _mutated(rng, number)
        raw(shop, **made, properties={"correlation_id": f"m-{number}"})
        if number % 10 == 0:
            shop.task("note").delay(number)
    shop.wait(lambda: shop.traces.count("noted") == 200, 120, "the healthy tasks")
    shop.wait(lambda: len(_settled(shop)) == 2000, 60, f"all; there are {len(_settled(shop))}")
    assert worker.alive()


def _settled(shop: Floor) -> list[Any]:
    return [*shop.letters(), *shop.traces.all("swallowed")]
