"""The pattern ``dead_letter``, and reading and replaying what it wrote, on both brokers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import uuid
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Ignore, Reject
from kombu import Exchange, Queue, binding
from tenacity import wait_none

import celery_patterns as patterns
from celery_patterns import _publish as publish_module
from celery_patterns import dead_letter, dead_letters, idempotent, retry, task_dead_lettered
from celery_patterns._equipment import equipment_of
from celery_patterns._letter import LETTER, read_letter
from celery_patterns._message import HEADER
from celery_patterns.exceptions import ConfigurationError, LetterNotFound, OutOfMemory
from celery_patterns.stores import MemoryStore

from .here import run_here, soft_limit
from .servers import RabbitServer, RedisServer, wait_until


@pytest.fixture
def queue() -> str:
    return f"l-{uuid.uuid4().hex[:10]}"


@pytest.fixture
def app(broker: str, queue: str) -> Any:
    made = Celery("letters", broker=broker, backend="cache+memory://", set_as_current=False)
    patterns.use_patterns(made)
    patterns.use_store(made, MemoryStore())
    patterns.use_strict_json(made)
    made.conf.task_default_queue = queue
    with made.connection_for_write() as connection:
        made.amqp.queues[queue](connection.default_channel).declare()
    yield made
    made.close()


def messages(app: Celery, queue: str) -> list[Any]:
    """Everything in a queue, taken out."""
    found = []
    with app.connection_for_read() as connection, connection.SimpleQueue(queue) as simple:
        while True:
            try:
                message = simple.get(block=False)
            except simple.Empty:
                return found
            message.ack()
            found.append(message)


def failing(app: Celery, name: str = "fails", error: Any = None, **options: Any) -> Any:
    @app.task(shared=False, name=name, bind=True, **options)
    @dead_letter(f"{app.conf.task_default_queue}.dead")
    def task(self: Any, *args: Any, **kwargs: Any) -> None:
        for value in args:
            if isinstance(value, list):
                value.append("spoiled")
        raise error or ValueError("cannot do it")

    return task


def test_a_letter_is_an_equal_message(app: Celery, queue: str) -> None:
    """Arguments as received, headers, links and canvas, with where it came from and why it died."""
    task = failing(app)
    link = app.signature("after")
    link.freeze()
    run_here(
        task,
        "o-1",
        ["egg"],
        task_id="id-1",
        retries=3,
        amount=1,
        headers={
            "custom": "kept",
            "callbacks": [link],
            "chain": [link],
            "chord": None,
            "timelimit": [9, 8],
            "argsrepr": "('o-1',)",
            "x-death": "no",
            HEADER: {"started": 5.0, "history": [{"attempt": 1, "at": 1, "error": "E"}]},
        },
    )
    (letter,) = dead_letters(app, f"{queue}.dead")
    assert (letter.task, letter.task_id, letter.root_id, letter.queue) == ("fails", "id-1", "id-1", queue)
    assert (letter.reason, letter.error, letter.message) == ("failed", "builtins.ValueError", "cannot do it")
    assert (letter.attempt, letter.replay, letter.first_started, letter.worker) == (4, 0, 5.0, "here")
    assert letter.history == [{"attempt": 1, "at": 1, "error": "E"}]
    assert "cannot do it" in letter.traceback
    assert 'raise error or ValueError("cannot do it")' in letter.traceback
    (message,) = messages(app, f"{queue}.dead")
    args, kwargs, embed = message.payload
    assert (args, kwargs) == (["o-1", ["egg"]], {"amount": 1})
    assert (embed["callbacks"][0]["task"], embed["chain"][0]["task"]) == ("after", "after")
    assert (message.headers["task"], message.headers["id"], message.headers["custom"]) == ("fails", "id-1", "kept")
    assert message.headers["timelimit"] == [9, 8]
    assert "x-death" not in message.headers
    assert json.loads(message.headers[LETTER])["id"] == letter.id


@pytest.mark.parametrize("error", [Ignore(), Reject("no", requeue=True)])
def test_control_flow_leaves_no_letter(app: Celery, queue: str, error: Exception) -> None:
    """Celery's own words are no failures."""
    run_here(failing(app, error=error))
    assert list(dead_letters(app, f"{queue}.dead")) == []


