"""What a letter says and in how many bytes, whoever wrote it and whatever it was made from."""

from __future__ import annotations

import base64
import dataclasses
import json
import random
import time
import uuid
from datetime import timedelta
from decimal import Decimal
from typing import Any

import amqp.serialization
import pytest
from celery import Celery
from kombu import Exchange, Queue
from kombu.message import Message
from tenacity import wait_none

import celery_patterns as patterns
from celery_patterns import dead_letter, dead_letters, idempotent, retry
from celery_patterns._bury import _traced, found, found_message, publish_letter
from celery_patterns._envelope import WRAPPED, fitted, unwrapped
from celery_patterns._frame import room_in, size_of
from celery_patterns._history import error_name, remembering
from celery_patterns._letter import LETTER, Letter, read_letter
from celery_patterns._message import HEADER
from celery_patterns._queues import _arguments, fitting, queue_length
from celery_patterns._x_death import letter_of
from celery_patterns.exceptions import ConfigurationError
from celery_patterns.letters._redis import _PAGE_BYTES, OnRedis
from celery_patterns.stores import MemoryStore

from .harness import floor
from .here import run_here
from .servers import RabbitServer, wait_until

SECRET = "4222-SECRET"


def made_app(url: str, queue: str) -> Celery:
    made = Celery("letters", broker=url, backend="cache+memory://", set_as_current=False)
    patterns.use_patterns(made)
    patterns.use_store(made, MemoryStore())
    made.conf.task_default_queue = queue
    with made.connection_for_write() as connection:
        made.amqp.queues[queue](connection.default_channel).declare()
    return made


@pytest.fixture
def queue() -> str:
    return f"f-{uuid.uuid4().hex[:10]}"


@pytest.fixture
def app(broker: str, queue: str) -> Any:
    made = made_app(broker, queue)
    yield made
    made.close()


@pytest.fixture
def on_rabbit(rabbit: str, queue: str) -> Any:
    made = made_app(rabbit, queue)
    yield made
    made.close()


@pytest.fixture
def unheard(caplog: Any) -> None:
    """Nothing is logged: a test process cannot hand on half a character."""
    caplog.set_level(100)


def taken(app: Celery, queue: str, *, sent: int = 0) -> list[Any]:
    """Everything in a queue, taken out, oldest first; ``sent`` were published unconfirmed and may still be on their way."""
    found: list[Any] = []
    with app.connection_for_read() as connection:
        channel = connection.default_channel

        def emptied() -> bool:
            while (raw := channel.basic_get(queue, no_ack=True)) is not None:
                found.append(channel.message_to_python(raw) if connection.transport.driver_type == "amqp" else raw)
            return len(found) >= sent

        wait_until(emptied, 10, f"{sent} messages")
    return found


def failing(app: Celery, name: str = "fails", error: Any = None, **options: Any) -> Any:
    @app.task(shared=False, name=name, **options)
    @dead_letter(f"{app.conf.task_default_queue}.dead")
    def task(*args: Any, **kwargs: Any) -> None:
        raise error or ValueError("cannot do it")

    return task


def letters_in(app: Celery, queue: str) -> list[Letter]:
    return list(dead_letters(app, f"{queue}.dead"))


def ran(task: Any, message: Any) -> Any:
    """Run a message that was taken from a queue."""
    headers, (args, kwargs, _) = message.headers, message.payload
    other = {
        "properties": message.properties,
        **{name: value for name, value in headers.items() if name not in ("id", "task", "retries")},
    }
    custom = {HEADER: headers[HEADER]} if HEADER in headers else {}
    return run_here(
        task, *args, task_id=headers["id"], retries=headers["retries"], headers={**other, "headers": custom}, **kwargs
    )


# What a letter says


def test_a_letter_tells_where_its_message_stood(app: Celery, queue: str) -> None:
    """Parent, group and root, and the message's own properties, beside those that a letter had before."""
    properties = {
        "correlation_id": "id-1",
        "reply_to": "answers",
        "expiration": "60000",
        "priority": 3,
        "message_id": "m",
        "content_type": "application/json",
        "cluster_id": "no",
    }
    run_here(
        failing(app),
        task_id="id-1",
        headers={"root_id": "r", "parent_id": "p", "group": "g", "properties": properties},
    )
    (letter,) = letters_in(app, queue)
    assert (letter.root_id, letter.parent_id, letter.group_id) == ("r", "p", "g")
    assert letter.properties == {
        "correlation_id": "id-1",
        "reply_to": "answers",
        "expiration": "60000",
        "priority": 3,
        "message_id": "m",
    }


def test_what_is_not_known_is_not_guessed(app: Celery, queue: str) -> None:
    """A message that was never run and tells nothing: None, and not the time or the place of the worker."""
    message = Message(b"{", headers={}, content_type="application/json", delivery_info={"routing_key": queue})
    letter = found(app, message, "unreadable", ValueError("no"))
    unknown = ("task", "task_id", "root_id", "parent_id", "group_id", "priority", "first_published", "first_started")
    assert {name: getattr(letter, name) for name in unknown} == dict.fromkeys(unknown)
    assert (letter.history, letter.errors, letter.properties) == ([], {}, {})


def test_when_a_task_was_first_published_stays(app: Celery, queue: str) -> None:
    """Through attempts, and through a replay and its attempts: the time of the very first message."""

    @app.task(shared=False, name="flaky")
    @retry(on=OSError, attempts=3, wait=wait_none())
    @dead_letter(f"{queue}.dead")
    def flaky() -> None:
        raise OSError("again")

    before = time.time()
    flaky.apply_async()
    after = time.time()
    for _ in range(2):
        for _ in range(3):
            (message,) = taken(app, queue, sent=1)
            time.sleep(0.01)
            ran(flaky, message)
        (letter,) = letters_in(app, queue)
        assert before <= letter.first_published <= after
        assert letter.attempt == 3
        assert (letter.errors, len(letter.history)) == ({"builtins.OSError": 2}, 2)
        dead_letters(app, f"{queue}.dead").replay_all()


