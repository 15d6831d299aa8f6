"""Working with letters: choosing, grouping, replaying, correcting, keeping. On both brokers, killed and shared."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import select
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections import Counter
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.utils.saferepr import saferepr
from kombu import Exchange, Queue

import celery_patterns as patterns
from celery_patterns import dead_letter, dead_letters, idempotent
from celery_patterns._dead_letter import STARTS_TTL, starts_key
from celery_patterns._equipment import equipment_of
from celery_patterns._letter import LETTER, Letter, header_of
from celery_patterns._message import HEADER
from celery_patterns.exceptions import (
    BackendUnavailable,
    ConfigurationError,
    LetterNotFound,
    PublishFailed,
    UnsafeValue,
)
from celery_patterns.letters import _flight, _rabbitmq, _redis
from celery_patterns.letters._canary import unhappy
from celery_patterns.letters._causes import causes_of
from celery_patterns.letters._filter import Filter
from celery_patterns.letters._rabbitmq import OnRabbitMQ
from celery_patterns.stores import MemoryStore

from .endings import ABSENT, raw
from .harness import ROOT, Floor
from .here import run_here
from .servers import RabbitServer, RedisServer, wait_until

#: A delivery that no channel has had: to acknowledge it makes RabbitMQ close the channel.
NO_TAG = 10_000


def made(broker: str, queue: str, backend: str | None = None) -> Celery:
    app = Celery("replays", broker=broker, backend=backend, set_as_current=False)
    patterns.use_patterns(app)
    patterns.use_store(app, MemoryStore())
    patterns.use_strict_json(app)
    app.conf.task_default_queue = queue
    declare(app, queue)
    return app


def declare(app: Celery, queue: str) -> None:
    with app.connection_for_write() as connection:
        app.amqp.queues[queue](connection.default_channel).declare()


@pytest.fixture
def app(broker: str, queue: str) -> Any:
    app = made(broker, queue)
    yield app
    app.close()


def failing(app: Celery, name: str = "fails") -> Any:
    @app.task(shared=False, name=name)
    @dead_letter(f"{app.conf.task_default_queue}.dead")
    def task(order: Any, amount: int = 1, *, note: str = "", error: str = "value") -> None:
        if error == "key":
            raise KeyError(order)
        raise ValueError(f"cannot do {order}")

    return task


def messages(app: Celery, queue: str) -> list[Any]:
    """Everything in a queue, taken out."""
    found = []
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        try:
            while (raw := channel.basic_get(queue)) is not None:
                message = channel.message_to_python(raw)
                message.ack()
                found.append(message)
        except connection.channel_errors:  # no such queue
            return found
    return found


def full_queue(app: Celery, queue: str, *, holds: int) -> str:
    """A queue that refuses what is more than so many messages."""
    full = Queue(f"{queue}-full", queue_arguments={"x-max-length": holds, "x-overflow": "reject-publish"})
    with app.connection_for_write() as connection:
        full(connection.default_channel).declare()
    return str(full.name)


def written_by_hand(app: Celery, dead: str, **fields: Any) -> Letter:
    """A letter that no run wrote, published like one."""
    default = app.conf.task_default_queue
    known: dict[str, Any] = {
        "id": uuid.uuid4().hex,
        "task": "by.hand",
        "task_id": str(uuid.uuid4()),
        "root_id": None,
        "reason": "failed",
        "error": "builtins.ValueError",
        "message": "",
        "traceback": "",
        "attempt": 1,
        "queue": default,
        "exchange": "",
        "routing_key": default,
        "priority": None,
        "first_published": 0.5,
        "first_started": 1.0,
        "died_at": time.time(),
        "worker": None,
    }
    body = fields.pop("body", b'[["o-1"], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]')
    headers = fields.pop("headers", {})
    more, bare = fields.pop("publish", {}), fields.pop("bare", False)
    letter = Letter(**{**known, **fields})
    celerys = {"id": letter.task_id, "task": letter.task, "argsrepr": "('o-1',)", "kwargsrepr": "{}"}
    headers = {**({} if letter.task is None or bare else celerys), **headers}

    def send(producer: Any) -> None:
        queue = Queue(dead, durable=True, queue_arguments={"x-queue-type": "classic"})
        if producer.connection.transport.driver_type == "amqp":
            queue(producer.channel).declare()
        producer.publish(
            body,
            exchange="",
            routing_key=dead,
            headers={**headers, LETTER: header_of(letter)},
            content_type=more.pop("content_type", "application/json"),
            content_encoding=more.pop("content_encoding", "utf-8"),
            **more,
        )

    equipment_of(app).publisher.publish(send)
    return letter


def in_another_process(broker: str, dead: str, code: str) -> subprocess.Popen[str]:
    """An operator of their own: an app, its ``letters``, and what they do; ``knows()`` makes the app know the task's key."""
    lines = f"""
        import sys
        from datetime import timedelta
        from celery import Celery
        from celery_patterns import dead_letter, dead_letters, idempotent, stores, use_patterns, use_store
        app = Celery(broker={broker!r})
        use_patterns(app)
        use_store(app, stores.MemoryStore())
        letters = dead_letters(app, {dead!r})
        def knows():
            @app.task(name="keyed")
            @idempotent(key="number", ttl=timedelta(hours=1))
            @dead_letter({dead!r})
            def keyed(number): ...
        def told(letter, error):
            sys.stdout.write(f"{{letter.id}} {{error}}\\n")
            sys.stdout.flush()
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(lines) + textwrap.dedent(code)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


# Choosing


def test_a_selection_is_narrowed_by_each_word(app: Celery, dead: str) -> None:
    """Task, reason, error with its module or without, moment, id, root id and limit; twice narrowed is both."""
    now = time.time()
    old = written_by_hand(app, dead, task="a", died_at=now - 7200, error="shop.errors.TooSoon")
    new = written_by_hand(app, dead, task="b", reason="crashed", root_id="r-1")
    letters = dead_letters(app, dead)
    hour, three = timedelta(hours=1), datetime.now(timezone.utc) - timedelta(hours=3)
    assert [one.id for one in letters] == [old.id, new.id]
    for chosen, expected in (
        ({"task": "a"}, [old]),
        ({"reason": "crashed"}, [new]),
        ({"error": "TooSoon"}, [old]),
        ({"error": "shop.errors.TooSoon"}, [old]),
        ({"error": "ValueError"}, [new]),
        ({"error": "Error"}, []),
        ({"since": hour}, [new]),
        ({"until": hour}, [old]),
        ({"since": three}, [old, new]),
        ({"since": three, "until": hour}, [old]),
        ({"id": old.id}, [old]),
        ({"root_id": "r-1"}, [new]),
        ({"limit": 1}, [old]),
        ({"task": "b", "limit": 1}, [new]),
        ({"task": "nobody's"}, []),
    ):
        assert list(letters.where(**chosen)) == expected, chosen
        assert letters.where(**chosen).count() == len(expected)
    assert list(letters.where(task="a").where(task="b")) == []
    assert letters.where(task="a").where(task="b").replay_all().sent == 0
    assert list(letters.where(limit=2).where(task="b", limit=5)) == [new]
    assert list(letters.where(since=three).where(since=hour)) == [new]
    assert letters.where(task="b")[new.id] == new
    with pytest.raises(LetterNotFound):
        letters.where(task="b")[old.id]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"task": 5}, "expected task to be a text, got 5"),
        ({"error": ""}, "expected error to be a text"),
        ({"reason": "tired"}, "expected reason to be one of buried_by_broker, .*; got 'tired'"),
        ({"since": datetime(2026, 1, 1)}, "has no zone; expected one"),
        ({"since": 5}, "expected since to be a datetime with a zone, or a timedelta"),
        ({"until": timedelta(days=-1)}, "a timedelta of at least 0 ago"),
        ({"since": timedelta(hours=1), "until": timedelta(hours=2)}, "is later than until"),
        ({"limit": 0}, "expected limit to be at least 1"),
        ({"limit": True}, "expected limit to be at least 1"),
    ],
)
def test_a_wrong_choice_is_told_at_once(rabbit: str, wrong: dict[str, Any], said: str) -> None:
    """Before anything is read, with what was expected."""
    with pytest.raises(ConfigurationError, match=said):
        dead_letters(Celery(broker=rabbit, set_as_current=False), "q").where(**wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rate": 0}, "expected rate to be letters a second, over 0"),
        ({"rate": float("nan")}, "expected rate"),
        ({"rate": "5"}, "expected rate"),
        ({"canary": 0}, "expected canary to be at least 1"),
        ({"canary": 2}, "this app has none; expected an app with a shared result backend"),
        ({"canary_timeout": 5}, "expected canary_timeout to be a timedelta over 0"),
        ({"to": ""}, "expected to to be a queue's name"),
        ({"to": "DEAD"}, "is where the letters are"),
        ({"to": "no-such-queue-anywhere"}, "queue 'no-such-queue-anywhere'"),
        ({"correct": [1]}, "expected correct to hold values by name"),
        ({"correct": {"nosuch": 1}}, "has no argument 'nosuch'; its arguments are: order, amount, note, error"),
    ],
)
def test_a_wrong_replay_sends_nothing(app: Celery, queue: str, dead: str, wrong: dict[str, Any], said: str) -> None:
    """It is refused before the first letter, which stays."""
    run_here(failing(app), "o-1")
    if wrong.get("to") == "DEAD":
        wrong = {"to": dead}
    letters = dead_letters(app, dead)
    with pytest.raises(ConfigurationError, match=said):
        letters.replay_all(**wrong)
    assert letters.count() == 1
    assert messages(app, queue) == []


# Grouping


def test_letters_of_one_bug_are_one_cause(app: Celery, dead: str) -> None:
    """Task, type of error and place in the code; other arguments make no other cause, another line of code does."""
    task = failing(app)
    for number in range(3):
        run_here(task, number)
    run_here(task, 7, error="key")
    run_here(failing(app, "other"), 1)
    causes = dead_letters(app, dead).stats()
    assert [(cause.task, cause.error, cause.count) for cause in causes] == [
        ("fails", "builtins.ValueError", 3),
        ("fails", "builtins.KeyError", 1),
        ("other", "builtins.ValueError", 1),
    ]
    first = causes[0]
    letters = list(dead_letters(app, dead))
    assert (first.example, first.first_died, first.last_died) == (
        letters[0].id,
        letters[0].died_at,
        letters[2].died_at,
    )
    assert first.place == "tests/test_replay.py, in task"
    assert len({cause.fingerprint for cause in causes}) == 3
    for cause in causes:
        chosen = dead_letters(app, dead).where(cause=cause.fingerprint)
        assert (chosen.stats(), chosen.count()) == ([cause], cause.count)


TRACE = """Traceback (most recent call last):
  File "{folder}/shop/orders.py", line {line}, in charge
    {code}
    ~~~~~~~~^^^^^^^
  File "/usr/lib/python3.12/json/decoder.py", line 353, in decode
    <function at {address}>
