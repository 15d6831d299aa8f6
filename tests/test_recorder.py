"""The main process' letters where Celery, a broker or a moment is at its worst."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from celery import Celery, Task
from kombu.message import Message

from celery_patterns import dead_letter, dead_letters, use_patterns, use_store
from celery_patterns._equipment import equipment_of
from celery_patterns._queues import queue_length
from celery_patterns.stores import MemoryStore
from celery_patterns.worker import Intake, Request, _recorder
from celery_patterns.worker._recorder import Recorder

from .endings import ABSENT, call, raw
from .harness import Floor, floor
from .test_dead_queue_away import refusing
from .test_endings import standing

#: What Celery makes no moment of that a timer could wait for.
NO_MOMENT = ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"]
#: Damage to a message of the first protocol, whose body holds what later ones have in headers.
FIRST: list[dict[str, Any]] = [
    {"timelimit": "abc"},
    {"timelimit": ["a", "b"]},
    {"callbacks": [1]},
    {"errbacks": 5},
    {"chord": 5},
    {"retries": "many"},
    {"id": ["a"]},
]
HEADERS = ("lang", "task", "id", "root_id", "retries", "argsrepr", "kwargsrepr")


@pytest.mark.parametrize("eta", NO_MOMENT)
def test_an_eta_that_is_no_moment(shop: Floor, eta: str) -> None:
    """Celery rejects it before it starts: its letter says that it was malformed."""
    shop.worker(concurrency=1)
    task_id = raw(shop, eta=eta)
    shop.wait(lambda: len(shop.letters()) == 1, 20, "the letter")
    assert [(letter.reason, letter.task_id) for letter in shop.letters()] == [("malformed", task_id)]
    assert shop.task("add").delay(1, 1).get(timeout=20) == 2


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_the_first_protocol_damaged_while_all_slots_are_busy(shop: Floor) -> None:
    """Each is a letter, and the worker lives: it would have met the damage where it counts a time limit."""
    worker = shop.worker(concurrency=1, FLOOR_PREFETCH="30")
    shop.task("held").delay()
    shop.wait(lambda: shop.traces.count("held"), what="a busy worker")
    for damage in FIRST:
        good = {"task": "ends", "id": str(uuid.uuid4()), "args": ["fine"], "kwargs": {}, "retries": 0, "utc": True}
        raw(shop, body=json.dumps({**good, **damage}).encode(), **dict.fromkeys(HEADERS, ABSENT))
    shop.wait(lambda: len(shop.letters()) == len(FIRST), 20, "the letters")
    shop.traces.set("go")
    assert shop.task("add").delay(1, 1).get(timeout=20) == 2
    assert {letter.reason for letter in shop.letters()} == {"malformed"}
    assert (worker.alive(), shop.traces.count("ends")) == (True, 0)


def test_a_message_of_the_first_protocol(shop: Floor) -> None:
    """Its body says which task it is, and that is what its letters say, whoever writes them."""
    worker = shop.worker(concurrency=1)
    sent = {}
    for how, task in (("reject", "ends"), ("exception", "ends"), ("fine", "no.such")):
        sent[str(uuid.uuid4())] = task
        good = {"task": task, "id": [*sent][-1], "args": [how], "kwargs": {}, "retries": 0, "utc": True}
        raw(shop, body=json.dumps(good).encode(), **dict.fromkeys(HEADERS, ABSENT))
    shop.wait(lambda: len(shop.letters()) == 3, 20, "the letters")
    assert {letter.task_id: letter.task for letter in shop.letters()} == sent
    assert {letter.reason for letter in shop.letters()} == {"rejected", "failed", "unknown_task"}
    assert worker.alive()


def test_equal_messages_that_name_nothing(shop: Floor) -> None:
    """Nobody can tell that they are one, so each leaves a letter, and is replayed."""
    shop.worker(concurrency=1)
    with shop.app.connection_for_write() as connection, connection.Producer() as producer:
        for _ in range(3):
            producer.publish(
                b'{"sku": 1, "delta": -1}',
                exchange="",
                routing_key=shop.queue,
                content_type="application/json",
                content_encoding="utf-8",
            )
    shop.wait(lambda: standing(shop) == 3, 20, "the letters")
    shop.workers[0].stop()
    assert [letter.reason for letter in shop.letters()] == ["malformed"] * 3
    assert dead_letters(shop.app, shop.dead).replay_all().sent == 3
    with shop.app.connection_for_read() as connection:
        assert queue_length(connection, shop.queue) == 3


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_called_off_where_nothing_can_be_stopped(shop: Floor) -> None:
    """The threads pool cannot: the task goes on, and what it does then is its end."""
    worker = shop.worker(pool="threads", concurrency=2)
    sent = shop.task("ends").delay("held")
    shop.wait(lambda: shop.traces.count("ends") == 1, what="the start")
    shop.app.control.revoke(sent.id, terminate=True)
    shop.wait(lambda: "NotImplementedError" in worker.text(), what="the order's arrival")
    shop.traces.set("go")
    assert sent.get(timeout=20) == "held"
    assert shop.task("add").delay(1, 1).get(timeout=20) == 2
    assert shop.letters() == []


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("how", ["retry", "retry, encoding", "retry, badly", "retry, bare"])
def test_a_hook_that_fails_after_the_next_attempt_was_sent(shop: Floor, how: str, pool: str) -> None:
    """Celery would take that for a failure, or end the worker; but the task goes on, and nothing of it is dead."""
    worker = shop.worker(concurrency=1, pool=pool)
    shop.task("ends_hooked_after").delay(how)
    shop.wait(lambda: shop.traces.all("ends") == [how, how], what="the next attempt")
    assert shop.task("add").delay(1, 1).get(timeout=20) == 2
    assert "a hook of the task's own" in worker.text()
    assert standing(shop) == 0


def test_a_hook_that_is_no_plain_function_and_fails(shop: Floor) -> None:
    """It is not contained; but the main process knows all the same that the task goes on."""
    shop.worker(concurrency=1)
    shop.task("ends_hooked_statically").delay("retry")
    shop.wait(lambda: shop.traces.all("ends") == ["retry", "retry"], what="the next attempt")
    assert shop.task("add").delay(1, 1).get(timeout=20) == 2
    assert standing(shop) == 0


def test_an_error_that_is_raised_again_is_another_end(shop: Floor) -> None:
    """The same object, which has once left a hook of an attempt that was to go on: now it is the end, and has its letter."""
    shop.worker(concurrency=1)
    shop.task("ends_hooked_after").delay("retry")
    shop.wait(lambda: shop.traces.all("ends") == ["retry", "retry"], what="the next attempt")
    ended = shop.task("ends_hooked_after").delay("raised again")
    shop.wait(lambda: len(shop.letters()) == 1, what="the letter")
    assert shop.letters()[0].task_id == ended.id


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
@pytest.mark.parametrize("how", ["exception", "exception, badly"])
def test_a_hook_that_fails_after_the_letter_was_written(shop: Floor, how: str, pool: str) -> None:
    """It is told in the log, and ends nothing: neither the message a second time, nor the worker."""
    worker = shop.worker(concurrency=1, pool=pool)
    ended = shop.task("ends_hooked_after").delay(how)
    with pytest.raises(ValueError, match="for good"):
        ended.get(timeout=20)
    assert shop.task("add").delay(1, 1).get(timeout=20) == 2
    assert standing(shop) == 1
    assert ("a hook of the task's own" in worker.text(), worker.alive()) == (True, True)
    assert shop.traces.all("ends") == [how]


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_a_queue_that_buries_what_is_rejected(environment: dict[str, str], tmp_path: Path) -> None:
    """The child has written the letter; RabbitMQ, told to bury what is rejected, does not write another."""
    with floor({**environment, "FLOOR_BURIES": "1"}, tmp_path) as shop:
        shop.worker(concurrency=1)
        sent = shop.task("ends_unacked").delay("exception")
        shop.wait(lambda: len(shop.letters()) == 1, 20, "the letter")
        assert shop.task("add").delay(1, 1).get(timeout=20) == 2
        assert [(letter.reason, letter.task_id) for letter in shop.letters()] == [("failed", sent.id)]
        assert standing(shop) == 1


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_a_plain_tasks_damaged_message_is_celerys(environment: dict[str, str], tmp_path: Path) -> None:
    """Celery rejects it, and a queue of the user's that buries what is rejected has it."""
    with floor({**environment, "FLOOR_BURIES": "1"}, tmp_path) as shop:
        worker = shop.worker(concurrency=1)
        task_id = raw(shop, task="ends_plain", timelimit="abc")
        shop.wait(lambda: standing(shop) == 1, 20, "RabbitMQ's letter")
        (letter,) = shop.letters()
        assert (letter.reason, letter.task_id, letter.worker) == ("rejected", task_id, None)
        assert worker.alive()


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_a_worker_makes_its_dead_letter_queue(shop: Floor) -> None:
    """When it starts: RabbitMQ, killed soon after a queue was made, forgets it, and what it had confirmed in it."""
    shop.worker(concurrency=1)
    assert standing(shop) == 0
    with shop.app.connection_for_write() as connection:
        channel: Any = connection.default_channel
        ours = {"x-queue-type": "classic"}
        assert channel.queue_declare(shop.dead, durable=True, auto_delete=False, arguments=ours).queue == shop.dead


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_a_dead_letter_queue_that_cannot_be_made(shop: Floor) -> None:
    """The worker says so, and starts: the letter, when there is one, tries again."""
    with shop.app.connection_for_write() as connection:
        channel: Any = connection.default_channel
        channel.queue_declare(shop.dead, exclusive=True)  # RabbitMQ shows it to no other connection
        worker = shop.worker(concurrency=1)
        assert worker.text().count("dead_letter_queue_not_made") == 1
        assert shop.task("add").delay(1, 1).get(timeout=20) == 2
    call("reject")(shop)
    shop.wait(lambda: standing(shop) == 1, 30, "the letter")