def test_a_sender_that_knows_no_patterns_does_not_say_when(app: Celery, queue: str) -> None:
    """Nor does a later attempt take its own publication for the first."""

    @app.task(shared=False, name="flaky")
    @retry(on=OSError, attempts=3, wait=wait_none())
    @dead_letter(f"{queue}.dead")
    def flaky() -> None:
        raise OSError("again")

    app.send_task("flaky")
    for _ in range(3):
        (message,) = taken(app, queue, sent=1)
        ran(flaky, message)
    assert [letter.first_published for letter in letters_in(app, queue)] == [None]


def wire(headers: dict[str, Any]) -> int:
    return len(amqp.serialization.dumps("F", [headers]))


@pytest.mark.parametrize("letter", ["x", "é", "漢", "😀"])
def test_a_history_keeps_its_ends_and_its_counts(letter: str) -> None:
    """Of 500 attempts the first, the last seven, and how many died of what; under 4 KiB, whatever the errors are called."""
    header: dict[str, Any] = {}
    kinds = []
    for number in range(1, 501):
        kind = type(f"E{number % 13}", (Exception,), {"__module__": f"{letter * 300}.module"})
        kinds.append(f"E{number % 13}")
        header.update(remembering(header, number, 1_700_000_000.123456 + number, kind("x")))
    assert [one["attempt"] for one in header["history"]] == [1, *range(494, 501)]
    assert [one["error"].rpartition(".")[2] for one in header["history"]] == [kinds[0], *kinds[-7:]]
    assert sum(header["errors"].values()) == 500
    assert len(header["errors"]) == 9
    assert header["errors"]["others"] == sum(kind not in {f"E{n}" for n in range(1, 9)} for kind in kinds)
    ours = {
        "sent": 1.5,
        "first_sent": 1.5,
        "started": 1.5,
        "waited": 10**6,
        "waiting": None,
        "looks": 0,
        "asked_by": None,
    }
    assert wire({HEADER: {**header, **ours}}) <= 4096
    assert len(json.dumps(header, ensure_ascii=False).encode()) <= 4096