ValueError: order {order}
"""


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ({"order": "o-2"}, True),
        ({"line": "90"}, True),
        ({"address": "0x7f00deadbeef"}, True),
        ({"folder": "/releases/2026-11-25"}, True),
        ({"code": "pay(order, cents)"}, False),
    ],
)
def test_a_fingerprint_is_of_the_place_alone(other: dict[str, str], same: bool) -> None:
    """Not of arguments, addresses, releases or line numbers; but of the line of code."""
    usual = {
        "folder": "/releases/1",
        "line": "12",
        "code": "pay(order)",
        "address": "0x7f1234",
        "order": "o-1",
    }
    letters = [died_with(TRACE.format(**values)) for values in (usual, {**usual, **other})]
    causes = causes_of(letters)
    assert [cause.count for cause in causes] == ([2] if same else [1, 1])
    assert {cause.place for cause in causes} == {"shop/orders.py, in charge"}


def died_with(traceback: str, **fields: Any) -> Letter:
    """A letter that stands nowhere."""
    known: dict[str, Any] = {
        **dict.fromkeys(("task_id", "root_id", "priority", "worker")),
        "id": uuid.uuid4().hex,
        "task": "t",
        "reason": "failed",
        "error": "builtins.ValueError",
        "message": "",
        "attempt": 1,
        "queue": "q",
        "exchange": "",
        "routing_key": "q",
        "first_started": 1.0,
        "died_at": 1.0,
    }
    return Letter(**{**known, **fields, "traceback": traceback})


SITE = "/srv/venv/lib/python3.12/site-packages"


@pytest.mark.parametrize(
    ("files", "place"),
    [
        (["/app/shop/orders.py", f"{SITE}/requests/api.py"], "requests/api.py, in f"),
        (
            ["/app/shop/orders.py", f"{SITE}/kombu/connection.py", f"{SITE}/celery_patterns/_call.py"],
            "shop/orders.py, in f",
        ),
        (["/app/shop/orders.py", "/usr/lib/python3.12/json/decoder.py"], "shop/orders.py, in f"),
        (["/app/shop/orders.py", "/opt/pypy/lib/pypy3.10/json/decoder.py"], "shop/orders.py, in f"),
        (["/app/shop/orders.py", "<frozen importlib._bootstrap>"], "shop/orders.py, in f"),
        (["C:\\shop\\orders.py", "C:\\Python312\\Lib\\json\\decoder.py"], "shop/orders.py, in f"),
        (["/srv/celery/tasks.py"], "celery/tasks.py, in f"),
        (["/home/me/python3/kombu/tasks.py"], "kombu/tasks.py, in f"),
        ([f"{SITE}/celery_patterns/_dead_letter.py", f"{SITE}/celery/app/trace.py"], ""),
        (["/checkout/src/celery_patterns/_plan.py", "/usr/lib64/python3.12/inspect.py"], ""),
    ],
)
def test_a_place_is_where_something_can_be_mended(files: list[str], place: str) -> None:
    """The innermost frame that is not ours, Celery's or Python's own; where there is none, the reason tells more."""
    frames = "".join(f'  File "{file}", line 1, in f\n    call()\n' for file in files)
    (cause,) = causes_of([died_with(f"Traceback (most recent call last):\n{frames}ValueError\n")])
    assert cause.place == place


def test_what_has_no_place_is_told_apart_by_its_reason() -> None:
    """Other releases of ours are no other cause, another type of error is."""
    ours = '  File "{}/celery_patterns/_plan.py", line 1, in f\n    {}\n'
    first, second = (died_with(ours.format(SITE, code), reason="crashed") for code in ("old()", "new()"))
    third = died_with(ours.format(SITE, "old()"))
    fourth = died_with(ours.format(SITE, "old()"), error="builtins.TypeError")
    assert [cause.count for cause in causes_of([first, second, third, fourth])] == [2, 1, 1]


def test_a_task_that_never_ran_has_no_place(app: Celery, dead: str) -> None:
    """One whose arguments are missing, and one that was started too often."""
    run_here(failing(app))

    @app.task(shared=False, name="poison")
    @dead_letter(dead)
    def poison() -> None: ...

    for start in "abc":
        equipment_of(app).store.count_start(starts_key("poison", "p/0", 1), start, ttl=STARTS_TTL)
    run_here(poison, task_id="p", redelivered=True)
    causes = {cause.reason: cause for cause in dead_letters(app, dead).stats()}
    assert (causes["failed"].error, causes["failed"].place) == ("builtins.TypeError", "")
    assert causes["crashed"].place == ""


# Replaying: what is sent


def test_what_stands_in_the_target_is_what_kombu_puts_there(database: str, queue: str, dead: str) -> None:
    """Every field of the entry, its list and its type; behind a prefix and with a priority, too."""
    app = made(database, queue)
    app.conf.broker_transport_options = {"global_keyprefix": "pre."}
    letter = written_by_hand(app, dead, priority=6, headers={"retries": 3})
    with app.connection_for_write() as connection:
        app.amqp.Producer(connection, auto_declare=False).publish(
            b'[["o-1"], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]',
            exchange="",
            routing_key=queue,
            headers={"some": 1},
            content_type="application/json",
            content_encoding="utf-8",
            delivery_mode=2,
            correlation_id="c",
            reply_to="",
            priority=6,
        )
    client = redis.Redis.from_url(database)
    name = f"pre.{queue}\x06\x166"
    dead_letters(app, dead).replay(letter)
    ours, kombus = (json.loads(raw) for raw in client.lrange(name, 0, -1))
    tags = [entry["properties"].pop("delivery_tag") for entry in (ours, kombus)]
    assert len(set(tags)) == 2
    assert ours["headers"]["id"] == ours["properties"].pop("correlation_id") == letter.replay_id
    assert kombus["properties"].pop("correlation_id") == "c"
    assert (ours.pop("headers")["retries"], kombus.pop("headers")) == (0, {"some": 1})
    assert ours == kombus
    ours_alone = {key.decode() for key in client.scan_iter() if b"_kombu.binding" not in key}
    assert ours_alone == {name, f"pre._celery_patterns.replayed.{letter.id}"}
    app.close()


def test_a_replay_goes_to_the_one_queue_it_came_from(app: Celery, queue: str, dead: str) -> None:
    """Other queues of its exchange have had their copy, and get no second one."""
    exchange = Exchange(f"{queue}-x", type="topic")
    both = [Queue(f"{queue}-{name}", exchange, routing_key="orders.#") for name in ("one", "two")]
    with app.connection_for_write() as connection:
        for one in both:
            app.amqp.queues.add(one)
            one(connection.default_channel).declare()
    written_by_hand(app, dead, queue=both[1].name, exchange=exchange.name, routing_key="orders.eu")
    assert dead_letters(app, dead).replay_all().sent == 1
    assert [len(messages(app, one.name)) for one in both] == [0, 1]


def test_a_letter_of_no_queue_goes_by_its_exchange(rabbit: str, queue: str, dead: str) -> None:
    """When the queue's name is not known, its exchange and key are all there is."""
    app = made(rabbit, queue)
    exchange = Exchange(f"{queue}-x", type="topic")
    real = Queue(f"{queue}-real", exchange, routing_key="orders.#")
    with app.connection_for_write() as connection:
        real(connection.default_channel).declare()
    written_by_hand(app, dead, queue="orders.eu", exchange=exchange.name, routing_key="orders.eu")
    assert dead_letters(app, dead).replay_all().sent == 1
    assert len(messages(app, real.name)) == 1
    app.close()


@pytest.mark.parametrize("known", [True, False])
def test_a_letter_from_a_fanout_queue_is_refused_on_redis(database: str, queue: str, dead: str, known: bool) -> None:
    """Redis has no list for such a queue: the letter stays, and says what to do, whether the app knows the queue or not."""
    app = made(database, queue)
    everybody = Queue(f"{queue}-all", Exchange(f"{queue}-x", type="fanout"), routing_key="k")
    with app.connection_for_write() as connection:
        everybody(connection.default_channel).declare()
    operator = app if known else Celery(broker=database, set_as_current=False)
    if known:
        app.amqp.queues.add(everybody)
    written_by_hand(app, dead, queue=everybody.name, exchange=f"{queue}-x", routing_key="k")
    report = dead_letters(operator, dead).replay_all()
    assert (report.sent, report.failed, dead_letters(app, dead).count()) == (0, 1, 1)
    assert "expected" in report.failures[0].error
    assert "to= with" in report.failures[0].error
    assert dead_letters(app, dead).replay_all(to=queue).sent == 1
    assert len(messages(app, queue)) == 1
    if known:
        with pytest.raises(ConfigurationError, match="takes what is sent to all"):
            dead_letters(app, dead).replay_all(to=everybody.name)
    app.close()


def test_letters_may_be_sent_elsewhere(app: Celery, queue: str, dead: str) -> None:
    """``to`` names a queue that somebody knows."""
    other = Queue(f"{queue}-other", Exchange(f"{queue}-other"), routing_key=f"{queue}-other")
    with app.connection_for_write() as connection:
        other(connection.default_channel).declare()
    letter = written_by_hand(app, dead)
    written_by_hand(app, dead)
    letters = dead_letters(app, dead)
    letters.replay(letter, to=other.name)
    assert letters.replay_all(to=other.name).sent == 1
    assert (len(messages(app, other.name)), messages(app, queue)) == (2, [])


def test_a_compressed_message_is_sent_as_it_can_be_read(app: Celery, queue: str, dead: str) -> None:
    """It was unpacked here, so nothing says any more that it is packed."""
    written_by_hand(app, dead, publish={"compression": "gzip"})
    assert dead_letters(app, dead).replay_all().sent == 1
    (message,) = messages(app, queue)
    assert (message.payload[0], "compression" in message.headers) == (["o-1"], False)


@pytest.mark.parametrize(
    "body", [b"[", b"\xff\xfe", b"{}", b"[1, 2, 3]", b'[[], {}, {"chord": {"__type__": "nonsense", "__value__": 1}}]']
)
def test_a_damaged_letter_is_replayed_as_it_is(app: Celery, queue: str, dead: str, body: bytes) -> None:
    """Whoever mended the worker may want it back; those behind it are not held up."""
    written_by_hand(app, dead, body=body, headers={HEADER: "nonsense"}, reason="unreadable")
    written_by_hand(app, dead)
    assert dead_letters(app, dead).replay_all().sent == 2
    first, second = messages(app, queue)
    found = first.body.encode() if isinstance(first.body, str) else first.body
    assert found == (body if b"chord" not in body else b'[[], {}, {"chord": null}]')
    assert second.payload[0] == ["o-1"]