def test_trouble_of_the_workers_own_is_no_flaw_of_a_message() -> None:
    """What says nothing of the message is Celery's to deal with; what the message does to the consumer is a letter."""
    app = Celery("intake", broker="memory://", set_as_current=False)
    use_patterns(app)

    def body() -> None: ...

    for name, wears in (("plain", ()), ("buried", (dead_letter("dead", max_crashes=None),))):
        app.task(body, shared=False, name=name, patterns=wears)
    app.finalize()
    recorded: list[Any] = []

    def outcome(name: str, error: Exception) -> str:
        def handle(message: Any) -> None:
            raise error

        refused: list[Any] = []
        consumer = SimpleNamespace(
            app=app,
            hostname="here",
            connection_errors=(ConnectionError,),
            channel_errors=(KeyError,),
            create_task_handler=lambda: handle,
            on_decode_error=None,
            on_unknown_message=None,
            on_unknown_task=None,
            on_invalid_task=lambda body, message, exc: refused.append(exc),
        )
        intake = Intake(consumer)
        intake._recorder.record = lambda *_, **__: recorded.append(error)  # type: ignore[method-assign]
        headers = {"task": name, "id": "1"}
        message = Message(b"[[], {}, {}]", headers=headers, content_type="application/json", content_encoding="utf-8")
        try:
            consumer.create_task_handler()(message)
        except type(error):
            return "raised"
        return "recorded" if recorded and recorded[-1] is error else "refused"

    own = [RuntimeError("can't start new thread"), MemoryError(), ConnectionError(), KeyError("a channel's")]
    for error in own:
        assert outcome("plain", error) == outcome("buried", error) == "raised"
    assert outcome("buried", TypeError("unhashable")) == outcome("buried", RecursionError()) == "recorded"
    assert outcome("buried", NotImplementedError()) == "recorded"
    assert outcome("plain", TypeError("unhashable")) == "raised"