def test_only_the_last_attempt_leaves_a_letter(app: Celery, queue: str) -> None:
    """A failure that is tried again is not final."""

    @app.task(shared=False, name="flaky")
    @retry(on=OSError, attempts=2, wait=wait_none())
    @dead_letter(f"{queue}.dead")
    def flaky() -> None:
        raise OSError("again")

    run_here(flaky)
    assert list(dead_letters(app, f"{queue}.dead")) == []
    run_here(flaky, retries=1)
    assert [letter.attempt for letter in dead_letters(app, f"{queue}.dead")] == [2]


def test_a_memory_error_is_buried_as_what_it_is(app: Celery, queue: str) -> None:
    """The letter names MemoryError; what reaches Celery is an error that spares the worker."""
    assert isinstance(run_here(failing(app, error=MemoryError("much"))).value, OutOfMemory)
    assert [letter.error for letter in dead_letters(app, f"{queue}.dead")] == ["builtins.MemoryError"]


def test_the_queue_has_a_name_by_default(app: Celery, queue: str) -> None:
    """``dead_letter()`` goes to the task's queue with ``.dead`` behind it, also behind an exchange of its own."""

    @app.task(shared=False, name="plain")
    @dead_letter()
    def plain() -> None:
        raise ValueError

    other = f"{queue}-other"
    app.amqp.queues.add(Queue(other, Exchange(f"{queue}-x"), routing_key="key"))
    run_here(plain, headers={"delivery_info": {"exchange": f"{queue}-x", "routing_key": "key"}})
    run_here(plain, queue=queue)
    assert [letter.queue for letter in dead_letters(app, f"{other}.dead")] == [other]
    assert [letter.queue for letter in dead_letters(app, f"{queue}.dead")] == [queue]


def test_the_signal_tells(app: Celery, queue: str) -> None:
    """``task_dead_lettered`` is sent after the letter stands, with the task and the letter."""
    told: list[Any] = []

    def hear(sender: Any, letter: Any, **_: Any) -> None:
        told.append((sender.name, letter.error, len(list(dead_letters(app, f"{queue}.dead")))))

    task_dead_lettered.connect(hear)
    run_here(failing(app))
    task_dead_lettered.disconnect(hear)
    assert told == [("fails", "builtins.ValueError", 1)]


def test_looking_neither_loses_nor_reorders(app: Celery, queue: str) -> None:
    """Listed twenty times, also by a reader that stops half-way, the letters stand as they stood."""
    task = failing(app)
    ids = [run_here(task, n).id for n in range(450)]
    letters = dead_letters(app, f"{queue}.dead")
    for _ in range(10):
        iterator = iter(letters)
        for _ in range(37):
            next(iterator)
        iterator.close()
        assert [letter.task_id for letter in letters] == ids
    assert letters.count() == 450