# Replaying: how


def test_a_dry_run_counts_and_sends_nothing(app: Celery, queue: str, dead: str) -> None:
    """It also says what could not be sent."""
    written_by_hand(app, dead)
    bad = written_by_hand(app, dead, queue=f"{queue}-gone", exchange=f"{queue}-gone", routing_key="k")
    letters = dead_letters(app, dead)
    on_redis = letters._walk.kind == "redis"  # RabbitMQ tells only when it is sent
    report = letters.replay_all(dry_run=True)
    assert (report.sent, [one.id for one in report.failures]) == ((1, [bad.id]) if on_redis else (2, []))
    assert (letters.count(), messages(app, queue)) == (2, [])


def test_the_rate_is_kept(app: Celery, queue: str, dead: str) -> None:
    """Six letters at twenty a second take a quarter of a second at least."""
    for _ in range(6):
        written_by_hand(app, dead)
    began = time.monotonic()
    assert dead_letters(app, dead).replay_all(rate=20).sent == 6
    assert 0.25 <= time.monotonic() - began < 5
    assert len(messages(app, queue)) == 6


def test_nothing_is_on_its_way_while_the_rate_is_waited_for(app: Celery, queue: str, dead: str) -> None:
    """A letter is told of when it is out, and not a second later when the next one goes: a kill in between doubles nothing."""
    for _ in range(2):
        written_by_hand(app, dead)
    told: list[float] = []
    dead_letters(app, dead).replay_all(rate=1, on_each=lambda *_: told.append(time.monotonic()))
    assert len(told) == 2
    assert told[1] - told[0] > 0.7
    assert len(messages(app, queue)) == 2


def test_each_letter_is_told_of(app: Celery, dead: str) -> None:
    """With None, or with the reason why it could not be sent."""
    good = written_by_hand(app, dead)
    bad = written_by_hand(app, dead, queue="nowhere", exchange="nowhere", routing_key="k")
    told = []
    dead_letters(app, dead).replay_all(on_each=lambda letter, error: told.append((letter.id, type(error))))
    assert told == [(good.id, type(None)), (bad.id, PublishFailed)]


def test_one_letter_alone_says_why_it_cannot_be_sent(app: Celery, dead: str) -> None:
    """``replay`` raises what ``replay_all`` reports; the letter stays."""
    bad = written_by_hand(app, dead, queue="nowhere", exchange="nowhere", routing_key="k")
    letters = dead_letters(app, dead)
    with pytest.raises(PublishFailed):
        letters.replay(bad)
    assert [one.id for one in letters] == [bad.id]


def test_a_report_names_the_first_ten(app: Celery, dead: str) -> None:
    """However many failed."""
    for _ in range(12):
        written_by_hand(app, dead, queue="nowhere", exchange="nowhere", routing_key="k")
    report = dead_letters(app, dead).replay_all()
    assert (report.sent, report.failed, len(report.failures), report.stopped) == (0, 12, 10, None)


def test_a_full_queue_is_waited_for_once(rabbit: str, queue: str, dead: str) -> None:
    """The first letter is tried for 5 seconds, the others once each; all of them stay."""
    app = made(rabbit, queue)
    full = full_queue(app, queue, holds=1)
    with app.connection_for_write() as connection:
        app.amqp.Producer(connection).publish("there first", routing_key=full, confirm_timeout=5)
    for _ in range(20):
        written_by_hand(app, dead)
    began = time.monotonic()
    report = dead_letters(app, dead).replay_all(to=full)
    assert (report.sent, report.failed) == (0, 20)
    assert time.monotonic() - began < 15
    assert dead_letters(app, dead).count() == 20
    app.close()


@pytest.mark.parametrize("keyed", [True, False])
def test_a_full_queue_takes_what_its_consumer_makes_room_for(rabbit: str, queue: str, dead: str, keyed: bool) -> None:
    """Each message that it refuses is tried again by itself, with a key or without; all of them arrive."""
    app = keyed_app(rabbit, queue, dead) if keyed else made(rabbit, queue)
    full = full_queue(app, queue, holds=3)
    expected = {written_by_hand(app, dead).replay_id for _ in range(40)}
    found: list[str] = []
    done = threading.Event()

    def consume() -> None:
        with app.connection_for_read() as connection:
            channel = connection.default_channel
            while not done.is_set():
                raw = channel.basic_get(full, no_ack=True)
                if raw is None:
                    time.sleep(0.01)
                else:
                    found.append(channel.message_to_python(raw).headers["id"])

    consumer = threading.Thread(target=consume)
    consumer.start()
    try:
        report = dead_letters(app, dead).replay_all(to=full)
        wait_until(lambda: len(found) >= 40, 10, "all were consumed")
    finally:
        done.set()
        consumer.join()
    assert (report.sent, report.failed, set(found)) == (40, 0, expected)
    app.close()


def test_a_message_that_is_none_of_celerys_and_cannot_be_sent(rabbit: str, queue: str, dead: str) -> None:
    """It has no id, or its sender's, by which the broker's answer could be told apart from another's; its letter stays."""
    app = keyed_app(rabbit, queue, dead)
    bad = []
    for number in range(30):
        written_by_hand(app, dead)
        if number % 10 == 5:
            gone = {"queue": f"{queue}-gone", "routing_key": f"{queue}-gone", "task": None, "task_id": None}
            foreign = {"body": b"what is this", "publish": {"content_type": "text/plain", "correlation_id": "theirs"}}
            bad.append(written_by_hand(app, dead, **gone, **foreign))
    letters = dead_letters(app, dead)
    report = letters.replay_all()
    assert (report.sent, report.failed) == (30, 3)
    assert {one.id for one in letters} == {letter.id for letter in bad}
    assert len(messages(app, queue)) == 30
    app.close()


# Correcting


def test_a_corrected_argument_is_what_the_task_gets(app: Celery, queue: str, dead: str) -> None:
    """By position, by name, or where a default stood; the rest stays as it is, to the last type."""
    from decimal import Decimal

    task = failing(app)
    run_here(task, "o-1", 7, headers={"argsrepr": "('o-1', 7)", "kwargsrepr": "{}"})
    letter = next(iter(dead_letters(app, dead)))
    assert dead_letters(app, dead).replay(letter, correct={"order": Decimal("5.10"), "note": "late"})
    (message,) = messages(app, queue)
    args, kwargs, _ = message.payload
    assert (args, kwargs) == ([Decimal("5.10"), 7], {"note": "late"})
    assert (message.headers["argsrepr"], message.headers["kwargsrepr"]) == ("(Decimal('5.10'), 7)", "{'note': 'late'}")
    assert message.headers[HEADER]["corrected"] == [
        {"name": "order", "was": '"o-1"', "replay": 1},
        {"name": "note", "was": "not given", "replay": 1},
    ]


def test_the_next_letter_tells_what_was_corrected(app: Celery, queue: str, dead: str) -> None:
    """And so does the one after that: the last ten corrections, a long value cut."""
    task = failing(app)
    run_here(task, "x" * 500, headers={"argsrepr": saferepr(("x" * 500,)), "kwargsrepr": "{}"})
    for number in range(12):
        (letter,) = dead_letters(app, dead)
        assert dead_letters(app, dead).replay_all(correct={"order": f"o-{number}"}).sent == 1
        (message,) = messages(app, queue)
        run_here(task, *message.payload[0], task_id=message.headers["id"], headers=dict(message.headers))
    (letter,) = dead_letters(app, dead)
    assert (letter.message, letter.replay, len(letter.corrected)) == ("cannot do o-11", 12, 10)
    assert letter.corrected[-1] == {"name": "order", "was": '"o-10"', "replay": 12}
    assert all(len(str(one["was"])) <= 200 for one in letter.corrected)


def test_what_was_redacted_stays_so(app: Celery, queue: str, dead: str) -> None:
    """A sender who hid the arguments does not find the old ones in the history, nor the new ones in the header."""
    run_here(failing(app), "secret-1", headers={"argsrepr": "('***',)", "kwargsrepr": "{}"})
    assert dead_letters(app, dead).replay_all(correct={"order": "secret-2"}).sent == 1
    (message,) = messages(app, queue)
    told = json.dumps(message.headers)
    assert ("secret" in told, "***" in told, message.payload[0]) == (False, False, ["secret-2"])
    assert message.headers[HEADER]["corrected"] == [{"name": "order", "was": None, "replay": 1}]


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, {1: 2}, object(), (1, 2)])
def test_a_correction_goes_through_the_strict_encoder(app: Celery, dead: str, value: Any) -> None:
    """What would not arrive as it is is refused, with its name, before anything is sent."""
    run_here(failing(app), 1)
    with pytest.raises(UnsafeValue, match="order"):
        dead_letters(app, dead).replay_all(correct={"order": value})
    assert dead_letters(app, dead).count() == 1


def test_a_correction_must_fit_all_letters_or_none_is_sent(app: Celery, queue: str, dead: str) -> None:
    """The error names the letter and the task's arguments."""
    run_here(failing(app), 1)
    other = written_by_hand(app, dead, body=b"nonsense")
    with pytest.raises(ConfigurationError, match=f"the letter {other.id} cannot be corrected"):
        dead_letters(app, dead).replay_all(correct={"order": 2})
    assert (dead_letters(app, dead).count(), messages(app, queue)) == (2, [])


def test_a_correction_that_no_key_can_be_made_of(app: Celery, queue: str, dead: str) -> None:
    """It is refused before anything is sent, as ``.delay()`` would; a key of the call's own stays what it is."""

    @app.task(shared=False, name="keyed")
    @idempotent(key="order", ttl=timedelta(hours=1))
    @dead_letter(dead)
    def keyed(order: Any) -> None:
        raise ValueError

    run_here(keyed, "o-1")
    letters = dead_letters(app, dead)
    (letter,) = letters
    for use in (
        lambda: letters.replay_all(correct={"order": 1.5}, dry_run=True),
        lambda: letters.replay(letter, correct={"order": 1.5}),
    ):
        with pytest.raises(ConfigurationError, match=f"the letter {letter.id} cannot be corrected: .*order is a float"):
            use()
    assert (letters.count(), messages(app, queue)) == (1, [])
    run_here(keyed, "o-2", headers={HEADER: {"key": "chosen"}})
    assert letters.where(task="keyed", limit=2).count() == 2
    newest = [*letters][-1]
    assert letters.replay(newest, correct={"order": 1.5})