@pytest.mark.usefixtures("unheard")
def test_a_type_that_cannot_be_shown_leaves_a_letter(app: Celery, queue: str) -> None:
    """Whatever its text, its notes and its traceback do: they cost the letter that field, and no more."""

    class Hidden(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    Hidden.__module__ = None  # type: ignore[assignment]

    class Endless(Exception):
        def __str__(self) -> str:
            return "😀" * 10_000_000

    class Odd(Exception):
        @property
        def __notes__(self) -> Any:
            raise RuntimeError("no notes")

    class Untrue(Exception):
        __str__ = lambda self: 5  # type: ignore[assignment,return-value] # noqa: E731

    text = "\ud800 \x00 \x1b[31m \u202e \ud83d"
    for number, error in enumerate((Hidden(), Endless(), Odd(), Untrue(), ValueError(text))):
        outcome = run_here(failing(app, f"t-{number}", error), number)
        assert outcome.state == "FAILURE"
    letters = letters_in(app, queue)
    assert [letter.task for letter in letters] == [f"t-{number}" for number in range(5)]
    assert letters[0].error.startswith("None.")
    assert letters[0].message == "<its text cannot be shown: RuntimeError>"
    assert letters[1].message == "😀" * 665 + "\n[…]\n" + "😀" * 1330
    assert letters[4].message == text
    assert dead_letters(app, f"{queue}.dead").replay_all().sent == 5


def test_an_error_that_even_celery_cannot_show_is_told_of(app: Celery, queue: str) -> None:
    """Its letter can be made, so that it is not the reason for which a message goes round for ever."""

    class Meta(type):
        @property
        def __module__(cls) -> str:  # type: ignore[override]
            raise RuntimeError("no module")

    class Hidden(Exception, metaclass=Meta):
        pass

    shown = _traced(SyntaxError("bad", ("file", "line", object(), 5)))  # type: ignore[arg-type]
    assert shown.startswith("the traceback cannot be shown: builtins.")
    assert _traced(Hidden()).startswith("the traceback cannot be shown: builtins.RuntimeError")
    assert error_name(Hidden()) == "Hidden"


# What a letter does not say


def test_a_letter_shows_no_argument(app: Celery, queue: str) -> None:
    """Whatever the task died of by Celery's hand or ours; and what the sender chose to show stays as it was."""
    patterns.use_strict_json(app)

    @app.task(shared=False, name="takes_one")
    @dead_letter(f"{queue}.dead")
    def takes_one(x: str) -> None: ...

    @app.task(shared=False, name="keyed")
    @dead_letter(f"{queue}.dead")
    @idempotent(key=lambda x: x, ttl=timedelta(hours=1))
    def keyed(x: Any) -> None: ...

    @app.task(shared=False, name="by_key")
    @dead_letter(f"{queue}.dead")
    @idempotent(key="x", ttl=timedelta(hours=1))
    def by_key(x: Any, y: Any = None) -> Any:
        return {"pair": {SECRET, x}} if y == 1 else y

    hidden = {"argsrepr": "('****',)", "kwargsrepr": "{'x': '****'}"}
    run_here(takes_one, SECRET, SECRET, headers=hidden)
    run_here(takes_one, SECRET, headers=hidden, x=SECRET)
    run_here(takes_one, headers=hidden, y=SECRET)
    run_here(keyed, [SECRET, 0.5], headers=hidden)
    run_here(keyed, {"name": SECRET, "price": float("nan")}, headers=hidden)
    run_here(by_key, SECRET, 1, headers=hidden)
    run_here(by_key, SECRET, 2, headers=hidden)
    run_here(by_key, SECRET, 3, headers=hidden)  # the same key, other arguments
    standing = taken(app, f"{queue}.dead")
    errors = [json.loads(message.headers[LETTER])["error"].rpartition(".")[2] for message in standing]
    assert errors == ["TypeError"] * 3 + ["InvalidKey"] * 2 + ["KeyMismatch"] * 2
    for message in standing:
        assert SECRET not in message.headers[LETTER], json.loads(message.headers[LETTER])["message"]
        assert {name: message.headers[name] for name in hidden} == hidden


@pytest.mark.parametrize("kind", ["json", "pickle", "yaml", "nonsense"])
def test_a_message_that_cannot_be_read_shows_nothing_either(app: Celery, queue: str, kind: str) -> None:
    """What the decoder says of a body may quote none of it."""
    body = f'[["{SECRET}", \xff], {{}}'.encode("latin-1")
    headers = {"task": "t", "id": "i", "argsrepr": "('****',)", "kwargsrepr": "{}"}
    message = Message(body, headers=headers, content_type=f"application/{kind}", content_encoding="utf-8", accept=None)
    try:
        message.decode()
    except Exception as error:
        letter = found(app, message, "unreadable", error)
        assert SECRET not in str(found_message(message, letter)["headers"])
    else:
        raise AssertionError("it was read")


# What RabbitMQ writes itself


def buried_by(app: Celery, queue: str, how: str) -> dict[str, Any]:
    """A task whose message RabbitMQ buries, by a queue of the user's that says so; its headers as sent."""
    source, arguments = f"{queue}.{how}", {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"{queue}.dead"}
    more: dict[str, dict[str, Any]] = {
        "queue_ttl": {"x-message-ttl": 50},
        "maxlen": {"x-max-length": 1},
        "delivery_limit": {"x-queue-type": "quorum", "x-delivery-limit": 2},
    }
    exchange = Exchange(f"{queue}-x", type="topic")
    declared = Queue(source, exchange, routing_key=f"{how}.#", queue_arguments={**arguments, **more.get(how, {})})
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        Queue(f"{queue}.dead", durable=True)(channel).declare()
        declared(channel).declare()
        app.signature("t", args=["o-1"], task_id=f"id-{how}", app=app).apply_async(
            exchange=exchange,
            routing_key=f"{how}.eu",
            priority=2,
            argsrepr="('****',)",
            headers={HEADER: {"sent": 5.0, "key": "mine"}},
            **({"expiration": 0.05} if how == "message_ttl" else {}),
        )
        if how == "maxlen":
            wait_until(lambda: channel.queue_declare(source, passive=True).message_count, 10, "the task's message")
            app.amqp.Producer(connection).publish("pushes it out", exchange=exchange.name, routing_key="maxlen.eu")
        while how in ("rejected", "delivery_limit"):
            raw = wait_until(lambda: channel.basic_get(source), 5, "the message") if how == "rejected" else None
            raw = raw or channel.basic_get(source)
            if raw is not None:
                channel.basic_reject(raw.delivery_tag, requeue=how != "rejected")
            if how == "rejected" or queue_length(connection, f"{queue}.dead"):
                break
    return more


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("rejected", "rejected"),
        ("message_ttl", "expired"),
        ("queue_ttl", "expired"),
        ("maxlen", "queue_full"),
        ("delivery_limit", "delivery_limit"),
    ],
)
def test_a_letter_that_rabbitmq_wrote_is_read(on_rabbit: Celery, queue: str, how: str, reason: str) -> None:
    """With our word for its reason, where it came from, and a stable id; and replayed to where it came from."""
    app = on_rabbit
    began = int(time.time())
    buried_by(app, queue, how)
    letters = dead_letters(app, f"{queue}.dead")
    wait_until(lambda: letters.count(), 10, "the letter")
    first, second = list(letters), list(dead_letters(app, f"{queue}.dead"))
    assert first == second
    (letter,) = first
    assert (letter.reason, letter.task, letter.task_id, letter.root_id) == (reason, "t", f"id-{how}", f"id-{how}")
    assert (letter.queue, letter.exchange, letter.routing_key) == (f"{queue}.{how}", f"{queue}-x", f"{how}.eu")
    assert (letter.error, letter.message, letter.traceback, letter.worker) == ("", "", "", None)
    assert (letter.attempt, letter.broker_count, letter.priority, letter.first_published) == (1, 1, 2, 5.0)
    assert (letter.first_started, began <= letter.died_at <= time.time() + 1) == (None, True)
    assert letter.properties.get("expiration") == ("50" if how == "message_ttl" else None)

    if how in ("queue_ttl", "maxlen"):  # what buried it would bury it again
        with app.connection_for_write() as connection:
            connection.default_channel.queue_delete(f"{queue}.{how}")
            Queue(f"{queue}.{how}", Exchange(f"{queue}-x", type="topic"), routing_key=f"{how}.#")(
                connection.default_channel
            ).declare()
    result = letters.replay(letter)
    (message,) = taken(app, f"{queue}.{how}")
    assert message.headers["id"] == result.id
    assert message.headers["argsrepr"] == "('****',)"
    assert message.payload[0] == ["o-1"]
    assert {name: message.headers[HEADER][name] for name in ("key", "replay", "first_sent")} == {
        "key": "mine",
        "replay": 1,
        "first_sent": 5.0,
    }
    assert not [name for name in message.headers if name.startswith("x-") and name != "x-delivery-count"]
    assert letters.count() == 0


def test_letters_of_ours_and_of_rabbitmqs_stand_in_one_queue(on_rabbit: Celery, queue: str) -> None:
    """Listed in the order in which they came."""
    app = on_rabbit
    buried_by(app, queue, "rejected")
    wait_until(lambda: len(letters_in(app, queue)) == 1, 10, "the first letter")
    run_here(failing(app), task_id="ours")
    buried_by(app, queue, "rejected")
    wait_until(lambda: standing(app, queue) == 3, 10, "three letters")
    # One task id, one body, one queue, one reason: it is the same death to a reader, as with letters of ours.
    assert [letter.task_id for letter in letters_in(app, queue)] == ["id-rejected", "ours"]


def standing(app: Celery, queue: str) -> int:
    with app.connection_for_read() as connection:
        return queue_length(connection, f"{queue}.dead") or 0


GOOD = {
    "queue": "orders",
    "reason": "rejected",
    "time": 1_700_000_000,
    "exchange": "",
    "routing-keys": ["orders"],
    "count": 1,
}