def test_a_reader_that_is_killed_loses_nothing(app: Celery, broker: str, queue: str) -> None:
    """SIGKILL in the middle of a listing: every letter is still there, in order."""
    task = failing(app)
    ids = [run_here(task, n).id for n in range(50)]
    code = f"""
        import os, signal
        from celery import Celery
        from celery_patterns import dead_letters
        for number, letter in enumerate(dead_letters(Celery(broker={broker!r}), {queue + ".dead"!r})):
            if number == 20:
                os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL
    wait_until(
        lambda: [letter.task_id for letter in dead_letters(app, f"{queue}.dead")] == ids, 10, "all letters in order"
    )


def test_two_letters_of_one_death_are_one(app: Celery, queue: str) -> None:
    """A worker killed after the letter writes it again: listed, counted and replayed once, and gone after it."""
    task = failing(app)
    for _ in range(2):
        run_here(task, 1, task_id="same")
    run_here(task, 2)
    letters = dead_letters(app, f"{queue}.dead")
    assert letters.count() == 2
    assert letters.replay_all().sent == 2
    assert letters.count() == 0
    assert len(messages(app, queue)) == 2


def test_a_replay_is_a_new_task_with_a_fresh_budget(app: Celery, queue: str) -> None:
    """New id made from the letter's, root and key kept, no stale time, no chord; chain and links go with it."""
    task = failing(app)
    link = app.signature("after")
    link.freeze()
    chord = app.signature("c")
    chord.freeze()
    run_here(
        task,
        "o-1",
        task_id="id-1",
        retries=4,
        headers={
            "root_id": "root",
            "eta": "2020-01-01T00:00:00+00:00",
            "expires": "2020-01-01T00:00:00+00:00",
            "group": "g",
            "group_index": 1,
            "chain": [link],
            "chord": chord,
            "custom": "kept",
            HEADER: {"started": 1.0, "history": [1], "key": "mine", "waiting": 5.0},
        },
    )
    letters = dead_letters(app, f"{queue}.dead")
    letter = next(iter(letters))
    result = letters.replay(letter.id)
    assert list(letters) == []
    (message,) = messages(app, queue)
    headers = message.headers
    assert headers["id"] == result.id == message.properties["correlation_id"]
    assert result.id.replace("-", "") == letter.id
    kept = {name: headers[name] for name in ("root_id", "retries", "eta", "expires", "group", "group_index", "custom")}
    assert kept == {
        "root_id": "root",
        "retries": 0,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "custom": "kept",
    }
    ours = headers[HEADER]
    assert {**ours, "sent": 0, "replayed": 0} == {
        "key": "mine",
        "replay": 1,
        "replay_of": letter.id,
        "replayed": 0,
        "sent": 0,
    }
    assert LETTER not in headers
    args, _, embed = message.payload
    assert (args, embed["chord"], embed["chain"][0]["task"]) == (["o-1"], None, "after")


def test_a_replay_that_dies_again_is_another_letter(app: Celery, queue: str) -> None:
    """Its letter counts the replay, and has an id of its own."""
    task = failing(app)
    run_here(task, 1, task_id="id-1")
    letters = dead_letters(app, f"{queue}.dead")
    first = next(iter(letters))
    letters.replay_all()
    (message,) = messages(app, queue)
    run_here(task, 1, task_id=message.headers["id"], headers={HEADER: message.headers[HEADER]})
    (second,) = letters
    assert (second.replay, second.id != first.id, second.task_id) == (1, True, message.headers["id"])


def test_one_letter_among_many_is_replayed(app: Celery, queue: str) -> None:
    """The others stay, in order; an unknown id is an answer."""
    task = failing(app)
    ids = [run_here(task, n).id for n in range(5)]
    letters = dead_letters(app, f"{queue}.dead")
    middle = list(letters)[2]
    assert letters[middle.id] == middle
    letters.replay(middle)
    assert [letter.task_id for letter in letters] == [*ids[:2], *ids[3:]]
    for ask in (letters.replay, letters.__getitem__):
        with pytest.raises(LetterNotFound, match="no letter nonsense"):
            ask("nonsense")


def test_many_letters_are_replayed_in_order(app: Celery, queue: str) -> None:
    """Oldest first, over several pages, none left and none twice."""
    task = failing(app)
    for n in range(450):
        run_here(task, n)
    letters = dead_letters(app, f"{queue}.dead")
    assert letters.replay_all().sent == 450
    assert [message.payload[0][0] for message in messages(app, queue)] == list(range(450))
    assert list(letters) == []


def test_foreign_messages_in_the_queue_are_left_alone(app: Celery, queue: str) -> None:
    """What is no letter is neither shown nor taken."""
    task = failing(app)
    with app.connection_for_write() as connection, connection.SimpleQueue(f"{queue}.dead") as simple:
        simple.put({"not": "a letter"})
        run_here(task, 1)
        simple.put({"not": "either"})
    letters = dead_letters(app, f"{queue}.dead")
    assert letters.count() == 1
    letters.replay_all()
    assert [message.payload for message in messages(app, f"{queue}.dead")] == [{"not": "a letter"}, {"not": "either"}]


def test_an_empty_or_missing_queue_has_no_letters(app: Celery, queue: str) -> None:
    """No queue yet is no error."""
    letters = dead_letters(app, f"{queue}.never")
    assert (list(letters), letters.replay_all().sent) == ([], 0)