def test_a_letter_whose_arguments_made_no_key_is_corrected(app: Celery, queue: str, dead: str) -> None:
    """It had none that another's could be taken for; two such letters still do not get one key."""

    @app.task(shared=False, name="keyed")
    @idempotent(key=lambda order: order["id"], ttl=timedelta(hours=1))
    @dead_letter(dead)
    def keyed(order: Any) -> None: ...

    body = b'[[null], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'
    first, second = (written_by_hand(app, dead, task="keyed", body=body) for _ in range(2))
    letters = dead_letters(app, dead)
    with pytest.raises(ConfigurationError, match="another letter's"):
        letters.replay_all(correct={"order": {"id": "o-1"}})
    letters.replay(first, correct={"order": {"id": "o-1"}})
    letters.replay(second, correct={"order": {"id": "o-2"}})
    assert [message.payload[0][0]["id"] for message in messages(app, queue)] == ["o-1", "o-2"]


def test_a_letter_that_arrives_meanwhile_keeps_its_own_key(app: Celery, queue: str, dead: str) -> None:
    """What was not there when the correction was tried on all of them is held against their keys, too; it stays."""
    arrived: list[str] = []

    def key_of(order: str) -> str:
        if watched and not arrived:
            arrived.append(order)
            run_here(keyed, "o-2")
        return order

    @app.task(shared=False, name="keyed")
    @idempotent(key=key_of, ttl=timedelta(hours=1))
    @dead_letter(dead)
    def keyed(order: str) -> None:
        raise ValueError

    watched: list[bool] = []
    run_here(keyed, "o-1")
    watched.append(True)
    letters = dead_letters(app, dead)
    report = letters.replay_all(correct={"order": "o-9"})
    assert (report.sent, report.failed, len(arrived)) == (1, 1, 1)
    assert "another letter's" in report.failures[0].error
    assert (letters.count(), len(messages(app, queue))) == (1, 1)


def test_a_correction_that_would_give_several_letters_one_key(app: Celery, queue: str, dead: str) -> None:
    """Only one of them would be run, so nothing is sent; copies that had one key before keep one, and one letter may."""

    @app.task(shared=False, name="keyed")
    @idempotent(key="order", ttl=timedelta(hours=1))
    @dead_letter(dead)
    def keyed(order: str, amount: int = 1) -> None:
        raise ValueError

    for order in ("o-1", "o-2"):
        run_here(keyed, order)
    letters = dead_letters(app, dead)
    for dry_run in (True, False):
        with pytest.raises(ConfigurationError, match=r"with order the key of keyed\(\) would be another letter's"):
            letters.replay_all(correct={"order": "o-9"}, dry_run=dry_run)
        with pytest.raises(ConfigurationError, match="another letter's"):
            letters.replay_all(correct={"order": "o-2"}, dry_run=dry_run)
    assert (letters.count(), messages(app, queue)) == (2, [])
    assert letters.replay_all(correct={"amount": 2}, dry_run=True).sent == 2
    run_here(keyed, "o-1", headers={HEADER: {"key": "chosen"}})
    run_here(keyed, "o-1", task_id="a-copy")
    first, second, given, _ = letters
    assert letters.replay(second, correct={"order": "o-9"})
    assert letters.where(id=given.id).replay_all(correct={"order": "o-9"}, dry_run=True).sent == 1
    assert letters.replay_all(correct={"order": "o-1"}, dry_run=True).sent == 3
    assert first.task == "keyed"


def test_a_correction_that_leaves_a_key_without_its_scope(app: Celery, queue: str, dead: str) -> None:
    """A key of the call's own stays what it is, and would be nobody's: it is refused before anything is sent."""

    @app.task(shared=False, name="scoped")
    @idempotent(key="order", scope="tenant", ttl=timedelta(hours=1))
    @dead_letter(dead)
    def scoped(tenant: str | None, order: str) -> None:
        raise ValueError

    run_here(scoped, "a", "o-1", headers={HEADER: {"key": "chosen"}})
    letters = dead_letters(app, dead)
    with pytest.raises(ConfigurationError, match=r"cannot be corrected: .*tenant is None"):
        letters.replay_all(correct={"tenant": None})
    assert (letters.count(), messages(app, queue)) == (1, [])
    assert letters.replay_all(correct={"tenant": "b"}).sent == 1


def test_without_the_task_only_what_was_named_is_corrected(app: Celery, queue: str, dead: str) -> None:
    """An operator's app may not know the task: an argument that was given by name can be found all the same."""
    body = json.dumps([["o-1"], {"amount": 5}, {"chord": None}]).encode()
    written_by_hand(app, dead, body=body)
    letters = dead_letters(app, dead)
    with pytest.raises(ConfigurationError, match=r"does not know by.hand.* given by name were: amount"):
        letters.replay_all(correct={"order": "o-2"})
    assert letters.replay_all(correct={"amount": 6}).sent == 1
    (message,) = messages(app, queue)
    assert message.payload[:2] == [["o-1"], {"amount": 6}]


def test_a_call_that_was_wrong_can_be_made_right(app: Celery, queue: str, dead: str) -> None:
    """An argument that was missing is supplied; a call that would still be refused is refused here."""
    failing(app, "by.hand")
    written_by_hand(app, dead, body=b"[[], {}, {}]")
    letters = dead_letters(app, dead)
    with pytest.raises(
        ConfigurationError, match="would refuse the corrected call: missing a required argument: 'order'"
    ):
        letters.replay_all(correct={"amount": 3})
    assert letters.replay_all(correct={"order": "o-9"}).sent == 1
    assert messages(app, queue)[0].payload[1] == {"order": "o-9"}


def test_a_corrected_argument_changes_the_key_by_the_keys_rule(app: Celery, queue: str, dead: str) -> None:
    """A key made of arguments follows them; a key that the sender chose stays."""
    done = []

    @app.task(shared=False, name="keyed")
    @idempotent(key="order", ttl=timedelta(hours=1))
    @dead_letter(dead)
    def keyed(order: str, amount: int) -> str:
        if amount > 10:
            raise ValueError
        done.append((patterns.current_claim().key, order, amount))
        return order

    run_here(keyed, "o-1", 1)
    run_here(keyed, "o-2", 50)
    run_here(keyed, "o-3", 50, headers={HEADER: {"key": "chosen"}})
    assert dead_letters(app, dead).replay_all(correct={"amount": 2, "order": "o-4"}).sent == 2
    for message in messages(app, queue):
        run_here(keyed, *message.payload[0], headers={HEADER: message.headers[HEADER]})
    run_here(keyed, "o-4", 2)  # a duplicate of the first correction
    assert [(order, amount) for _, order, amount in done] == [("o-1", 1), ("o-4", 2), ("o-4", 2)]
    assert len({key for key, *_ in done}) == 3


# What the best of the field has shipped wrong


def test_a_letter_in_a_batch_and_alone_is_sent_once(app: Celery, queue: str, dead: str) -> None:
    """Replayed singly in the middle of a batch: the batch finds it gone, or it finds the batch has it."""
    ids = [run_here(failing(app), number).id for number in range(5)]
    letters = dead_letters(app, dead)
    last = list(letters)[-1]
    alone = []

    def in_between(letter: Letter, _error: Any) -> None:
        if not alone:
            with suppress(LetterNotFound):  # on RabbitMQ the batch has it in its hands
                alone.append(letters.replay(last))
            alone.append(letter)

    assert letters.replay_all(on_each=in_between).sent == len(ids) + 1 - len(alone)
    sent = Counter(message.headers["id"] for message in messages(app, queue))
    assert (len(sent), set(sent.values())) == (len(ids), {1})


def test_replayed_twice_before_the_first_is_done_is_sent_once(app: Celery, queue: str, dead: str) -> None:
    """The second call finds no letter: it is gone from the moment its message stands."""
    run_here(failing(app), 1)
    letters = dead_letters(app, dead)
    (letter,) = list(letters)
    letters.replay(letter)
    with pytest.raises(LetterNotFound, match=f"no letter {letter.id} stands"):
        letters.replay(letter)
    assert len(messages(app, queue)) == 1


def test_a_correction_sends_the_corrected_message_only(app: Celery, queue: str, dead: str) -> None:
    """Never the original beside it."""
    run_here(failing(app), "wrong")
    dead_letters(app, dead).replay_all(correct={"order": "right"})
    assert [message.payload[0] for message in messages(app, queue)] == [["right"]]
    assert dead_letters(app, dead).count() == 0


def test_a_second_correction_is_not_ignored(app: Celery, queue: str, dead: str) -> None:
    """The first correction was wrong, too: its letter is corrected like any other."""
    task = failing(app)
    run_here(task, "wrong")
    for value in ("wrong still", "right"):
        dead_letters(app, dead).replay_all(correct={"order": value})
        (message,) = messages(app, queue)
        assert message.payload[0] == [value]
        run_here(task, *message.payload[0], task_id=message.headers["id"], headers=dict(message.headers))


def test_one_letter_that_cannot_be_sent_does_not_stop_the_others(app: Celery, queue: str, dead: str) -> None:
    """It stays and is reported, this time and the next; no lock is left behind it."""
    written_by_hand(app, dead)
    bad = written_by_hand(app, dead, queue="nowhere", exchange="nowhere", routing_key="k")
    written_by_hand(app, dead)
    letters = dead_letters(app, dead)
    report = letters.replay_all()
    assert (report.sent, report.failed, [one.id for one in report.failures]) == (2, 1, [bad.id])
    assert (len(messages(app, queue)), [one.id for one in letters]) == (2, [bad.id])
    written_by_hand(app, dead)
    assert letters.replay_all().sent == 1
    assert letters.replay(bad, to=queue).id == bad.replay_id
    assert letters.count() == 0


def test_an_id_that_stands_twice_does_not_break_the_batch(app: Celery, queue: str, dead: str) -> None:
    """Two copies of one death: one message, both gone, and the limit counts one."""
    twice = uuid.uuid4().hex
    for _ in range(2):
        written_by_hand(app, dead, id=twice)
        written_by_hand(app, dead)
    letters = dead_letters(app, dead)
    assert letters.count() == 3
    assert letters.where(limit=1).replay_all().sent == 1
    assert len(messages(app, queue)) == 1
    assert (letters.count(), twice in {letter.id for letter in letters}) == (2, False)


def test_a_letter_of_the_same_id_in_another_queue_is_left_alone(app: Celery, queue: str, dead: str) -> None:
    """A replay touches the queue that it was asked for, and sends to where that letter came from."""
    same = uuid.uuid4().hex
    written_by_hand(app, dead, id=same)
    written_by_hand(app, f"{dead}-2", id=same)
    assert dead_letters(app, dead).replay_all().sent == 1
    assert [letter.id for letter in dead_letters(app, f"{dead}-2")] == [same]


