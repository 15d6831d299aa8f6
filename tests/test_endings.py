"""Every end that Celery knows leaves one letter, on every broker and pool, and the worker goes on."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import chord

from celery_patterns._queues import queue_length

from .endings import ABSENT, NEW, ROWS, Row, call, raw
from .endings_table import PAGE, with_table
from .harness import BROKERS, Floor

#: What every run of the tests has: each row on prefork with each broker, and on each other pool once.
ALWAYS = {("prefork", broker) for broker in BROKERS} | {("threads", "redis"), ("solo", "rabbitmq"), ("gevent", "redis")}
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
def test_an_end(corner: Floor, row: Row, pool: str) -> None:
    """One letter, or none where that is said, with its reason and id; the state Celery gives; the errback as often as Celery
    calls it; a worker that goes on."""
    # With a second slot the next attempt may store its SUCCESS before this one its RETRY, and Celery keeps the latter.
    worker = corner.worker(pool=pool, concurrency=1 if row.shown == "RETRY" else 2)
    task_id = row.send(corner)
    if row.reason is None:
        corner.wait(lambda: row.over(corner, task_id), 40, "the end")
    else:
        corner.wait(lambda: len(corner.letters()) == 1, 40, "the letter")
    assert corner.task("add").delay(1, 1).get(timeout=20) == 2
    corner.wait(lambda: corner.traces.count("errback") >= row.errbacks, 10, "the errbacks")
    letters = corner.letters()
    named = [(letter.reason, letter.task_id) for letter in letters]
    assert named == ([] if row.reason is None else [(row.reason, task_id)])
    corner.wait(lambda: corner.app.AsyncResult(task_id).state == row.state, 10, f"the state {row.state}")
    assert corner.traces.count("ends") == row.runs
    assert corner.traces.count("errback") == row.errbacks
    assert worker.alive()
    assert standing(corner) == len(letters)


CHORDS = [
    pytest.param(row, kind, id=f"{row.name}-{kind}", marks=() if kind == "redis" else (pytest.mark.long,))
    for row in ROWS
    if row.chord is not None and "prefork" in row.pools
    for kind in BROKERS
]


@pytest.mark.parametrize(("row", "kind"), CHORDS)
def test_the_end_of_a_chords_member(corner: Floor, row: Row) -> None:
    """The chord hears of it once, or as often as plain Celery tells it."""
    worker = corner.worker()
    ended = row.signature(corner)
    told = corner.task("failed_errback").si("chord")
    result = chord([ended, corner.task("add").s(1, 1)])(corner.task("collect").s().on_error(told))
    expected = row.chord
    corner.wait(lambda: result.state == ("SUCCESS" if expected == 0 else "FAILURE"), 40, "the chord's end")
    corner.wait(lambda: corner.traces.count("errback") >= (expected or 0), 10, "the errbacks")
    if row.reason is not None:
        corner.wait(lambda: len(corner.letters()) == 1, 40, "the letter")
    assert corner.task("add").delay(1, 1).get(timeout=20) == 2
    assert corner.traces.count("collected") == (1 if expected == 0 else 0)
    assert corner.traces.count("errback") == expected
    assert [letter.reason for letter in corner.letters()] == ([] if row.reason is None else [row.reason])
    assert worker.alive()


def standing(shop: Floor) -> int:
    """How many messages are in the dead-letter queue; a list of letters shows two of one death as one."""
    with shop.app.connection_for_read() as connection:
        if connection.transport.driver_type == "redis":
            return int(connection.default_channel.client.llen(shop.dead))
        return queue_length(connection, shop.dead) or 0


@pytest.mark.skipif(not NEW, reason="the page tells of the newest Celery, and in a word of those before")
def test_the_page_tells_each_end() -> None:
    """The page's table of ends is made from these rows; ``python -m tests.endings_table`` writes it."""
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "run: python -m tests.endings_table"


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
            channel.queue_delete(shop.dead)  # the worker's
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


#: What every run of the tests has; the other brokers, pools and seeds take minutes.
MUTATED_ALWAYS = {("redis", "prefork", 7), ("rabbitmq", "prefork", 7)}
MUTATED = [
    pytest.param(kind, pool, seed, marks=() if (kind, pool, seed) in MUTATED_ALWAYS else (pytest.mark.long,))
    for kind in BROKERS
    for pool in ("prefork", "threads", "solo", "gevent")
    for seed in (7, 11, 23)
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "pool", "seed"), MUTATED)
def test_two_thousand_mutated_messages(corner: Floor, pool: str, seed: int) -> None:
    """Among healthy tasks: those are done, the worker lives, and each mutated message ran or is one letter."""
    # Under gevent Celery sees an acknowledgement on Redis only every two seconds: one at a time would take an hour. On
    # RabbitMQ it takes a tenth of a second for each message, with or without us.
    worker = corner.worker(pool=pool, FLOOR_PREFETCH="50" if pool == "gevent" else "1")
    rng = random.Random(seed)
    for number in range(2000):
        made = _mutated(rng, number)
        raw(corner, **made, properties={"correlation_id": f"m-{number}"})
        if number % 10 == 0:
            corner.task("note").delay(number)
    corner.wait(lambda: corner.traces.count("noted") == 200, 400, "the healthy tasks")
    corner.wait(lambda: len(_settled(corner)) == 2000, 60, f"all; there are {len(_settled(corner))}")
    assert worker.alive()


def _settled(shop: Floor) -> list[Any]:
    return [*shop.letters(), *shop.traces.all("swallowed")]