def test_other_brokers_are_an_answer() -> None:
    """A broker that can neither be looked into safely nor asked is named."""
    with pytest.raises(ConfigurationError, match="reads RabbitMQ and Redis"):
        dead_letters(Celery(broker="memory://"), "q")


def test_huge_errors_and_headers_fit(app: Celery, queue: str) -> None:
    """A long message, a deep traceback and fat headers stay under what a broker's frame can carry."""

    def deep(n: int) -> None:
        if n == 0:
            raise ValueError("x" * 1_000_000)
        deep(n - 1)

    @app.task(shared=False, name="huge")
    @dead_letter(f"{queue}.dead")
    def huge() -> None:
        deep(500)

    run_here(huge, headers={"fat": "y" * 100_000})
    (letter,) = dead_letters(app, f"{queue}.dead")
    assert len(letter.message) == 2000
    assert len(letter.traceback) <= 16_000
    run_here(huge)
    assert len(list(dead_letters(app, f"{queue}.dead"))) == 2


def test_a_letter_of_a_newer_release_is_read(app: Celery) -> None:
    """Fields that this release does not know are passed over; a broken header is no letter."""
    known = {
        "id": "i",
        "task": "t",
        "task_id": "t",
        "root_id": None,
        "reason": "failed",
        "error": "e",
        "message": "m",
        "traceback": "",
        "attempt": 1,
        "queue": "q",
        "exchange": "",
        "routing_key": "q",
        "priority": None,
        "first_started": 1,
        "died_at": 2,
        "worker": None,
    }
    assert read_letter({LETTER: json.dumps({**known, "new": 1})}) is not None
    for broken in ({}, {LETTER: "{"}, {LETTER: json.dumps({"id": 1})}, {LETTER: None}):
        assert read_letter(broken) is None


def test_nothing_pickled(app: Celery, queue: str) -> None:
    """Headers and body are JSON that any tool reads."""
    run_here(failing(app), 1)
    (message,) = messages(app, f"{queue}.dead")
    assert message.content_type == "application/json"
    json.loads(message.body)
    json.loads(message.headers[LETTER])


def test_the_users_queue_is_taken_as_it_is_found(rabbit: str, queue: str) -> None:
    """A queue that exists with other arguments is not declared again, which the broker would refuse."""
    app = Celery("own", broker=rabbit, backend="cache+memory://", set_as_current=False)
    patterns.use_patterns(app)
    patterns.use_store(app, MemoryStore())
    app.conf.task_default_queue = queue
    with app.connection_for_write() as connection:
        own = Queue(f"{queue}.dead", durable=True, queue_arguments={"x-max-length": 10_000, "x-queue-type": "quorum"})
        own(connection.default_channel).declare()
    run_here(failing(app), 1)
    assert len(list(dead_letters(app, f"{queue}.dead"))) == 1


def test_our_own_queue_is_durable_and_classic(rabbit: str, queue: str) -> None:
    """Declared again with the same arguments, the broker agrees; a transient one it would refuse."""
    app = Celery("ours", broker=rabbit, backend="cache+memory://", set_as_current=False)
    patterns.use_patterns(app)
    patterns.use_store(app, MemoryStore())
    app.conf.task_default_queue = queue
    run_here(failing(app), 1)
    with app.connection_for_write() as connection:
        declare = Queue(f"{queue}.dead", durable=True, queue_arguments={"x-queue-type": "classic"})
        assert declare(connection.default_channel).declare() == f"{queue}.dead"
        with pytest.raises(connection.channel_errors, match="inequivalent arg 'durable'"):
            Queue(f"{queue}.dead", durable=False)(connection.default_channel).declare()


@pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
@pytest.mark.parametrize("acks_late", [True, False])
def test_a_broker_that_is_gone_at_the_letter(kind: str, acks_late: bool, monkeypatch: Any, caplog: Any) -> None:
    """Late: the message goes back to its queue. Early: it is FAILURE, with the loudest line there is."""
    monkeypatch.setattr(
        publish_module.Publisher.publish, "__kwdefaults__", {"patience": publish_module.timedelta(seconds=1)}
    )
    server = RedisServer() if kind == "redis" else RabbitServer()
    server.start()
    try:
        url = server.url() if isinstance(server, RedisServer) else server.url
        app = Celery("gone", broker=url, backend="cache+memory://", set_as_current=False)
        patterns.use_patterns(app)
        patterns.use_store(app, MemoryStore())
        task = failing(app, acks_late=acks_late)
        server.stop(signal.SIGKILL)
        outcome = run_here(task, 1, queue="q")
        assert ("dead_letter_not_published", "CRITICAL") in [
            (r.getMessage().split()[0], r.levelname) for r in caplog.records
        ]
        if acks_late:
            assert (outcome.state, outcome.value.requeue) == ("REJECTED", True)
        else:
            assert isinstance(outcome.value, ValueError)
    finally:
        server.close()


@pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
def test_a_broker_that_comes_back_in_time(kind: str) -> None:
    """Gone for a few seconds at the letter and at the retry: both are tried in place, and confirmed."""
    import threading

    server = RedisServer() if kind == "redis" else RabbitServer()
    server.start()
    try:
        url = server.url() if isinstance(server, RedisServer) else server.url
        app = Celery("back", broker=url, backend="cache+memory://", set_as_current=False)
        app.conf.task_default_queue = "q"
        patterns.use_patterns(app)
        patterns.use_store(app, MemoryStore())

        @app.task(shared=False, name="again")
        @retry(on=OSError, wait=wait_none())
        def again() -> None:
            raise OSError

        with app.connection_for_write() as connection:
            Queue("q")(connection.default_channel).declare()
        task = failing(app)
        server.stop(signal.SIGKILL)
        threading.Timer(1.0, server.start).start()
        assert isinstance(run_here(task, 1).value, ValueError)
        assert len(list(dead_letters(app, "q.dead"))) == 1
        server.stop(signal.SIGTERM)
        threading.Timer(1.0, server.start).start()
        assert run_here(again).state == "RETRY"
        assert len(messages(app, "q")) == 1
    finally:
        server.close()


def test_a_retry_that_no_queue_takes_is_a_dead_letter(rabbit: str, queue: str, caplog: Any) -> None:
    """A deleted queue: the next attempt cannot be routed, so the failure is final, as itself, and buried."""
    app = Celery("unroutable", broker=rabbit, backend="cache+memory://", set_as_current=False)
    patterns.use_patterns(app)
    patterns.use_store(app, MemoryStore())

    @app.task(shared=False, name="again")
    @retry(on=OSError, wait=wait_none())
    @idempotent(key="x", ttl=publish_module.timedelta(days=1))
    @dead_letter(f"{queue}.dead")
    def again(x: int) -> None:
        raise OSError("the body's own")

    outcome = run_here(again, 1, headers={"delivery_info": {"exchange": f"{queue}-nowhere", "routing_key": "k"}})
    assert str(outcome.value) == "the body's own"
    assert "retry_not_published" in caplog.text
    assert [letter.message for letter in dead_letters(app, f"{queue}.dead")] == ["the body's own"]


def test_the_publisher_survives_a_fork(broker: str, queue: str) -> None:
    """A child opens its own connection and leaves its parent's alone."""
    app = Celery("fork", broker=broker, backend="cache+memory://", set_as_current=False)
    patterns.use_patterns(app)
    patterns.use_store(app, MemoryStore())
    app.conf.task_default_queue = queue
    task = failing(app)
    run_here(task, 1)
    pid = os.fork()
    if pid == 0:
        try:
            run_here(task, 2)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    run_here(task, 3)
    assert len(list(dead_letters(app, f"{queue}.dead"))) == 3