def test_what_was_replayed_is_not_offered_again(app: Celery, queue: str, dead: str) -> None:
    """Neither listed nor counted, nor grouped."""
    run_here(failing(app), 1)
    letters = dead_letters(app, dead)
    letters.replay_all()
    assert (list(letters), letters.count(), letters.stats(), letters.replay_all().sent) == ([], 0, [], 0)
    assert len(messages(app, queue)) == 1


def test_letters_that_others_take_out_meanwhile_hide_none(app: Celery, queue: str, dead: str, monkeypatch: Any) -> None:
    """Places move when another operator works on the same queue: each letter of the selection is seen all the same."""
    monkeypatch.setattr(_redis, "_PAGE", 4)
    for number in range(40):
        written_by_hand(app, dead, task="odd" if number % 2 else "even")
    mine, theirs = dead_letters(app, dead).where(task="odd"), dead_letters(app, dead).where(task="even")
    seen = []
    for letter in mine:
        seen.append(letter.id)
        if len(seen) in (3, 9):
            theirs.where(limit=6).replay_all()
    assert len(seen) == len(set(seen)) == 20
    assert mine.count() == 20


# Copies


def test_a_second_copy_that_comes_later_is_not_sent_on_redis(database: str, queue: str, dead: str) -> None:
    """Within the hour, whoever replays it: it is taken out. The very same entry, put back by hand, is sent again."""
    app = made(database, queue)
    letter = written_by_hand(app, dead)
    client = redis.Redis.from_url(database)
    (raw,) = client.lrange(dead, 0, -1)
    letters = dead_letters(app, dead)
    assert letters.replay_all().sent == 1
    written_by_hand(app, dead, id=letter.id)
    assert letters.replay_all().sent == 0
    assert (letters.count(), len(messages(app, queue))) == (0, 1)
    client.lpush(dead, raw)
    assert letters.replay_all().sent == 1
    assert 0 < client.ttl(f"_celery_patterns.replayed.{letter.id}") <= 3600
    app.close()


def test_two_operators_with_a_copy_each_send_one_on_redis(database: str, queue: str, dead: str) -> None:
    """Each took a page before the other began."""
    app = made(database, queue)
    same = uuid.uuid4().hex
    for _ in range(2):
        written_by_hand(app, dead, id=same)
    letters = dead_letters(app, dead)
    told: list[Any] = []

    def other(_letter: Letter, _error: Any) -> None:
        told.append(letters.replay_all().sent)

    assert letters.replay_all(on_each=other).sent == 1
    assert (told, len(messages(app, queue)), letters.count()) == ([0], 1, 0)
    app.close()


def test_a_redis_that_refuses_the_message_keeps_the_letter(database: str, queue: str, dead: str) -> None:
    """The target is no list, or the server is full: nothing has changed, and the report says why."""
    app = made(database, queue)
    written_by_hand(app, dead)
    client = redis.Redis.from_url(database)
    client.set(queue, "no list")
    letters = dead_letters(app, dead)
    (failure,) = letters.replay_all().failures
    assert "WRONGTYPE" in failure.error
    assert letters.count() == 1
    client.delete(queue)
    assert letters.replay_all().sent == 1
    app.close()


# Killed, and shared


def replay_until_killed(broker: str, dead: str, letters: int, *, knows: bool) -> None:
    """Replay in a process of its own, which is killed at some point."""
    operator = in_another_process(broker, dead, f"{'knows()' if knows else ''}\nletters.replay_all(on_each=told)")
    assert operator.stdout is not None
    try:
        for _ in range(random.randint(1, max(1, letters))):
            if not operator.stdout.readline():
                break
        time.sleep(random.random() * 0.002)
    finally:
        operator.kill()
        operator.wait()
        operator.stdout.close()


def keyed_letters(app: Celery, dead: str, count: int) -> tuple[Any, list[int], list[bool]]:
    effects: list[int] = []
    mended: list[bool] = []

    @app.task(shared=False, name="keyed")
    @idempotent(key="number", ttl=timedelta(hours=1))
    @dead_letter(dead)
    def keyed(number: int) -> int:
        if not mended:
            raise ValueError("not yet")
        effects.append(number)
        return number

    for number in range(count):
        run_here(keyed, number)
    return keyed, effects, mended


def run_all(app: Celery, queue: str, task: Any) -> Counter[str]:
    """Run what stands in a queue, as a worker would, and count each task id."""
    found: Counter[str] = Counter()
    for message in messages(app, queue):
        found[message.headers["id"]] += 1
        run_here(task, *message.payload[0], task_id=message.headers["id"], headers={HEADER: message.headers[HEADER]})
    return found