@pytest.mark.parametrize(
    "deaths",
    [
        None,
        "no",
        5,
        [],
        {},
        [None],
        ["no"],
        [[]],
        [{}],
        [{**GOOD, "queue": 5}],
        [{**GOOD, "reason": ["rejected"]}],
        [{**GOOD, "time": "noon"}],
        [{**GOOD, "time": float("nan")}],
        [{**GOOD, "time": 10**400}],
        [{**GOOD, "time": True}],
    ],
)
def test_a_damaged_x_death_is_no_letter(deaths: Any) -> None:
    """Nor is it an error."""
    assert letter_of(Message(b"[]", headers={"x-death": deaths}, properties={})) is None


@pytest.mark.parametrize(
    "spoiled",
    [
        {"exchange": 5},
        {"routing-keys": "orders"},
        {"routing-keys": [None]},
        {"routing-keys": []},
        {"count": -1},
        {"count": "many"},
        {"count": 10**400},
        {"reason": "worn_out"},
        {"original-expiration": [1]},
    ],
)
def test_of_a_damaged_x_death_is_read_what_can_be(spoiled: dict[str, Any]) -> None:
    """Where it came from and when are known: the rest is as if it were not told."""
    headers: Any = {
        "x-death": [{**GOOD, **spoiled}, "no"],
        "task": ["t"],
        "id": 5,
        "retries": -3,
        HEADER: ["no"],
        "group": {"a": 1},
        "root_id": "\ud800",
    }
    letter = letter_of(Message(b"\xff", headers=headers, properties={"priority": "high"}))
    assert letter is not None
    assert (letter.queue, letter.routing_key, letter.exchange, letter.died_at) == ("orders", "orders", "", 1.7e9)
    assert (letter.task, letter.task_id, letter.attempt, letter.broker_count, letter.priority) == (
        None,
        None,
        1,
        1,
        None,
    )
    assert letter.reason == ("buried_by_broker" if spoiled.get("reason") else "rejected")


def test_a_letter_knows_a_delayed_delivery() -> None:
    """RabbitMQ's own exchange and prefix for delays are no origin: the queue is."""
    death = {**GOOD, "exchange": "celery_delayed_delivery", "routing-keys": [f"{'0.' * 28}orders.eu"]}
    letter = letter_of(Message(b"[]", headers={"x-death": [death]}, properties={}))
    assert letter is not None
    assert (letter.queue, letter.exchange, letter.routing_key) == ("orders", "", "orders")


def test_two_bodies_of_one_id_are_two_letters() -> None:
    """An id may be chosen, and used again for other work."""
    headers = {"x-death": [GOOD], "id": "report", "task": "t"}
    one, two = (letter_of(Message(body, headers=headers, properties={})) for body in (b"[1]", b"[2]"))
    assert one is not None
    assert two is not None
    assert one.id != two.id


# The queue


def _died_at(letter: Letter) -> float:
    return letter.died_at


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_a_queue_that_we_made_keeps_what_was_looked_at(
    on_rabbit: Celery, queue: str, queue_type: Any, caplog: Any
) -> None:
    """Listed fifty times, also half-way: nothing is missing, and in a classic queue nothing is out of order.

    RabbitMQ itself returns what was looked at to a quorum queue in an order of its own.
    """
    app = on_rabbit

    @app.task(shared=False, name="t")
    @dead_letter(f"{queue}.dead", queue_type=queue_type)
    def t(_: int) -> None:
        raise ValueError

    ids = [run_here(t, number).id for number in range(30)]
    letters = dead_letters(app, f"{queue}.dead")

    def listed() -> list[str | None]:
        found = list(letters)
        return [letter.task_id for letter in (found if queue_type == "classic" else sorted(found, key=_died_at))]

    for turn in range(50):
        half = iter(letters)
        for _ in range(turn % 30):
            next(half)
        half.close()
        wait_until(lambda: listed() == ids, 10, "all letters, in order")
    with app.connection_for_write() as connection:
        same = Queue(f"{queue}.dead", durable=True, queue_arguments=_arguments(app, connection, f"{queue}.dead"))
        assert same.queue_arguments["x-queue-type"] == queue_type
        assert same(connection.default_channel).declare() == f"{queue}.dead"
    assert ("dead_letter_queue_made" in caplog.text) is (queue_type == "quorum")
    assert letters.replay_all().sent == 30


def test_a_limit_of_deliveries_is_switched_off_where_there_is_one(on_rabbit: Celery, queue: str, caplog: Any) -> None:
    """RabbitMQ has one from 4.0 on, and would take -1 for 0 before; what cannot be known gets a classic queue."""
    app = on_rabbit

    @app.task(shared=False, name="t")
    @dead_letter(queue_type="quorum")
    def t() -> None: ...

    class Told:
        def __init__(self, **told: str) -> None:
            self.connection = self
            self.server_properties = told

    quorum, unlimited = {"x-queue-type": "quorum"}, {"x-queue-type": "quorum", "x-delivery-limit": -1}
    for told, expected in (
        ({"product": "RabbitMQ", "version": "3.10.8"}, quorum),
        ({"product": "RabbitMQ", "version": "3.13.7+1"}, quorum),
        ({"product": "RabbitMQ", "version": "4.0.1"}, unlimited),
        ({"product": "RabbitMQ", "version": "10.2"}, unlimited),
        ({"product": "RabbitMQ"}, {"x-queue-type": "classic"}),
        ({"product": "LavinMQ", "version": "4.2"}, {"x-queue-type": "classic"}),
        ({}, {"x-queue-type": "classic"}),
    ):
        caplog.clear()
        assert _arguments(app, Told(**told), "any.dead") == expected  # type: ignore[arg-type]
        assert "not_checked=" in caplog.text


def test_a_type_is_a_word_of_rabbitmqs() -> None:
    """Anything else is told so when the pattern is built; on Redis, where a list has no type, it changes nothing."""
    for wrong in ("stream", "Quorum", None, True):
        with pytest.raises(ConfigurationError, match='expected queue_type to be "classic" or "quorum"'):
            dead_letter("orders.dead", queue_type=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [250, 251, 255])