@pytest.mark.parametrize(
    ("kind", "bound_by", "came_by", "goes_to"),
    [
        ("direct", "orders", "orders", "q-first.dead"),
        ("topic", "orders.#", "orders", "q-first.dead"),
        ("topic", "orders.#", "orders.eu.paris", "q-first.dead"),
        ("topic", "orders.*.paris", "orders.eu.paris", "q-first.dead"),
        ("topic", "#.paris", "orders.eu.paris", "q-first.dead"),
        ("topic", "orders.*", "invoices.eu", "q-second.dead"),
        ("fanout", "", "whatever", "q-first.dead"),
        ("topic", "orders.*", f"{'0.' * 27}1.orders.eu", "q-first.dead"),  # after a delayed delivery of RabbitMQ's
        ("topic", "orders.*", f"{'0.' * 26}1.0.invoices.eu", "q-second.dead"),
        ("topic", "orders.*", f"{'0.' * 26}1.0.q-unknown", "q-unknown.dead"),
    ],
)
def test_letters_lie_beside_the_queue_they_came_from(
    app: Celery, queue: str, kind: str, bound_by: str, came_by: str, goes_to: str
) -> None:
    """A delivery tells its exchange and routing key only; ``.dead`` goes behind the queue's name all the same."""
    exchange = Exchange(f"{queue}-x", type=kind)
    app.amqp.queues.select_add(Queue(f"{queue}-first", exchange, routing_key=bound_by))
    app.amqp.queues.add(Queue(f"{queue}-second", exchange, routing_key="invoices.*" if kind == "topic" else "other"))

    @app.task(shared=False, name="t")
    @dead_letter()
    def t() -> None:
        raise ValueError("cannot do it")

    delayed = came_by.startswith("0.")
    came_by = came_by.replace("q-", f"{queue}-")
    by = "celery_delayed_delivery" if delayed else exchange.name
    delivery = {"exchange": by, "routing_key": came_by, "redelivered": False}
    run_here(t, headers={"delivery_info": delivery})
    (letter,) = dead_letters(app, goes_to.replace("q", queue))
    assert f"{letter.queue}.dead".replace(queue, "q") == goes_to
    known = "unknown" not in goes_to
    key = came_by[2 * 28 :] if delayed else came_by
    assert (letter.exchange, letter.routing_key) == (exchange.name if known else "", key)


def test_a_reader_needs_an_app_and_a_name(app: Celery) -> None:
    """Anything else is told so at once."""
    with pytest.raises(ConfigurationError, match="takes your Celery app"):
        dead_letters("orders.dead", app)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="expected the queue's name"):
        dead_letters(app, 5)  # type: ignore[arg-type]


def test_a_failure_after_asking_for_another_attempt_is_not_the_end(app: Celery, queue: str) -> None:
    """``self.retry(throw=False)`` and then an error: one next attempt, and no letter beside it."""

    @app.task(shared=False, name="t", bind=True)
    @dead_letter(f"{queue}.dead")
    @retry(on=OSError, attempts=3)
    def t(self: Any) -> None:
        self.retry(throw=False, countdown=0)
        raise ValueError("after asking")

    assert run_here(t, task_id="id-1").state == "RETRY"
    (message,) = messages(app, queue)
    assert (message.headers["id"], message.headers["retries"]) == ("id-1", 1)
    assert message.headers[HEADER]["history"][0]["error"] == "builtins.ValueError"
    assert list(dead_letters(app, f"{queue}.dead")) == []
    assert run_here(t, task_id="id-1", retries=2).state == "FAILURE"
    assert [letter.task_id for letter in dead_letters(app, f"{queue}.dead")] == ["id-1"]


def test_an_error_that_the_result_backend_refuses(app: Celery, queue: str, monkeypatch: Any) -> None:
    """The letter stands, and the task is FAILURE with what the backend said, as Celery has it."""
    store = app.backend.store_result

    def refusing(task_id: str, result: Any, *args: Any, **kwargs: Any) -> Any:
        if "cannot do it" in str(result):
            raise ValueError("too large")
        return store(task_id, result, *args, **kwargs)

    monkeypatch.setattr(app.backend, "store_result", refusing)
    outcome = run_here(failing(app), "o-1", queue=queue)
    assert outcome.state == "FAILURE"
    assert str(app.AsyncResult(outcome.id).result) == "too large"
    assert len(messages(app, f"{queue}.dead")) == 1