@pytest.mark.parametrize(("count", "kills"), [(120, 4), pytest.param(1000, 20, marks=pytest.mark.long)])
@pytest.mark.parametrize("knows", [True, False])
def test_a_replay_that_is_killed_anywhere_loses_and_doubles_nothing(
    app: Celery, broker: str, queue: str, dead: str, count: int, kills: int, knows: bool
) -> None:
    """Killed and run again until no letter is left: each was sent, each keyed effect is there once.

    On Redis each was sent once, key or not. On RabbitMQ at most the letter in flight of each kill was sent twice, and up to
    33 where the operator's app knows that the task has a key.
    """
    task, effects, mended = keyed_letters(app, dead, count)
    expected = {letter.replay_id for letter in dead_letters(app, dead)}
    for _ in range(kills):
        replay_until_killed(broker, dead, 2 * count // (kills + 1) - 1, knows=knows)
    # RabbitMQ gives back what a killed reader held when it sees the connection is gone.
    wait_until(
        lambda: dead_letters(app, dead).replay_all().sent or dead_letters(app, dead).count() == 0, 20, "all are sent"
    )
    wait_until(lambda: dead_letters(app, dead).replay_all().sent == 0, 20, "and nothing is left")
    mended.append(True)
    sent = run_all(app, queue, task)
    assert set(sent) == expected
    assert sorted(effects) == list(range(count))
    doubled = sent.total() - len(sent)
    assert doubled <= (0 if broker.startswith("redis") else 33 * kills if knows else kills)


@pytest.mark.parametrize("count", [150, pytest.param(1000, marks=pytest.mark.long)])
@pytest.mark.parametrize("knows", ["knows()", ""])
def test_two_replays_at_once_share_the_work(
    app: Celery, broker: str, queue: str, dead: str, count: int, knows: str
) -> None:
    """Each letter is sent by one of them, once, also without a key; both had some."""
    task, effects, mended = keyed_letters(app, dead, count)
    expected = {letter.replay_id for letter in dead_letters(app, dead)}
    operators = [
        in_another_process(broker, dead, f"{knows}\nletters.replay_all(rate=400, on_each=told)") for _ in range(2)
    ]
    told = [operator.communicate(timeout=200)[0].splitlines() for operator in operators]
    assert [operator.returncode for operator in operators] == [0, 0]
    assert sum(map(len, told)) == count
    mended.append(True)
    sent = run_all(app, queue, task)
    assert (set(sent), sent.total()) == (expected, count)
    assert sorted(effects) == list(range(count))
    assert dead_letters(app, dead).count() == 0


def keyed_app(rabbit: str, queue: str, dead: str) -> Celery:
    """An operator's app that knows that the task has a key."""
    app = made(rabbit, queue)

    @app.task(shared=False, name="by.hand")
    @idempotent(key="order", ttl=timedelta(hours=1))
    @dead_letter(dead)
    def by_hand(order: str) -> None: ...

    return app


def test_messages_with_a_key_that_cannot_be_sent_are_told_of(rabbit: str, queue: str, dead: str) -> None:
    """They are confirmed some at a time; a queue that is gone or full, and an exchange that is gone, are each letter's own."""
    app = keyed_app(rabbit, queue, dead)
    full = full_queue(app, queue, holds=1)
    bad = []
    for number in range(60):
        written_by_hand(app, dead)
        if number % 20 == 10:
            bad.append(written_by_hand(app, dead, queue=f"{queue}-gone", routing_key=f"{queue}-gone"))
            bad.append(written_by_hand(app, dead, queue="x", exchange=f"{queue}-gone", routing_key="k"))
            bad.append(written_by_hand(app, dead, queue=full, routing_key=full))
    bad.pop(2)  # the first fills the queue
    letters, told = dead_letters(app, dead), []
    report = letters.replay_all(on_each=lambda letter, error: told.append((letter.id, error is None)))
    assert (report.sent, report.failed) == (61, 8)
    assert {letter for letter, sent in told if not sent} == {letter.id for letter in bad} == {one.id for one in letters}
    assert {one.id for one in report.failures} == {letter.id for letter in bad}
    sent = Counter(message.headers["id"] for message in messages(app, queue))
    assert (len(sent), set(sent.values())) == (60, {1})
    app.close()


@pytest.mark.parametrize("most", [2, 0])
def test_a_loss_that_is_noticed_before_the_next_message(
    rabbit: str, queue: str, dead: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That one is not sent while its letter is not held, and is met again: each is told of once, and without a key sent once."""
    app = keyed_app(rabbit, queue, dead)
    monkeypatch.setattr("celery_patterns.letters._dispatch._IN_FLIGHT", 2)
    expected, bare = set(), set()
    for _ in range(20):
        expected |= {written_by_hand(app, dead).replay_id for _ in range(4)}
        bare.add(written_by_hand(app, dead, task="bare").replay_id)
    told: list[tuple[str, Any]] = []
    cut: list[int] = []
    settle = _flight.Flight.settle

    def cut_first(self: Any, most_now: int = 0) -> None:
        if not cut and most_now == most and len(self._flying) > most:
            cut.append(len(self._flying))
            self._connection.connection.transport.sock.shutdown(socket.SHUT_RDWR)
        settle(self, most_now)

    monkeypatch.setattr(_flight.Flight, "settle", cut_first)
    report = dead_letters(app, dead).replay_all(on_each=lambda letter, error: told.append((letter.id, error)))
    assert cut
    assert (report.sent, report.failed, dead_letters(app, dead).count()) == (100, 0, 0)
    assert (len(told), len(dict(told)), {error for _, error in told}) == (100, 100, {None})
    sent = Counter(message.headers["id"] for message in messages(app, queue))
    assert set(sent) == expected | bare
    assert {sent[one] for one in bare} == {1}
    app.close()


@pytest.mark.parametrize("first", [False, True], ids=["alone", "behind something else"])
def test_a_letter_that_was_lost_while_the_rate_was_waited_for(
    rabbit: str, queue: str, dead: str, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else has replayed it meanwhile: it is not sent a second time."""
    app, other = made(rabbit, queue), made(rabbit, queue)
    for _ in range(2):
        written_by_hand(app, dead)
    shelves = opened_shelves(monkeypatch)

    def meanwhile(_: float) -> None:
        monkeypatch.undo()
        connection = shelves[0]._link.connection
        sock = connection.connection.transport.sock
        if first:
            channel: Any = connection.channel()
            channel.events["basic_return"].add(lambda *_: None)
            connection.Producer(channel, auto_declare=False).publish(
                "returned", routing_key=f"{queue}-gone", mandatory=True
            )
            assert select.select([sock], [], [], 10)[0]
        sock.shutdown(socket.SHUT_RDWR)
        theirs = dead_letters(other, dead)
        wait_until(lambda: theirs.count() == 1, 10, "the letter is back")
        assert theirs.replay_all().sent == 1

    monkeypatch.setattr("celery_patterns.letters._replay.pause", meanwhile)
    assert dead_letters(app, dead).replay_all(rate=1).sent == 1
    assert shelves
    assert len(messages(app, queue)) == 2
    app.close()
    other.close()


def test_a_connection_that_lives_through_no_pause(
    rabbit: str, queue: str, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a proxy that cuts what is idle: each letter goes as soon as it is held anew, and the replay comes to its end."""
    app = made(rabbit, queue)
    for _ in range(4):
        written_by_hand(app, dead)
    shelves, cut = opened_shelves(monkeypatch), []

    def cutting(seconds: float) -> None:
        assert len(cut) < 10, "it waits, loses its letters, and waits again"
        cut.append(seconds)
        shelves[-1]._link.connection.connection.transport.sock.shutdown(socket.SHUT_RDWR)

    monkeypatch.setattr("celery_patterns.letters._replay.pause", cutting)
    assert dead_letters(app, dead).replay_all(rate=0.1).sent == 4
    assert len(cut) == 3
    assert len(messages(app, queue)) == 4
    app.close()


def opened_shelves(monkeypatch: pytest.MonkeyPatch) -> list[OnRabbitMQ]:
    """The shelves that are opened from now on."""
    shelves: list[OnRabbitMQ] = []
    begin = OnRabbitMQ.__init__

    def opened(self: OnRabbitMQ, *args: Any) -> None:
        begin(self, *args)
        shelves.append(self)

    monkeypatch.setattr(OnRabbitMQ, "__init__", opened)
    return shelves


def test_the_end_of_the_letters_channel_is_no_answer_about_a_queue(
    rabbit: str, queue: str, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heard while a queue is asked for: the queue is there nevertheless, and no letter is taken out by a number of before."""
    app = keyed_app(rabbit, queue, dead)
    exchange = Exchange(f"{queue}-events", "topic")
    both = [f"{queue}-one", f"{queue}-two"]
    with app.connection_for_write() as connection:
        for name in both:
            Queue(name, exchange, routing_key="k")(connection.default_channel).declare()
    expected = {written_by_hand(app, dead).replay_id for _ in range(6)}
    written_by_hand(app, dead, task="event", queue=both[0], exchange=exchange.name, routing_key="k")
    expected |= {written_by_hand(app, dead).replay_id for _ in range(40)}
    others = [written_by_hand(app, dead, task="other").id for _ in range(40)]
    shelves, ended = opened_shelves(monkeypatch), []
    ask = _rabbitmq.queue_length

    def asked(connection: Any, name: str) -> int | None:
        if name == both[0] and not ended:
            ended.append(shelves[0]._channel.basic_ack(NO_TAG))  # which the broker answers by closing it
        return ask(connection, name)

    monkeypatch.setattr(_rabbitmq, "queue_length", asked)
    letters = dead_letters(app, dead)
    # Which leaves the others, and holds some of them with the rest.
    takes = Filter.takes
    monkeypatch.setattr(Filter, "takes", lambda self, letter: letter.task != "other" and takes(self, letter))
    report = letters.replay_all()
    monkeypatch.undo()
    assert ended
    assert (report.sent, report.failed) == (47, 0)
    assert [letter.id for letter in letters] == others
    assert [len(messages(app, name)) for name in both] == [1, 0]
    assert {message.headers["id"] for message in messages(app, queue)} == expected
    app.close()


def test_a_message_of_an_older_celery_with_a_key_that_no_queue_takes(rabbit: str, queue: str, dead: str) -> None:
    """It keeps its own ``correlation_id``, by which the broker's answer could not be told from another's; its letter stays."""
    app = keyed_app(rabbit, queue, dead)
    good = [written_by_hand(app, dead) for _ in range(3)]
    gone = {"queue": f"{queue}-gone", "routing_key": f"{queue}-gone", "publish": {"correlation_id": "theirs"}}
    bad = written_by_hand(app, dead, bare=True, **gone)
    letters = dead_letters(app, dead)
    report = letters.replay_all()
    assert (report.sent, report.failed) == (len(good), 1)
    assert [one.id for one in letters] == [bad.id]
    app.close()


def test_a_message_with_a_key_that_cannot_be_written(rabbit: str, queue: str, dead: str) -> None:
    """AMQP has no priority 300: the letter says so, stays, and stops no other."""
    app = keyed_app(rabbit, queue, dead)
    letters = dead_letters(app, dead)
    good = [written_by_hand(app, dead) for _ in range(5)]
    bad = written_by_hand(app, dead, priority=300)
    good += [written_by_hand(app, dead) for _ in range(5)]
    report = letters.replay_all()
    assert (report.sent, [one.id for one in report.failures]) == (10, [bad.id])
    assert "cannot be published" in report.failures[0].error
    assert {message.headers["id"] for message in messages(app, queue)} == {letter.replay_id for letter in good}
    app.close()


def test_a_full_queue_among_others_is_waited_for_once(rabbit: str, queue: str, dead: str) -> None:
    """A letter that another queue took in between begins no new wait."""
    app = keyed_app(rabbit, queue, dead)
    full = full_queue(app, queue, holds=1)
    with app.connection_for_write() as connection:
        app.amqp.Producer(connection).publish("there first", routing_key=full, confirm_timeout=5)
    for _ in range(6):
        written_by_hand(app, dead)
        written_by_hand(app, dead, queue=full, routing_key=full)
        written_by_hand(app, dead, task="bare")
        written_by_hand(app, dead, task="bare", queue=full, routing_key=full)
    began = time.monotonic()
    report = dead_letters(app, dead).replay_all()
    assert (report.sent, report.failed) == (12, 12)
    assert time.monotonic() - began < 15
    app.close()


def test_messages_with_a_key_survive_the_loss_of_their_channel(rabbit: str, queue: str, dead: str) -> None:
    """What was on its way is sent again, which the key absorbs, and the run goes on."""
    app = keyed_app(rabbit, queue, dead)
    expected = {written_by_hand(app, dead).replay_id for _ in range(60)}
    cut = []

    def close_once(_letter: Letter, _error: Any) -> None:
        if not cut:
            cut.append(flights[0]._channel.close())

    flights: list[Any] = []
    begin = _flight.Flight.__init__

    def noted(self: Any, *args: Any) -> None:
        begin(self, *args)
        flights.append(self)

    _flight.Flight.__init__ = noted  # type: ignore[method-assign]
    try:
        report = dead_letters(app, dead).replay_all(on_each=close_once)
    finally:
        _flight.Flight.__init__ = begin  # type: ignore[method-assign]
    assert (report.sent, report.failed, dead_letters(app, dead).count()) == (60, 0, 0)
    sent = Counter(message.headers["id"] for message in messages(app, queue))
    assert (set(sent), sent.total() <= 60 + 33) == (expected, True)
    app.close()


def test_a_callers_own_trouble_is_not_taken_for_the_brokers(rabbit: str, queue: str, dead: str) -> None:
    """``on_each`` raises what the broker's client raises, too: it comes as it is, and all that was sent is taken out."""
    app = keyed_app(rabbit, queue, dead)
    expected = {written_by_hand(app, dead).replay_id for _ in range(40)}
    told: list[str] = []

    def fail(letter: Letter, _: Any) -> None:
        told.append(letter.replay_id)
        if len(told) == 5:
            raise ConnectionResetError("the caller's own")

    with pytest.raises(ConnectionResetError, match="the caller's own"):
        dead_letters(app, dead).replay_all(on_each=fail)
    sent = [message.headers["id"] for message in messages(app, queue)]
    left = [letter.replay_id for letter in dead_letters(app, dead)]
    assert sorted([*sent, *left]) == sorted(expected)
    assert set(told) <= set(sent)
    app.close()


def test_a_caller_whose_own_trouble_does_not_end(rabbit: str, queue: str, dead: str) -> None:
    """``on_each`` raises for each letter: the first error comes, and what was sent is taken out, once each."""
    app = keyed_app(rabbit, queue, dead)
    expected = {written_by_hand(app, dead).replay_id for _ in range(100)}
    told: list[str] = []
    tell = _flight.Flight.tell

    def fail(letter: Letter, _: Any) -> None:
        told.append(letter.replay_id)
        raise BrokenPipeError(f"number {len(told)}")

    def late(self: Any) -> None:
        if self._numbers >= 20:  # by then several have landed
            tell(self)

    _flight.Flight.tell = late  # type: ignore[method-assign]
    try:
        with pytest.raises(BrokenPipeError, match=r"number 1$"):
            dead_letters(app, dead).replay_all(on_each=fail)
    finally:
        _flight.Flight.tell = tell  # type: ignore[method-assign]
    sent = [message.headers["id"] for message in messages(app, queue)]
    left = [letter.replay_id for letter in dead_letters(app, dead)]
    assert len(sent) >= 20
    assert sorted([*sent, *left]) == sorted(expected)
    assert sorted(told) == sorted(sent)
    app.close()


def test_a_watchers_own_trouble_is_not_taken_for_the_brokers(rabbit: str, queue: str, dead: str) -> None:
    """A progress bar on a terminal that is gone, for example: its error comes at once."""
    app = made(rabbit, queue)
    written_by_hand(app, dead)
    looked: list[int] = []

    def look(number: int, _: int) -> None:
        assert len(looked) < 5, "it is asked again and again"
        looked.append(number)
        raise BrokenPipeError("the terminal is gone")

    with pytest.raises(BrokenPipeError, match="the terminal is gone"):
        dead_letters(app, dead).watched(look).count()
    assert looked == [1]
    app.close()


def test_a_slow_replay_survives_a_closed_channel(queue: str, dead: str) -> None:
    """RabbitMQ closes a channel that holds a message for too long, 30 minutes by default and a second here."""
    server = RabbitServer()
    usual = server.environment

    def impatient() -> dict[str, str]:
        found = dict(usual())
        found["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"] += (
            " -rabbit consumer_timeout 500 -rabbit channel_tick_interval 500"
        )
        return found

    server.environment = impatient  # type: ignore[method-assign]
    server.start()
    try:
        app = made(server.url, queue)
        for number in range(12):
            written_by_hand(app, dead, task="kept" if number < 4 else "sent")
        letters = dead_letters(app, dead)
        closed = []
        reopen = OnRabbitMQ._reopen

        def counted(self: Any, *args: Any) -> None:
            closed.append(1)
            reopen(self, *args)

        OnRabbitMQ._reopen = counted  # type: ignore[method-assign]
        try:
            report = letters.where(task="sent").replay_all(rate=2)
        finally:
            OnRabbitMQ._reopen = reopen  # type: ignore[method-assign]
        assert closed, "the channel was never closed"
        assert (report.sent, report.failed) == (8, 0)
        sent = Counter(message.headers["id"] for message in messages(app, queue))
        assert (len(sent), set(sent.values())) == (8, {1})
        assert [letter.task for letter in letters] == ["kept"] * 4
        app.close()
    finally:
        server.close()


@pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
def test_a_replay_goes_on_when_the_broker_was_restarted(kind: str, queue: str, dead: str) -> None:
    """What could not be sent meanwhile stays, and is sent by the next call; nothing is lost."""
    server = RedisServer() if kind == "redis" else RabbitServer()
    server.start()
    try:
        app = made(server.url() if isinstance(server, RedisServer) else server.url, queue)
        letters = dead_letters(app, dead)
        expected = {written_by_hand(app, dead).replay_id for _ in range(30)}
        told = []

        def restart(letter: Letter, _error: Any) -> None:
            told.append(letter.id)
            if len(told) == 10:
                server.stop(signal.SIGTERM)
                threading.Timer(0.5, server.start).start()

        report = letters.replay_all(on_each=restart)
        assert (report.sent + report.failed, len(set(told))) == (30, 30)
        assert letters.replay_all().sent == report.failed < 10
        sent = Counter(message.headers["id"] for message in messages(app, queue))
        assert set(sent) == expected
        assert sent.total() - 30 <= (0 if kind == "redis" else 1)
        app.close()
    finally:
        server.close()


def test_reading_goes_on_when_the_broker_was_restarted(queue: str, dead: str) -> None:
    """Each letter is shown once, also those of which RabbitMQ had given some when it went."""
    server = RabbitServer()
    server.start()
    try:
        app = made(server.url, queue)
        expected = {written_by_hand(app, dead).id for _ in range(40)}
        shown: list[str] = []
        for letter in dead_letters(app, dead):
            shown.append(letter.id)
            if len(shown) == 5:
                server.stop(signal.SIGTERM)
                threading.Timer(1.5, server.start).start()
        assert (len(shown), set(shown)) == (40, expected)
        app.close()
    finally:
        server.close()


# Keeping and deleting


def test_a_file_holds_all_of_a_letter(app: Celery, queue: str, dead: str, tmp_path: Path) -> None:
    """Exported, deleted and put back: the same bytes, headers and properties; compressed, binary and odd ones, too."""
    written_by_hand(app, dead, publish={"message_id": "m-1", "expiration": 3_600_000})
    written_by_hand(app, dead, publish={"compression": "gzip"})
    written_by_hand(
        app, dead, body=b"\xff\x00binary", publish={"content_type": "application/data", "content_encoding": "binary"}
    )
    written_by_hand(app, dead, body="ö".encode(), headers={"nested": {"a": [1, None, {"b": True}]}})
    written_by_hand(app, dead, headers={"odd": {"celery_patterns_type": "moment", "value": "no"}})
    file = tmp_path / "letters.jsonl"
    letters = dead_letters(app, dead)
    before = raw_messages(app, dead)
    assert letters.export(file) == 5
    assert raw_messages(app, dead) == before
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["letter"]["id"] for line in lines] == [letter.id for letter in letters]
    assert json.loads(lines[0]["body"])[0] == ["o-1"]
    assert letters.purge() == 5
    assert raw_messages(app, dead) == []
    assert letters.restore(file) == 5
    assert raw_messages(app, dead) == before
    assert letters.restore(file) == 0
    assert letters.replay_all().sent == 5


def raw_messages(app: Celery, queue: str) -> list[Any]:
    """What stands in a queue, as the broker has it, and stays there."""
    with app.connection_for_read() as connection:
        if connection.transport.driver_type == "redis":
            client = connection.default_channel.client
            found = [json.loads(raw) for raw in reversed(client.lrange(queue, 0, -1))]
            for one in found:
                one["properties"].pop("delivery_tag")
            return found
        channel = connection.channel()
        gotten = []
        while (raw := channel.basic_get(queue)) is not None:
            gotten.append((raw.body, raw.properties))
        return gotten


def test_what_amqp_knows_and_json_does_not_comes_back(rabbit: str, queue: str, dead: str, tmp_path: Path) -> None:
    """Moments, bytes and decimals in headers, as RabbitMQ's own notes have them."""
    from decimal import Decimal

    app = made(rabbit, queue)
    odd = {"time": datetime(2026, 1, 2, 3, 4, 5), "raw": b"\x00\xff", "exact": Decimal("1.50")}
    written_by_hand(app, dead, headers=odd, publish={"timestamp": 1_767_323_045, "priority": 3})
    letters = dead_letters(app, dead)
    before = raw_messages(app, dead)
    letters.export(tmp_path / "f")
    letters.purge()
    letters.restore(tmp_path / "f")
    assert raw_messages(app, dead) == before
    app.close()


def test_letters_are_deleted_by_age(app: Celery, dead: str) -> None:
    """A time ago counts from the death; copies go together, and others stay in order."""
    old = written_by_hand(app, dead, died_at=time.time() - 40 * 86400)
    young = [written_by_hand(app, dead).id for _ in range(2)]
    written_by_hand(app, dead, id=old.id, died_at=old.died_at)
    letters = dead_letters(app, dead)
    assert letters.where(until=timedelta(days=30)).purge() == 1
    assert [letter.id for letter in letters] == young


def test_only_what_the_file_holds_is_deleted(app: Celery, dead: str, tmp_path: Path) -> None:
    """A letter that was written after the export stays."""
    written_by_hand(app, dead)
    letters = dead_letters(app, dead)
    letters.export(tmp_path / "f")
    late = written_by_hand(app, dead)
    assert letters.purge(kept_in=tmp_path / "f") == 1
    assert [letter.id for letter in letters] == [late.id]


def test_a_file_is_there_whole_or_not_at_all(app: Celery, dead: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Nothing stands under its name while it is written, and an older file is never overwritten."""
    written_by_hand(app, dead)
    letters = dead_letters(app, dead)
    file = tmp_path / "f"
    file.write_text("precious")
    with pytest.raises(ConfigurationError, match="is there already"):
        letters.export(file)
    assert (file.read_text(), list(tmp_path.iterdir())) == ("precious", [file])
    file.unlink()
    seen = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (seen.append(file.exists()), fsync(handle)))
    letters.export(file)
    assert seen == [False, True]
    assert list(tmp_path.iterdir()) == [file]


def test_export_and_purge_killed_half_way_lose_nothing(app: Celery, broker: str, dead: str, tmp_path: Path) -> None:
    """Each letter is in the queue, or in a file that is whole."""
    ids = {written_by_hand(app, dead).id for _ in range(60)}
    for number in range(4):
        code = f"""
            letters = letters.watched(lambda *_: told(type("L", (), {{"id": 1}}), None))
            letters.export({str(tmp_path / f"f{number}")!r})
            letters.purge(kept_in={str(tmp_path / f"f{number}")!r})
        """
        operator = in_another_process(broker, dead, code)
        assert operator.stdout is not None
        for _ in range(random.randint(1, 100)):
            operator.stdout.readline()
        operator.kill()
        operator.wait()
        operator.stdout.close()
    kept = {
        json.loads(line)["letter"]["id"]
        for file in tmp_path.iterdir()
        if not file.name.startswith(".")
        for line in file.read_text().splitlines()
    }
    wait_until(lambda: kept | {letter.id for letter in dead_letters(app, dead)} == ids, 20, "all are somewhere")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense\n", "line 1 of .* is no letter"),
        ("{}\n", "line 1 of .* is no letter"),
        ('{"format": 2}\n', "has format 2; this release reads format 1"),
        ("\xff", "is no letter"),
    ],
)
def test_a_file_that_is_none_of_ours_puts_nothing_back(
    app: Celery, dead: str, tmp_path: Path, text: str, said: str
) -> None:
    """The whole file is looked at first."""
    written_by_hand(app, dead)
    letters = dead_letters(app, dead)
    file = tmp_path / "f"
    letters.export(file)
    file.write_text(file.read_text() + text)
    letters.purge()
    with pytest.raises(ConfigurationError, match=said.replace("line 1", "line 2")):
        letters.restore(file)
    assert letters.count() == 0
    with pytest.raises(ConfigurationError, match="cannot be read"):
        letters.restore(tmp_path / "nothing")


def test_a_full_disk_is_told_as_one(app: Celery, dead: str) -> None:
    """And not as an error of the broker's; all letters stay."""

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    written_by_hand(app, dead)
    with pytest.raises(ConfigurationError, match="the file cannot be written: No space left on device"):
        dead_letters(app, dead).export(Full())
    assert dead_letters(app, dead).count() == 1


# Canaries


@pytest.fixture
def running(shop: Floor) -> Floor:
    shop.worker(concurrency=2)
    for number in range(6):
        shop.task("doomed").delay(f"o-{number}", "mended")
    shop.wait(lambda: len(shop.letters()) == 6, 30, "six letters")
    return shop


def test_canaries_that_die_again_stop_the_replay(running: Floor) -> None:
    """Two were sent, and each left a new letter; the other four stand where they stood."""
    letters = dead_letters(running.app, running.dead)
    before = list(letters)
    ids = [letter.id for letter in before]
    report = letters.replay_all(canary=2)
    assert (report.sent, report.failed) == (2, 0)
    running.wait(lambda: len(running.letters()) == 6, 20, "their new letters")
    new = {letter.id: letter for letter in letters if letter.replay == 1}
    assert report.stopped is not None
    assert report.died_again
    for again in report.died_again:
        assert new[again].task_id in {letter.replay_id for letter in before}
        assert again in report.stopped
    assert set(report.died_again.values()) == {running.dead}
    assert report.stopped.startswith("2 of 2 canaries died again: letters ")
    assert [letter.id for letter in letters if letter.replay == 0] == ids[2:]


def test_what_became_of_the_other_canaries_is_said(database: str) -> None:
    """One that died stops the replay; of those that still run it is not said that they are well."""
    app = Celery("canaries", broker=database, backend=database, set_as_current=False)
    app.backend.store_result("a", ValueError(), "FAILURE")
    app.backend.store_result("b", None, "SUCCESS")
    app.backend.store_result("c", None, "RETRY")
    began = time.monotonic()
    trouble = unhappy(app, dict.fromkeys("abc", "q"), timedelta(minutes=5), lambda _: ())
    assert trouble is not None
    assert (trouble.text, trouble.died) == ("1 of 3 canaries died again (of 1 it is not known yet)", ("a",))
    assert time.monotonic() - began < 20
    app.close()


def test_a_canary_that_died_is_told_although_the_others_cannot_be_asked_for(database: str, monkeypatch: Any) -> None:
    """The backend goes away in the moment that they still have."""
    app = Celery("canaries", broker=database, backend=database, set_as_current=False)
    app.backend.store_result("a", ValueError(), "FAILURE")

    def gone(_: str) -> Any:
        if looks:
            raise ConnectionError
        looks.append(1)
        return asked("a")

    looks: list[int] = []
    asked = app.AsyncResult
    monkeypatch.setattr(app, "AsyncResult", gone)
    trouble = unhappy(app, {"a": "q"}, timedelta(minutes=5), lambda _: ())
    assert trouble is not None
    assert trouble.died == ("a",)
    looks.clear()
    answers = iter(["a", "b"])
    monkeypatch.setattr(app, "AsyncResult", lambda _: asked(next(answers)))
    trouble = unhappy(app, {"a": "q", "b": "q"}, timedelta(minutes=5), lambda _: ())
    assert trouble is not None
    assert (trouble.text, trouble.died) == ("1 of 2 canaries died again (of 1 it is not known yet)", ("a",))
    app.close()


def test_canaries_that_succeed_let_the_others_go(running: Floor) -> None:
    """All are sent, also when the task ignores its results."""
    running.traces.set("mended")
    running.task("doomed").ignore_result = True
    report = dead_letters(running.app, running.dead).replay_all(canary=2, canary_timeout=timedelta(seconds=60))
    assert (report.sent, report.stopped) == (6, None)
    running.wait(lambda: running.traces.count("mended") == 6, 20, "six effects")


@pytest.mark.parametrize(("canary", "limit"), [(1, 1), (2, 4), (5, 2)])
def test_canaries_count_for_the_limit(running: Floor, canary: int, limit: int) -> None:
    """No more are sent than were asked for."""
    running.traces.set("mended")
    letters = dead_letters(running.app, running.dead)
    ids = [letter.id for letter in letters]
    report = letters.where(limit=limit).replay_all(canary=canary, canary_timeout=timedelta(seconds=60))
    assert (report.sent, report.stopped) == (limit, None)
    assert [letter.id for letter in letters] == ids[limit:]


def test_a_canary_that_no_worker_can_run_has_died_again(shop: Floor) -> None:
    """No result tells of it, but its new letter does."""
    shop.worker(concurrency=1)
    for body in (b"[[", b"5", b"{}"):
        raw(shop, body=body, **({"task": ABSENT, "id": ABSENT} if body == b"{}" else {}))
    shop.wait(lambda: len(shop.letters()) == 3, 20, "the letters")
    letters = dead_letters(shop.app, shop.dead)
    for letter in list(letters):
        began = time.monotonic()
        report = letters.where(id=letter.id).replay_all(canary=1, canary_timeout=timedelta(seconds=60))
        assert report.sent == 1
        assert report.stopped is not None
        assert report.stopped.startswith("1 of 1 canary died again: letter "), report.stopped
        assert [*report.died_again.values()] == [shop.dead]
        assert time.monotonic() - began < 30
    assert {(one.replay, one.reason) for one in shop.letters()} == {(1, "unreadable"), (1, "malformed")}


def test_a_canarys_letter_in_another_queue_is_found(shop: Floor) -> None:
    """Its task was renamed since: its new letter is where the unknown go."""
    shop.worker(concurrency=1)
    other = f"{shop.queue}.kept"
    written_by_hand(shop.app, other, task="renamed", queue=shop.queue)
    report = dead_letters(shop.app, other).replay_all(canary=1, canary_timeout=timedelta(seconds=60))
    assert report.stopped is not None
    assert "1 of 1 canary died again" in report.stopped
    assert [*report.died_again.values()] == [shop.dead]
    assert shop.letters()[0].reason == "unknown_task"


def test_canaries_that_come_to_no_end_stop_the_replay(shop: Floor) -> None:
    """Nobody runs them: after the patience the others stay."""
    declare(shop.app, shop.queue)
    for number in range(3):
        run_here(shop.task("doomed"), f"o-{number}", queue=shop.queue)
    began = time.monotonic()
    report = dead_letters(shop.app, shop.dead).replay_all(canary=1, canary_timeout=timedelta(seconds=1))
    assert report.stopped is not None
    assert "1 of 1 canary did not finish within 1 s" in report.stopped
    assert f"what did not finish waits in {shop.queue} or runs, and may still succeed" in report.stopped
    assert 1 <= time.monotonic() - began < 10
    assert len(shop.letters()) == 2


def test_a_canary_that_is_retried_is_waited_for(shop: Floor) -> None:
    """RETRY is no end."""
    shop.worker(concurrency=1)
    with pytest.raises(ConnectionError):
        shop.task("flaky_keyed").delay("o-1", 99).get(timeout=60)
    report = dead_letters(shop.app, shop.dead).replay_all(canary=1, correct={"failures": 2})
    assert (report.sent, report.stopped) == (1, None)
    assert shop.traces.all("effects") == ["o-1"]
    assert shop.traces.count("runs") == 6


def test_a_canarys_old_result_is_not_its_outcome(shop: Floor) -> None:
    """A letter that was put back is replayed under the same task id: what the first one left there is forgotten."""
    declare(shop.app, shop.queue)
    run_here(shop.task("doomed"), "o-1", queue=shop.queue)
    (letter,) = shop.letters()
    shop.app.backend.store_result(letter.replay_id, "fine", "SUCCESS")
    report = dead_letters(shop.app, shop.dead).replay_all(canary=1, canary_timeout=timedelta(seconds=1))
    assert report.stopped is not None
    assert "did not finish" in report.stopped


def test_a_backend_that_is_away_stops_canaries_before_they_are_sent(app: Celery, queue: str, dead: str) -> None:
    """It is named, and not the broker; without a password."""
    run_here(failing(app), "o-1")
    away = made(
        app.conf.broker_read_url or app.connection().as_uri(include_password=True),
        queue,
        "redis://:hidden@127.0.0.1:1/0",
    )
    failing(away)
    with pytest.raises(BackendUnavailable) as refused:
        dead_letters(away, dead).replay_all(canary=1)
    assert "the result backend at redis://:**@127.0.0.1:1/0 did not answer: ConnectionError" in str(refused.value)
    assert (dead_letters(app, dead).count(), messages(app, queue)) == (1, [])
    away.close()


def test_a_letter_of_rabbitmqs_is_put_back_into_a_redis(
    rabbit: str, database: str, queue: str, dead: str, tmp_path: Path
) -> None:
    """With what it had, but in the list where letters are looked for, whatever its priority."""
    ours, theirs = made(rabbit, queue), made(database, queue)
    letter = written_by_hand(ours, dead, publish={"priority": 9})
    dead_letters(ours, dead).export(tmp_path / "f")
    assert dead_letters(theirs, dead).restore(tmp_path / "f") == 1
    assert [one.id for one in dead_letters(theirs, dead)] == [letter.id]
    ours.close()
    theirs.close()


def test_a_canary_needs_a_backend_that_tells_everybody(rabbit: str) -> None:
    """``rpc://`` tells the sender only."""
    app = Celery(broker=rabbit, backend="rpc://", set_as_current=False)
    with pytest.raises(ConfigurationError, match="rpc:// gives a result to its sender only"):
        dead_letters(app, "q").replay_all(canary=1)


# In constant memory

MEMORY = """
    import resource, sys, threading, time
    def grown():
        with open("/proc/self/statm") as stream:
            return int(stream.read().split()[1]) * resource.getpagesize() / 1e6
    peak = [grown()]
    def watch():
        while True:
            peak[0] = max(peak[0], grown())
            time.sleep(0.01)
    threading.Thread(target=watch, daemon=True).start()
    before = grown()
    {code}
    print(peak[0])
"""


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_memory_does_not_grow_with_the_letters(app: Celery, broker: str, queue: str, dead: str, tmp_path: Path) -> None:
    """Listing, grouping, exporting, deleting and replaying 100,000 letters take what 1,000 take, within 10 MB."""
    peaks: dict[str, list[float]] = {}
    for count in (1_000, 100_000):
        fill(app, dead, count)
        file = str(tmp_path / f"f{count}")
        for code in (
            "letters.count()",
            "letters.stats()",
            f"letters.export({file!r})",
            f"letters.purge(kept_in={file!r})",
            f"letters.restore({file!r})",
            "letters.replay_all()",
        ):
            operator = in_another_process(broker, dead, MEMORY.format(code=code))
            peaks.setdefault(code.replace(file, "f"), []).append(float(operator.communicate(timeout=1800)[0]))
        assert dead_letters(app, dead).count() == 0
        with app.connection_for_write() as connection:
            connection.default_channel.queue_purge(queue)
    assert all(many < few + 10 for few, many in peaks.values()), peaks


def fill(app: Celery, dead: str, count: int) -> None:
    """Letters of a usual size, as fast as they can be written."""
    letter = written_by_hand(app, dead, traceback="x" * 2000)
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        if connection.transport.driver_type == "redis":
            client = channel.client
            (raw,) = client.lrange(dead, 0, -1)
            client.delete(dead)
            with client.pipeline(transaction=False) as pipe:
                for number in range(count):
                    pipe.lpush(dead, raw.replace(letter.id.encode(), f"{number:032x}".encode()))
                    if number % 1000 == 999:
                        pipe.execute()
                pipe.execute()
            return
        raw = channel.basic_get(dead)
        raw.channel = channel
        channel.basic_ack(raw.delivery_tag)
        headers = raw.properties["application_headers"]
        for number in range(count):
            told = {**headers, LETTER: headers[LETTER].replace(letter.id, f"{number:032x}")}
            message = channel.prepare_message(raw.body, None, "application/json", "utf-8", told, {"delivery_mode": 2})
            channel.basic_publish(message, exchange="", routing_key=dead)
    wait_until(lambda: standing(app, dead) == count, 60, "all letters stand")


def standing(app: Celery, queue: str) -> int:
    with app.connection_for_read() as connection:
        return int(connection.default_channel.queue_declare(queue=queue, passive=True).message_count)