def test_a_name_too_long_for_amqp_is_cut(app: Celery, length: int, caplog: Any) -> None:
    """``.dead`` behind a queue's name may be more than the 255 bytes that a name has: the letters are found by either name."""
    name = (uuid.uuid4().hex + "é" * 200)[: length - 1].encode()[:length].decode(errors="ignore")
    name += "x" * (length - len(name.encode()))

    @app.task(shared=False, name="t")
    @dead_letter()
    def t() -> None:
        raise ValueError

    run_here(t, queue=name)
    assert "not_published" not in caplog.text
    (letter,) = dead_letters(app, f"{name}.dead")
    assert letter.queue == name
    short = fitting(f"{name}.dead")
    assert len(short.encode()) <= 255
    assert (short == f"{name}.dead") is (length == 250)
    assert list(dead_letters(app, short)) == [letter]
    assert fitting(f"{name[:-1]}y.dead") != short


# How much room there is


def test_a_size_is_never_below_the_bytes_on_the_wire() -> None:
    """A frame that is a byte too long ends the connection."""
    rng = random.Random(7)

    def value(depth: int) -> Any:
        kinds: list[Any] = [
            None,
            True,
            5,
            -(2**40),
            2.5,
            "x" * rng.randrange(50),
            "é漢😀\ud800",
            b"\xff\x00",
            Decimal("1.5"),
        ]
        if depth:
            kinds += [
                [value(depth - 1) for _ in range(rng.randrange(6))],
                {f"k{n}é": value(depth - 1) for n in range(4)},
            ]
        return rng.choice(kinds)

    for _ in range(300):
        headers = {f"h{number}": value(3) for number in range(10)}
        assert size_of(headers) >= wire(headers)