def test_a_slow_store_does_not_hold_a_worker_that_ends(monkeypatch: Any, caplog: Any) -> None:
    """Starts that never were are excused for a few seconds; the others are told of in one line."""
    app = Celery("slow", broker="memory://", set_as_current=False)
    use_store(app, MemoryStore())
    excused: list[Any] = []
    monkeypatch.setattr(MemoryStore, "excuse_start", lambda *_, **__: (time.sleep(0.01), excused.append(1)))
    monkeypatch.setattr(_recorder, "LAST_TRY", 0.1)
    recorder = Recorder(SimpleNamespace(app=app, hostname="here"))
    task = SimpleNamespace(name="t")
    recorder.unstarted = {Mock(id=str(number), request_dict={}, task=task) for number in range(100)}
    recorder.disconnected()
    assert 1 <= len(excused) < 50
    (told,) = [record.msg for record in caplog.records]
    assert (told.name, told.fields["count"]) == ("start_not_excused", 100 - len(excused))


@contextmanager
def _waiting(shop: Floor, number: int, task: str, **settings: Any) -> Iterator[Any]:
    """A worker with so many letters that the dead-letter queue does not take."""
    worker = shop.worker(**settings)
    with refusing(shop):
        for _ in range(number):
            call("reject", task)(shop)
        shop.wait(lambda: f"waiting={number}" in worker.text(), 60, "all wait")
        yield worker


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"], indirect=True)
def test_a_worker_with_many_letters_ends_soon(shop: Floor) -> None:
    """Each is told of, loudly, and tried no more than one of them."""
    with _waiting(shop, 20, "ends_early", concurrency=2, FLOOR_PREFETCH="4") as worker:
        began = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - began < 12
    assert worker.text().count("dead_letter_not_published") == 20


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"], indirect=True)
def test_what_comes_back_is_not_buried_at_the_end(shop: Floor) -> None:
    """A letter refused while the pool drains: its message runs once more, and one letter stands."""
    worker = shop.worker(concurrency=1, FLOOR_VISIBILITY="7")
    with refusing(shop):
        call("hard", time_limit=3)(shop)
        shop.wait(lambda: shop.traces.count("ends") == 1, what="the start")
        worker.process.terminate()
        shop.wait(lambda: "dead_letter_postponed" in worker.text(), 20, "a try")
    shop.wait(lambda: not worker.alive(), 30, "the end")
    written = worker.text().count("dead_lettered")
    other = shop.worker(concurrency=1, FLOOR_VISIBILITY="7")
    shop.wait(lambda: written or "dead_lettered" in other.text(), 120, "the letter")
    assert len(shop.letters()) == 1
    assert shop.task("add").delay(1, 1).get(timeout=20) == 2
    assert shop.traces.count("ends") == (1 if written else 2)