def test_a_soft_limit_while_the_letter_waits_loses_nothing(rabbit: str, queue: str) -> None:
    """The user's own dead-letter queue is full: the message goes back to its queue, whatever strikes meanwhile."""
    app = Celery("full", broker=rabbit, backend="cache+memory://", set_as_current=False)
    patterns.use_patterns(app)
    patterns.use_store(app, MemoryStore())
    app.conf.task_default_queue = queue
    full = Queue(f"{queue}.dead", queue_arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    with contextlib.closing(app), app.connection_for_write() as connection:
        full(connection.default_channel).declare()
        app.amqp.Producer(connection).publish("there first", routing_key=full.name, confirm_timeout=5)
        for seconds in (1.0, 3.0):
            with soft_limit(seconds):
                outcome = run_here(failing(app), 1)
            assert (outcome.state, outcome.value.requeue) == ("REJECTED", True)


def test_a_queue_with_several_bindings_is_found(app: Celery, queue: str) -> None:
    """And a neighbour on the same direct exchange is not taken for it."""
    exchange = Exchange(f"{queue}-x", type="direct")
    both = [binding(exchange, routing_key="orders.v1"), binding(exchange, routing_key="orders.v2")]
    app.amqp.queues.select_add(Queue(f"{queue}-emails", exchange, routing_key="emails"))
    app.amqp.queues.add(Queue(f"{queue}-orders", bindings=both))

    @app.task(shared=False, name="t")
    @dead_letter()
    def t() -> None:
        raise ValueError("cannot do it")

    for key, lies in (("orders.v2", "orders"), ("emails", "emails")):
        run_here(t, headers={"delivery_info": {"exchange": exchange.name, "routing_key": key, "redelivered": False}})
        assert [letter.queue for letter in dead_letters(app, f"{queue}-{lies}.dead")] == [f"{queue}-{lies}"]


def test_a_letter_that_cannot_be_made_sends_the_message_back(app: Celery, caplog: Any, monkeypatch: Any) -> None:
    """Loudly, and after a pause: it is not lost, whatever is wrong with it."""
    monkeypatch.setattr("celery_patterns._dead_letter.REFUSED_PAUSE", 0.01)
    monkeypatch.setattr("celery_patterns._dead_letter.letter_message", lambda *_: 1 / 0)
    caplog.set_level("INFO", "celery_patterns")
    outcome = run_here(failing(app), 1)
    assert (outcome.state, outcome.value.requeue) == ("REJECTED", True)
    found = [record.msg for record in caplog.records if record.name == "celery_patterns"]
    (told,) = [event.fields for event in found if event.name == "dead_letter_not_published"]
    assert (told["error.type"], told["requeued"]) == ("ZeroDivisionError", True)


def test_a_connection_that_was_interrupted_confirms_nothing(app: Celery) -> None:
    """A pool's own time limit, which is no Exception, between message and confirmation: the next one has its own."""
    publisher = equipment_of(app).publisher

    class PoolsLimit(BaseException):
        pass

    def interrupted(producer: Any) -> None:
        raise PoolsLimit

    publisher.publish(lambda _: None)
    assert publisher._connection is not None
    with pytest.raises(PoolsLimit):
        publisher.publish(interrupted)
    assert publisher._connection is None


@pytest.mark.parametrize("kind", ["direct", "topic"])
def test_a_replay_goes_back_behind_its_exchange(app: Celery, queue: str, kind: str) -> None:
    """To the queue that the message came from, on both brokers."""
    exchange = Exchange(f"{queue}-x", type=kind)
    orders = Queue(f"{queue}-orders", exchange, routing_key="orders.eu" if kind == "direct" else "orders.#")
    app.amqp.queues.add(orders)
    with app.connection_for_write() as connection:
        orders(connection.default_channel).declare()

    @app.task(shared=False, name="t")
    @dead_letter()
    def t() -> None:
        raise ValueError("cannot do it")

    run_here(
        t, headers={"delivery_info": {"exchange": exchange.name, "routing_key": "orders.eu", "redelivered": False}}
    )
    letters = dead_letters(app, f"{orders.name}.dead")
    assert letters.replay_all().sent == 1
    assert [message.headers["task"] for message in messages(app, orders.name)] == ["t"]
    assert letters.count() == 0