@pytest.mark.parametrize("fat", [100_000, 125_000, 128_000])
@pytest.mark.parametrize("inside", ["one", "many", "numbers"])
def test_headers_that_nearly_fill_a_frame_leave_a_letter(
    on_rabbit: Celery, queue: str, fat: int, inside: str, caplog: Any
) -> None:
    """As a producer sent them: the letter is as long as there is room for, and a replay is the message as it was."""
    app = on_rabbit

    @app.task(shared=False, name="t")
    @retry(on=OSError, attempts=2, wait=wait_none())
    @dead_letter(f"{queue}.dead")
    def t(_order: str) -> None:
        def deep(number: int) -> None:
            if number == 0:
                raise OSError("x" * 20_000)
            deep(number - 1)

        deep(300)

    headers: dict[str, Any] = {
        "one": {"fat": "y" * fat},
        "many": {f"fat-{number}": "z" * 990 for number in range(fat // 1_002)},
        "numbers": {"fat": list(range(2**40, 2**40 + fat // 9))},
    }[inside]
    t.apply_async(("o-1",), headers=headers, argsrepr="('****',)")
    for _ in range(2):
        (message,) = taken(app, queue, sent=1)
        assert {name: message.headers[name] for name in headers} == headers
        custom = {**headers, HEADER: message.headers[HEADER]}
        more = {name: message.headers[name] for name in ("argsrepr", "kwargsrepr", "origin", "lang")}
        run_here(
            t,
            *message.payload[0],
            task_id=message.headers["id"],
            retries=message.headers["retries"],
            headers={**more, **custom, "properties": message.properties},
        )
    assert "not_published" not in caplog.text
    letters = dead_letters(app, f"{queue}.dead")
    (letter,) = letters
    assert (letter.error, letter.task, letter.queue) == ("builtins.OSError", "t", queue)
    if fat == 100_000:
        assert len(letter.traceback) > 8_000
        assert len(letter.message) == 2_000
    letters.replay_all()
    (message,) = taken(app, queue)
    assert {name: message.headers[name] for name in headers} == headers
    assert (message.payload[0], message.headers["task"], message.headers["argsrepr"]) == (["o-1"], "t", "('****',)")
    assert message.content_type == "application/json"


def test_a_letter_with_moved_headers_is_json_that_any_tool_reads(on_rabbit: Celery, queue: str) -> None:
    """The largest headers and the body stand side by side in it; bytes that are no text are in base64."""
    app = on_rabbit
    for body, encoding in ((b'[["o-1"], {}, {}]', "utf-8"), (b"\xff\x00", "base64")):
        headers = {"task": "t", "id": "i", "fat": "y" * 129_000, "small": "s"}
        message = Message(body, headers=headers, content_type="text/plain", delivery_info={"routing_key": queue})
        letter = found(app, message, "malformed", ValueError("no"), trace="😀" * 16_000)
        publish_letter(app, f"{queue}.dead", found_message(message, letter))
        (stored,) = taken(app, f"{queue}.dead")
        assert stored.content_type == WRAPPED
        assert (stored.headers["task"], stored.headers["id"], stored.headers["small"]) == ("t", "i", "s")
        told = json.loads(stored.body)
        assert told["headers"] == {"fat": "y" * 129_000}
        assert (told["content_type"], told["body_encoding"]) == ("text/plain", encoding)
        assert (base64.b64decode(told["body"]) if encoding == "base64" else told["body"].encode()) == body
        whole = unwrapped(stored)
        assert (whole.body, whole.headers["fat"], whole.content_type) == (body, "y" * 129_000, "text/plain")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"5",
        b"[]",
        b'{"body": 5}',
        b'{"body": "\xff"}',
        b'{"body":"x","body_encoding":"base64","headers":[]}',
    ],
)
def test_a_damaged_wrapping_is_left_as_it_is(body: bytes) -> None:
    """A message that only says it is one of those is read as what it is."""
    message = Message(body, headers={"a": 1}, content_type=WRAPPED)
    assert unwrapped(message) is message
    assert (message.body, message.headers, message.content_type) == (body, {"a": 1}, WRAPPED)


def test_a_worker_buries_what_nearly_fills_a_frame(rabbit: str, database: str, tmp_path: Any, queue: str) -> None:
    """Whatever it is: nobody's task, a body that cannot be read, a task that fails, one that is rejected; and it goes on."""
    environment = {"FLOOR_BROKER": rabbit, "FLOOR_BACKEND": database, "FLOOR_STORE": database, "FLOOR_TRACES": database}
    with floor(environment, tmp_path) as shop:
        worker = shop.worker()
        pid = worker.pid
        fat = {"fat": "y" * 127_500}
        ids = [
            shop.app.send_task(name, args, headers=fat, argsrepr="").id
            for name, args in (("nobody", ()), ("doomed", ("o",)))
        ]
        with shop.app.connection_for_write() as connection:
            producer = shop.app.amqp.Producer(connection)
            for number, body in enumerate((b"{", b"[]")):
                headers = {**fat, "task": "doomed", "id": f"id-{number}"}
                producer.publish(
                    body,
                    routing_key=shop.queue,
                    headers=headers,
                    content_type="application/json",
                    content_encoding="utf-8",
                )
        ids += ["id-0", "id-1"]
        shop.wait(lambda: len(shop.letters()) == 4, 30, "four letters")
        assert sorted(letter.task_id for letter in shop.letters()) == sorted(ids)
        assert shop.task("add").delay(1, 2).get(timeout=20) == 3
        assert worker.pid == pid
        assert worker.alive()
        dead_letters(shop.app, shop.dead).replay_all()
        shop.wait(lambda: len(shop.letters()) == 4, 30, "the same once more")
        assert [letter.replay for letter in shop.letters()] == [1] * 4


def test_names_that_are_no_text_leave_letters(rabbit: str, database: str, tmp_path: Any) -> None:
    """RabbitMQ carries a header whose name is not UTF-8: it is kept, and the worker goes on."""
    environment = {"FLOOR_BROKER": rabbit, "FLOOR_BACKEND": database, "FLOOR_STORE": database, "FLOOR_TRACES": database}
    with floor(environment, tmp_path) as shop:
        shop.worker()
        odd = {b"\xff": "y", "argsrepr": "", "lang": "py", "retries": 0}
        with shop.app.connection_for_write() as connection:
            producer = shop.app.amqp.Producer(connection)
            for headers, body in (({"task": "doomed", "id": "id-1"}, b'[["o"], {}, {}]'), ({}, b'{"no": 1}')):
                producer.publish(
                    body,
                    routing_key=shop.queue,
                    headers={**odd, **headers},
                    content_type="application/json",
                    content_encoding="utf-8",
                )
        shop.wait(lambda: len(shop.letters()) == 2, 30, "two letters")
        assert shop.task("add").delay(1, 2).get(timeout=20) == 3
        with shop.app.connection_for_read() as connection:
            raw = connection.default_channel.basic_get(shop.dead, no_ack=False)
            assert raw.headers[b"\xff"] == "y"


@pytest.mark.parametrize("room", [120_000, 20_000, 7_000, 3_584])
def test_a_smaller_frame_is_no_end(app: Celery, queue: str, room: int) -> None:
    """Broker and client may agree on frames of a few KiB: the letter fits there, too."""
    headers = {"task": "t", "id": "i", "argsrepr": "漢" * 1_000, "stamps": {"a": ["é" * 1_000]}}
    message = Message(
        b"[[], {}, {}]", headers=headers, content_type="application/json", delivery_info={"routing_key": queue}
    )
    letter = found(app, message, "malformed", ValueError("\x00" * 5_000), trace="é\n" * 16_000)
    made = fitted(found_message(message, letter), room)
    assert wire(made["headers"]) <= room
    shorter = read_letter(made["headers"])
    assert shorter is not None
    assert shorter.id == letter.id


def test_a_frame_that_was_agreed_on_is_asked(rabbit: str, on_rabbit: Celery) -> None:
    """The connection's own size counts, and Redis has none."""
    with on_rabbit.connection_for_write() as connection:
        connection.connect()
        assert room_in(connection) == 131_072 - 3_000
    with Celery(broker="redis://localhost:1/0").connection_for_write() as connection:
        assert room_in(connection) is None


# Between messages


def test_rabbitmqs_orders_are_not_carried_out_again(on_rabbit: Celery, queue: str) -> None:
    """A header CC has sent the message to other queues once: neither its letter, a next attempt nor a replay goes there."""
    app = on_rabbit

    @app.task(shared=False, name="t")
    @retry(on=OSError, attempts=2, wait=wait_none())
    @dead_letter(f"{queue}.dead")
    def t() -> None:
        raise OSError

    with app.connection_for_write() as connection:
        Queue(f"{queue}.cc")(connection.default_channel).declare()
    cc = {"CC": [f"{queue}.cc"]}
    run_here(t, headers=cc)
    run_here(t, retries=1, headers=cc)
    message = Message(
        b"{", headers={"task": "t", **cc}, content_type="text/plain", delivery_info={"routing_key": queue}
    )
    publish_letter(app, f"{queue}.dead", found_message(message, found(app, message, "unreadable", ValueError())))
    letters = dead_letters(app, f"{queue}.dead")
    assert letters.replay_all().sent == 2
    assert len(taken(app, queue)) == 3
    assert taken(app, f"{queue}.cc") == []


def test_a_compressed_message_is_read_after_its_letter(app: Celery, queue: str) -> None:
    """Its body was unpacked when it came, so neither the letter, a next attempt nor a replay says that it is packed."""

    @app.task(shared=False, name="t")
    @retry(on=OSError, attempts=2, wait=wait_none())
    @dead_letter(f"{queue}.dead")
    def t(_text: str) -> None:
        raise OSError

    t.apply_async(("o" * 1_000,), compression="gzip")
    (message,) = taken(app, queue, sent=1)
    assert message.headers["compression"] == "application/x-gzip"
    run_here(t, *message.payload[0], task_id="packed", headers={"compression": "application/x-gzip"})
    (attempt,) = taken(app, queue)
    assert attempt.payload[0] == ["o" * 1_000]
    run_here(t, *message.payload[0], task_id="packed", retries=1, headers={"compression": "application/x-gzip"})
    letter = found(app, message, "rejected", ValueError())
    publish_letter(app, f"{queue}.dead", found_message(message, letter))
    assert dead_letters(app, f"{queue}.dead").replay_all().sent == 2
    replayed = taken(app, queue)
    assert [one.payload[0] for one in replayed] == [["o" * 1_000]] * 2
    assert [one.errors for one in replayed] == [[], []]


@pytest.mark.parametrize("length", [255, 256, 100_000])
def test_an_id_longer_than_a_property_leaves_a_letter(app: Celery, queue: str, length: int, caplog: Any) -> None:
    """AMQP's properties carry 255 bytes, its headers more; a letter tells of 500 characters."""
    run_here(failing(app), task_id="i" * length)
    assert "not_published" not in caplog.text
    (letter,) = letters_in(app, queue)
    assert letter.task_id == ("i" * length)[:500]


def test_a_letter_has_no_priority_of_its_own(app: Celery, queue: str) -> None:
    """On Redis it would stand in another list, before those that came first; its message's own comes back with a replay."""
    task = failing(app)
    for priority in (0, 9, 3):
        run_here(
            task,
            priority,
            headers={
                "delivery_info": {"exchange": "", "routing_key": queue, "priority": priority, "redelivered": False}
            },
        )
    assert [letter.priority for letter in letters_in(app, queue)] == [0, 9, 3]
    dead_letters(app, f"{queue}.dead").replay_all()
    found = {message.payload[0][0]: message.properties["priority"] for message in taken(app, queue)}
    assert found == {0: 0, 9: 9, 3: 3}


@pytest.mark.usefixtures("unheard")
def test_letters_under_a_prefix_of_redis(database: str, queue: str) -> None:
    """``global_keyprefix`` moves the lists, and a name that was cut with them."""
    app = Celery("prefixed", broker=database, backend="cache+memory://", set_as_current=False)
    app.conf.broker_transport_options = {"global_keyprefix": "shop:"}
    app.conf.task_default_queue = queue
    patterns.use_patterns(app)
    patterns.use_store(app, MemoryStore())

    @app.task(shared=False, name="t")
    @dead_letter(queue_type="quorum")
    def t() -> None:
        raise ValueError("\ud800\x00")

    for name in (queue, f"{queue}-{'x' * 250}"):
        run_here(t, queue=name)
        letters = dead_letters(app, f"{name}.dead")
        assert [letter.message for letter in letters] == ["\ud800\x00"]
        letters.replay_all()
        assert letters.count() == 0
        assert len(taken(app, name)) == 1
    app.close()


def test_a_message_that_names_nothing_is_known_again(rabbit: str) -> None:
    """By what stays with it when it comes again; where nothing does, it is rather listed twice than lost."""
    app = Celery("known", broker=rabbit, set_as_current=False)

    def named(properties: dict[str, Any], **headers: Any) -> str:
        info = {"exchange": "", "routing_key": "q"}
        message = Message(b"5", headers=headers, properties=properties, content_type="text/plain", delivery_info=info)
        return found(app, message, "malformed", ValueError()).id

    again = {"redelivered": True, "x-delivery-count": 1}
    for told in ({"delivery_tag": "a"}, {"message_id": "a"}, {"correlation_id": "a"}):
        assert named(told) == named(told, **again)
        assert named(told) != named(dict.fromkeys(told, "b"))
    assert named({"message_id": "a"}) != named({"message_id": "a"}, theirs=1)
    assert named({}) != named({})
    app.close()


# Where brokers are several


def test_a_list_of_brokers_of_which_the_last_is_there(broker: str, queue: str) -> None:
    """A letter, reading it and its replay find the same way as a worker does."""
    scheme = broker.partition(":")[0]
    app = made_app(";".join([*(f"{scheme}://127.0.0.1:{port}//" for port in (1, 2, 3)), broker]), queue)
    run_here(failing(app), 1)
    letters = dead_letters(app, f"{queue}.dead")
    assert [letter.task for letter in letters] == ["fails"]
    assert letters.replay_all().sent == 1
    assert len(taken(app, queue)) == 1
    app.close()


def test_letters_stand_where_is_written(broker: str, queue: str) -> None:
    """Another broker may be read from: letters are written to this one, and read, and go back by it."""
    scheme = broker.partition(":")[0]
    app = made_app(broker, queue)
    app.conf.update(broker_read_url=f"{scheme}://127.0.0.1:1//", broker_write_url=broker)
    run_here(failing(app), 1)
    letters = dead_letters(app, f"{queue}.dead")
    assert [letter.task for letter in letters] == ["fails"]
    assert letters.replay_all().sent == 1
    app.conf.broker_read_url = broker
    assert len(taken(app, queue)) == 1
    app.close()


def test_large_letters_are_read_a_few_at_a_time(database: str, queue: str) -> None:
    """A hundred small ones come in one answer of Redis', of those of a megabyte each about ten."""
    app = made_app(database, queue)
    task = failing(app)
    for number in range(20):
        run_here(task, f"{number} {'x' * 1_000_000}")
    letters = dead_letters(app, f"{queue}.dead")
    assert [letter.died_at for letter in letters] == sorted(letter.died_at for letter in letters)
    assert letters.count() == 20
    shelf = OnRedis(app, f"{queue}.dead", lambda *_: None)
    _, page = shelf._page([shelf._list], [0, b"", 100, _PAGE_BYTES])
    assert 1 < len(page) <= 4 + 8
    shelf.close()
    assert letters.replay_all().sent == 20
    app.close()


# Between releases

FIRST = {
    "id": "0" * 32,
    "task": "t",
    "task_id": "i",
    "root_id": None,
    "reason": "failed",
    "error": "builtins.ValueError",
    "message": "m",
    "traceback": "",
    "attempt": 2,
    "history": [{"attempt": 1, "at": 1.0, "error": "E"}],
    "queue": "q",
    "exchange": "",
    "routing_key": "q",
    "priority": None,
    "first_started": 1.0,
    "died_at": 2.0,
    "worker": None,
    "replay": 0,
}


def test_a_letter_of_an_earlier_release_is_read() -> None:
    """What it does not say is not known."""
    letter = read_letter({LETTER: json.dumps(FIRST)})
    assert letter is not None
    known = dataclasses.asdict(letter)
    assert {name: known[name] for name in FIRST} == FIRST
    assert {name: value for name, value in known.items() if name not in FIRST} == {
        "parent_id": None,
        "group_id": None,
        "corrected": [],
        "errors": {"E": 1},
        "properties": {},
        "first_published": None,
        "broker_count": 0,
    }


def test_a_letter_of_a_later_release_is_read() -> None:
    """Its reasons are told as they are, its other fields passed over."""
    later = {**FIRST, "reason": "bored", "mood": ["bad"], "history": [{"attempt": 1, "at": 1, "error": "E", "mood": 1}]}
    letter = read_letter({LETTER: json.dumps(later)})
    assert letter is not None
    assert (letter.reason, letter.history) == ("bored", [{"attempt": 1, "at": 1.0, "error": "E"}])


def test_what_a_letter_says_it_says_again(app: Celery, queue: str) -> None:
    """Written and read, a letter is the same letter."""
    told: list[Letter] = []

    def hear(letter: Letter, **_: Any) -> None:
        told.append(letter)

    patterns.task_dead_lettered.connect(hear)
    run_here(
        failing(app), 1, retries=3, headers={HEADER: {"sent": 1.0, "started": 2.0, "history": [1, {"attempt": 2}]}}
    )
    patterns.task_dead_lettered.disconnect(hear)
    assert letters_in(app, queue) == told


WRONG: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    10**400,
    float("nan"),
    float("-inf"),
    "",
    "x",
    "\ud800",
    [],
    [[]],
    {},
    {"a": {}},
]


@pytest.mark.parametrize("name", [*(field.name for field in dataclasses.fields(Letter)), "history*", "errors*"])
def test_a_field_of_a_wrong_type_is_as_if_it_were_not_there(name: str) -> None:
    """A letter that was written by hand is read with right types, or is no letter; it is never an error."""
    for wrong in WRONG:
        if name == "history*":
            told: dict[str, Any] = {
                **FIRST,
                "history": [wrong, {"attempt": wrong}, {"attempt": 1, "at": wrong, "error": wrong}],
            }
        elif name == "errors*":
            told = {**FIRST, "errors": {"E": wrong, "F": 1}}
        else:
            told = {**FIRST, name: wrong}
        letter = read_letter({LETTER: json.dumps(told)})
        if letter is None:
            assert name in ("id", "reason", "queue", "died_at"), (name, wrong)
            continue
        typed = dataclasses.asdict(letter)
        for one in ("id", "reason", "error", "message", "traceback", "queue", "exchange", "routing_key"):
            assert isinstance(typed[one], str), (one, wrong)
        for one in ("attempt", "replay", "broker_count"):
            assert type(typed[one]) is int, (one, wrong)
        assert isinstance(letter.died_at, float)
        assert all(
            entry.keys() == {"attempt", "at", "error"} and type(entry["attempt"]) is int for entry in letter.history
        )
        assert all(type(number) is int for number in letter.errors.values())


@pytest.mark.parametrize(
    "header",
    ["{", "[]", "5", "null", '"x"', "", "[" * 100_000, '{"id": ' + "9" * 5_000 + "}", None, 5, b"\xff", [], {}],
)
def test_a_header_that_is_no_letter_is_none(header: Any) -> None:
    """Whatever stands there."""
    assert read_letter({LETTER: header}) is None


@pytest.mark.parametrize("headers", [None, [], "x", 5, {}])
def test_headers_that_are_none_hold_no_letter(headers: Any) -> None:
    """A message of somebody else's has them as it likes."""
    assert read_letter(headers) is None


def test_a_huge_history_is_cut(app: Celery, queue: str) -> None:
    """A header that somebody else filled does not fill the letter, nor the next attempt."""

    @app.task(shared=False, name="t")
    @retry(on=OSError, attempts=2, wait=wait_none())
    @dead_letter(f"{queue}.dead")
    def t() -> None:
        raise OSError

    huge = {
        "history": [{"attempt": 1, "at": 1.0, "error": "E" * 500, "more": "m" * 500}] * 50 + [{}] * 50,
        "errors": {f"{'k' * 200}{number}": 10**9 for number in range(100)},
    }
    run_here(t, headers={HEADER: huge})
    (message,) = taken(app, queue)
    assert len(json.dumps(message.headers[HEADER])) < 4096
    run_here(t, retries=1, headers={HEADER: huge})
    (letter,) = letters_in(app, queue)
    assert (len(letter.history), len(letter.errors)) == (8, 9)
    assert letter.errors["others"] == 92 * 10**9
    assert len(json.dumps([letter.history, letter.errors])) < 4096


def test_letters_survive_a_hostile_neighbour(app: Celery, queue: str) -> None:
    """Messages with letters and deaths by hand stand beside a true one: all that can be read is, and nothing else breaks."""
    with app.connection_for_write() as connection:
        producer = app.amqp.Producer(connection)
        made = [
            {LETTER: "[]"},
            {LETTER: json.dumps({**FIRST, "id": 5})},
            {LETTER: json.dumps({**FIRST, "history": 5, "queue": queue, "routing_key": queue})},
            {"x-death": [{**GOOD, "queue": queue, "routing-keys": [queue]}], "id": "x"},
            {"x-death": "no"},
        ]
        run_here(failing(app), 1)
        for headers in made:
            producer.publish(
                "{", routing_key=f"{queue}.dead", headers=headers, content_type="text/plain", serializer=None
            )
    letters = dead_letters(app, f"{queue}.dead")
    assert [letter.task_id for letter in letters][1:] == ["i", "x"]
    assert letters.replay_all().sent == 3
    assert len(taken(app, f"{queue}.dead")) == 3


def test_a_server_with_small_frames(queue: str, tmp_path: Any) -> None:
    """A RabbitMQ that allows frames of 8 KiB: long tracebacks and long headers leave letters, and come back whole."""

    class Small(RabbitServer):
        def environment(self) -> Any:
            (tmp_path / "rabbit.conf").write_text("frame_max = 8192\n")
            return {**super().environment(), "RABBITMQ_CONFIG_FILE": str(tmp_path / "rabbit")}

    server = Small()
    server.start()
    try:
        app = made_app(server.url, queue)
        run_here(failing(app, error=ValueError("é" * 5_000)), 1, headers={"fat": "y" * 5_000})
        letters = dead_letters(app, f"{queue}.dead")
        assert [letter.error for letter in letters] == ["builtins.ValueError"]
        letters.replay_all()
        (message,) = taken(app, queue)
        assert message.headers["fat"] == "y" * 5_000
        app.close()
    finally:
        server.close()