def _received(app: Celery, task: Any, kind: type[Request]) -> Any:
    """The request of a message that was really sent."""
    task.delay()
    with app.connection_for_read() as connection:
        message = app.amqp.queues["celery"](connection.default_channel).get()
    return kind(message, app=app, task=task, hostname="w", on_ack=Mock(), on_reject=Mock(), eventer=Mock())


def test_our_request_for_a_task_that_is_none_of_ours() -> None:
    """It wears nothing, whatever it calls its ``plan``: the request is as Celery's."""
    with Celery("plain", broker="memory://", set_as_current=False) as app:

        @app.task(shared=False, base=Task, Request="celery_patterns.worker:Request", plan="gold")
        def bill() -> None: ...

        request = _received(app, bill, Request)
        request.on_accepted(1, time.monotonic())
        assert not request.revoked()
        request.acknowledge()
        assert request.acknowledged


def test_a_users_own_request_hears_of_a_lost_child() -> None:
    """What it does as its events are sent is done then, too; and the event's door is Celery's again behind it."""
    told = []

    class Own(Request):
        def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's name
            told.append(type)
            super().send_event(type, **fields)

    with Celery("own", broker="memory://", set_as_current=False) as app:
        use_patterns(app)

        @app.task(shared=False)
        @dead_letter("own.dead", max_crashes=None)
        def bill() -> None: ...

        equipment_of(app).recorder = Mock()
        request = _received(app, bill, Own)
        request.on_accepted(1, time.monotonic())
        try:
            raise WorkerLostError("its child is gone")
        except WorkerLostError:
            request.on_failure(ExceptionInfo())
        assert told == ["task-started", "task-rejected"]
        assert "send_event" not in vars(request)
