"""Replays where a letter could be lost, doubled, or reach somebody whom it was not for."""

from __future__ import annotations

import json
import logging
import resource
import socket
import subprocess
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from amqp import Message
from celery import Celery
from kombu import Exchange, Queue
from redis.commands.core import Script

from celery_patterns import dead_letter, dead_letters, idempotent
from celery_patterns._letter import LETTER
from celery_patterns._message import HEADER
from celery_patterns._publish import Publisher
from celery_patterns.exceptions import BackendUnavailable, ConfigurationError, PublishFailed
from celery_patterns.letters._ledger import Ledger

from .here import run_here
from .servers import RabbitServer, free_port, program, wait_until
from .test_replay import failing, made, messages, opened_shelves, standing, written_by_hand


@pytest.fixture
def app(broker: str, queue: str) -> Iterator[Celery]:
    app = made(broker, queue)
    yield app
    app.close()


@pytest.fixture
def on_rabbit(rabbit: str, queue: str) -> Iterator[Celery]:
    app = made(rabbit, queue)
    yield app
    app.close()


@pytest.fixture
def on_redis(database: str, queue: str) -> Iterator[Celery]:
    app = made(database, queue)
    yield app
    app.close()


def dies_again(task: Any, message: Any) -> None:
    """Run what was replayed."""
    run_here(task, *message.payload[0], task_id=message.headers["id"], headers=dict(message.headers))


def test_one_task_id_used_again_for_the_same_work(app: Celery, queue: str, dead: str) -> None:
    """Both deaths are listed, and both are replayed: they were sent at different times."""
    task = failing(app)
    for sent in (1000.0, 2000.0):
        run_here(task, "o-1", task_id="invoice-1", headers={HEADER: {"sent": sent}})
    letters = dead_letters(app, dead)
    assert (letters.count(), letters.replay_all().sent) == (2, 2)
    assert len({message.headers["id"] for message in messages(app, queue)}) == 2


def test_a_letter_imported_again_is_followed_to_its_end(
    on_redis: Celery, queue: str, dead: str, tmp_path: Path
) -> None:
    """Its replay dies under the id of an earlier one, and that letter is replayed, too."""
    task, letters, file = failing(on_redis), dead_letters(on_redis, dead), tmp_path / "kept.jsonl"
    run_here(task, "o-1", headers={HEADER: {"sent": 1000.0}})
    letters.export(file)
    for turn in range(2):
        assert letters.replay_all().sent == 1, turn
        (message,) = messages(on_redis, queue)
        dies_again(task, message)
        assert letters.replay_all().sent == 1, turn
        assert len(messages(on_redis, queue)) == 1
        if not turn:
            assert letters.restore(file) == 1


def test_what_may_be_a_copy_or_another_death_is_left(on_redis: Celery, queue: str, dead: str) -> None:
    """Its message does not say when it was sent, so nobody knows: it stays, and the report says so."""
    letter = written_by_hand(on_redis, dead, first_published=None)
    letters = dead_letters(on_redis, dead)
    assert letters.replay_all().sent == 1
    written_by_hand(on_redis, dead, first_published=None, id=letter.id, worker="another")
    report = letters.replay_all()
    assert (report.sent, report.failed, letters.count()) == (0, 1, 1)
    assert "a copy of it cannot be told" in report.failures[0].error


def test_an_answer_that_was_lost_is_given_again(on_redis: Celery, queue: str, dead: str, monkeypatch: Any) -> None:
    """Redis had sent it when the connection was cut: it is counted as sent, and sent once."""
    for _ in range(5):
        written_by_hand(on_redis, dead)
    ask, cut = Script.__call__, []

    def asked(self: Any, *args: Any, **kwargs: Any) -> Any:
        answer = ask(self, *args, **kwargs)
        if answer == b"sent" and not cut:
            cut.append(answer)
            raise redis.ConnectionError("cut")
        return answer

    monkeypatch.setattr(Script, "__call__", asked)
    told: list[Any] = []
    report = dead_letters(on_redis, dead).replay_all(on_each=lambda letter, error: told.append((letter.id, error)))
    assert (report.sent, report.failed, len(told)) == (5, 0, 5)
    assert len(messages(on_redis, queue)) == 5


def test_at_a_memory_alarm_one_message_is_tried(queue: str, dead: str) -> None:
    """RabbitMQ says nothing, and does what it was told once it goes on: what was not tried stays, and is not doubled."""
    server = RabbitServer()
    server.start()
    try:
        app = made(server.url, queue)
        ids = {written_by_hand(app, dead).replay_id for _ in range(8)}
        letters = dead_letters(app, dead)
        _limit_memory(server, "0.00001")
        # Whoever publishes is stopped, and not told: seen on a connection that may be lost for it.
        wait_until(lambda: _is_stopped(app, queue), 30, "the alarm")
        report = letters.replay_all()
        assert (report.sent, report.failed, letters.count()) == (0, 8, 8)
        assert sum("not tried" in failure.error for failure in report.failures) == 7
        _limit_memory(server, "0.6")
        wait_until(lambda: not _is_stopped(app, queue), 30, "the end of the alarm")
        assert letters.replay_all().sent == 8
        arrived = Counter(message.headers["id"] for message in messages(app, queue) if message.headers.get("task"))
        assert set(arrived) == ids
        assert sum(arrived.values()) <= len(ids) + 1
        app.close()
    finally:
        server.close()


def _limit_memory(server: RabbitServer, limit: str) -> None:
    control = program("rabbitmqctl", "rabbitmq-server", "/usr/lib/rabbitmq/bin/rabbitmqctl")
    environment = {**server.environment(), "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ""}
    subprocess.run(
        [control, "set_vm_memory_high_watermark", limit], env=environment, check=True, capture_output=True, timeout=60
    )


def _is_stopped(app: Celery, queue: str) -> bool:
    publisher = Publisher(app)
    try:
        for _ in range(2):  # the first one of a connection is still taken
            publisher.publish(
                lambda producer: producer.publish("", exchange="", routing_key=queue, confirm_timeout=0.5, retry=False),
                patience=timedelta(0),
            )
    except PublishFailed:
        return True
    else:
        return False
    finally:
        publisher.close()


def test_a_full_target_stops_no_other_letter(on_rabbit: Celery, queue: str, dead: str) -> None:
    """Also where the app's own connections wait for each confirmation: each letter is told of, and stays."""

    @on_rabbit.task(shared=False, name="keyed")
    @idempotent(key="order", ttl=timedelta(hours=1))
    @dead_letter(dead)
    def keyed(order: str) -> None:
        raise ValueError(order)

    on_rabbit.conf.broker_transport_options = {"confirm_publish": True}
    full = f"{queue}.full"
    with on_rabbit.connection_for_write() as connection:
        limits = {"x-max-length": 0, "x-overflow": "reject-publish"}
        Queue(full, durable=True, queue_arguments=limits)(connection.default_channel).declare()
    for number in range(10):
        run_here(keyed, f"o-{number}")
    letters = dead_letters(on_rabbit, dead)
    report = letters.replay_all(to=full)
    assert (report.sent, report.failed, letters.count()) == (0, 10, 10)
    assert "full queue" in report.failures[0].error
    assert letters.replay_all().sent == 10


def test_an_import_reaches_the_dead_letter_queue_alone(
    on_rabbit: Celery, queue: str, dead: str, tmp_path: Path
) -> None:
    """RabbitMQ's own letter may carry the order to send it to others, too: it was carried out once."""
    other = f"{queue}.other"
    with on_rabbit.connection_for_write() as connection:
        for name in (dead, other):
            Queue(name, durable=True)(connection.default_channel).declare()
    written_by_hand(on_rabbit, dead)
    letters = dead_letters(on_rabbit, dead)
    letters.export(tmp_path / "kept.jsonl")
    letters.purge()
    line = json.loads((tmp_path / "kept.jsonl").read_text())
    line["headers"] |= {"CC": [other], "BCC": [other]}
    (tmp_path / "orders.jsonl").write_text(json.dumps(line))
    assert letters.restore(tmp_path / "orders.jsonl") == 1
    assert (letters.count(), messages(on_rabbit, other)) == (1, [])


def test_a_replay_has_the_messages_own_properties(on_rabbit: Celery, queue: str, dead: str) -> None:
    """But for what names the message, and its time to live."""
    properties = {"message_id": "m-1", "type": "order", "app_id": "shop", "timestamp": 1000, "reply_to": "answers"}
    written_by_hand(on_rabbit, dead, publish=properties)
    dead_letters(on_rabbit, dead).replay_all()
    (message,) = messages(on_rabbit, queue)
    assert {name: message.properties.get(name) for name in properties} == properties
    assert message.properties["correlation_id"] == message.headers["id"]


def test_what_is_not_celerys_is_replayed_as_it_was(on_rabbit: Celery, queue: str) -> None:
    """Somebody else's message in a shared dead-letter queue gains our one header, and loses nothing."""
    buried, source = f"{queue}.dead", f"{queue}.source"
    with on_rabbit.connection_for_write() as connection:
        channel: Any = connection.default_channel
        Queue(buried, durable=True)(channel).declare()
        bury = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": buried}
        Queue(source, durable=True, queue_arguments=bury)(channel).declare()
        with connection.Producer(auto_declare=False) as producer:
            producer.publish(
                b"\x00\x01",
                exchange="",
                routing_key=source,
                headers={"theirs": 1},
                content_type="application/octet-stream",
                content_encoding="binary",
                correlation_id="c-1",
                message_id="m-1",
            )
        raw = wait_until(lambda: channel.basic_get(source), 10, "its arrival")
        channel.basic_reject(raw.delivery_tag, False)  # type: ignore[attr-defined]
    letters = dead_letters(on_rabbit, buried)
    wait_until(lambda: letters.count() == 1, 10, "RabbitMQ's letter")
    assert letters.replay_all().sent == 1
    (message,) = messages(on_rabbit, source)
    assert bytes(message.body) == b"\x00\x01"
    assert set(message.headers) == {"theirs", HEADER}
    assert (message.properties["correlation_id"], message.properties["message_id"]) == ("c-1", "m-1")


def buried(app: Celery, queue: str, *sent: Message, kind: str = "classic") -> tuple[str, str]:
    """Messages that RabbitMQ has buried, all in one second: from which queue to which."""
    dead, source = f"{queue}.dead", f"{queue}.source"
    with app.connection_for_write() as connection:
        channel: Any = connection.default_channel
        Queue(dead, durable=True, queue_arguments={"x-queue-type": kind})(channel).declare()
        bury = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}
        Queue(source, durable=True, queue_arguments=bury)(channel).declare()

        def in_one_second() -> bool:
            channel.queue_purge(dead)
            for message in sent:  # not by kombu's producer, which gives each a priority
                channel.basic_publish(message, exchange="", routing_key=source)
            for _ in sent:
                raw: Any = wait_until(lambda: channel.basic_get(source), 10, "its arrival")
                channel.basic_reject(raw.delivery_tag, False)
            wait_until(lambda: standing(app, dead) == len(sent), 10, "RabbitMQ's letters")
            return len({letter.died_at for letter in dead_letters(app, dead)}) == 1

        wait_until(in_one_second, 30, "all of them buried in one second")
    return source, dead


def equals(count: int) -> list[Message]:
    """Messages of some other producer's: nothing tells one from another."""
    return [Message(b"refresh", content_type="text/plain", user_id="guest") for _ in range(count)]


def cut_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An ``on_each`` that cuts the connection of whoever reads the letters, once."""
    shelves = opened_shelves(monkeypatch)
    told: list[Any] = []

    def on_each(*of: Any) -> None:
        told.append(of)
        if len(told) == calls:
            shelves[-1]._link.connection.connection.transport.sock.shutdown(socket.SHUT_RDWR)

    return on_each


def test_equal_messages_without_a_name_are_letters_of_their_own(on_rabbit: Celery, queue: str, tmp_path: Path) -> None:
    """Each is listed, sent by itself, kept in a file, deleted, put back, and sent with the others."""
    source, dead = buried(on_rabbit, queue, *equals(6))
    letters, file = dead_letters(on_rabbit, dead), tmp_path / "kept.jsonl"
    known = list(letters)
    assert (len(known), len({letter.id for letter in known}), letters.where(limit=4).count()) == (6, 1, 4)
    for letter in known[:2]:
        assert letters.replay(letter).id
    assert letters.export(file) == 4
    assert letters.where(limit=1).purge(kept_in=file) == 1
    assert letters.restore(file) == 1
    assert letters.purge(kept_in=file) == 4
    assert [letters.restore(file), letters.restore(file)] == [4, 0]
    assert letters.replay_all(dry_run=True).sent == 4
    assert letters.where(limit=1).replay_all().sent == 1
    assert letters.replay_all().sent == 3
    assert [len(messages(on_rabbit, source)), letters.count()] == [6, 0]


def test_a_quorum_queues_count_is_no_part_of_a_letters_id(on_rabbit: Celery, queue: str, tmp_path: Path) -> None:
    """It counts each look: the letters are the same ones at the next, with a name and without."""
    sent = [*equals(2), Message(b"x"), Message(b"x", message_id="m-1")]
    source, dead = buried(on_rabbit, queue, *sent, kind="quorum")
    letters, file = dead_letters(on_rabbit, dead), tmp_path / "kept.jsonl"

    def looked_at() -> list[str]:
        wait_until(lambda: standing(on_rabbit, dead) == len(sent), 10, "they are back")
        return [letter.id for letter in letters]

    ids = looked_at()
    assert looked_at() == ids == looked_at()
    wait_until(lambda: standing(on_rabbit, dead) == len(sent), 10, "they are back")
    assert letters.export(file) == 4
    wait_until(lambda: standing(on_rabbit, dead) == len(sent), 10, "they are back")
    assert letters.purge(kept_in=file) == 4
    assert [letters.restore(file), letters.restore(file)] == [4, 0]
    wait_until(lambda: standing(on_rabbit, dead) == len(sent), 10, "they are back")
    assert letters.replay_all().sent == 4
    assert len(messages(on_rabbit, source)) == 4


def test_canaries_of_equal_messages_keep_none_back(
    on_rabbit: Celery, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others go, as many as are wanted."""
    source, dead = buried(on_rabbit, queue, *equals(6))
    monkeypatch.setattr("celery_patterns.letters._rounds.expect_backend", lambda _: None)
    monkeypatch.setattr("celery_patterns.letters._rounds.unhappy", lambda *_, **__: None)
    letters = dead_letters(on_rabbit, dead)
    assert letters.where(limit=4).replay_all(canary=2).sent == 4
    assert [len(messages(on_rabbit, source)), letters.count()] == [4, 2]


def test_equal_messages_without_a_name_at_a_lost_connection(
    on_rabbit: Celery, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of them were sent cannot be told any more: none is lost, and what is left goes with the next call."""
    source, dead = buried(on_rabbit, queue, *equals(8))
    letters, on_each = dead_letters(on_rabbit, dead), cut_after(3, monkeypatch)
    calls = 0
    while letters.count():
        letters.replay_all(on_each=on_each)
        calls += 1
        assert calls < 5
    assert len(messages(on_rabbit, source)) in (8, 9), "the one in flight may go twice"


def test_letters_that_are_let_alone_by_a_lost_connection(
    on_rabbit: Celery, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One without a name that could not be sent when its turn came is sent with the others: it has no equal."""
    one = [Message(f"refresh {number}".encode()) for number in range(6)]
    source, dead = buried(on_rabbit, queue, *one)
    assert dead_letters(on_rabbit, dead).replay_all(on_each=cut_after(3, monkeypatch)).sent == 6
    assert len(messages(on_rabbit, source)) in (6, 7), "the one in flight may go twice"


@pytest.mark.parametrize("what", ["some", "those in the file"])
def test_no_more_equal_messages_are_deleted_than_were_meant(
    on_rabbit: Celery, queue: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the connection is lost in between."""
    _, dead = buried(on_rabbit, queue, *equals(10))
    letters, file = dead_letters(on_rabbit, dead), tmp_path / "kept.jsonl"
    assert letters.where(limit=5).export(file) == 5
    some, kept = (letters.where(limit=5), None) if what == "some" else (letters, file)
    deleted = some.purge(kept_in=kept, on_each=cut_after(3, monkeypatch))
    assert 3 <= deleted <= 5
    assert 5 <= letters.count() <= 7


def test_messages_that_differ_in_a_header_are_two(on_rabbit: Celery, queue: str) -> None:
    """Whatever its name is."""
    both = [
        Message(b"x", correlation_id="same", application_headers={"user_id": one, "priority": one}) for one in (17, 18)
    ]
    source, dead = buried(on_rabbit, queue, *both)
    letters = dead_letters(on_rabbit, dead)
    assert len({letter.id for letter in letters}) == 2
    assert letters.replay_all().sent == 2
    assert {message.headers["user_id"] for message in messages(on_rabbit, source)} == {17, 18}


def test_equal_messages_of_a_rabbitmq_in_a_redis(
    on_rabbit: Celery, on_redis: Celery, queue: str, tmp_path: Path
) -> None:
    """Out of a file: put back once, listed once though the list was changed meanwhile, deleted, and sent one after the other."""
    _, dead = buried(on_rabbit, queue, *equals(130))
    file = tmp_path / "kept.jsonl"
    dead_letters(on_rabbit, dead).export(file)
    letters = dead_letters(on_redis, dead)
    assert [letters.restore(file), letters.restore(file)] == [130, 0]
    with on_redis.connection_for_write() as connection:
        client: Any = connection.default_channel.client
        listed = 0
        for _ in letters:
            listed += 1
            if listed == 100:
                client.lrem(dead, 1, client.lindex(dead, -100))
    assert listed <= 130
    assert letters.where(limit=2).replay_all().sent == 2
    assert letters.where(limit=2).replay_all().sent == 2
    assert letters.purge(kept_in=file) == 125


def test_a_quorum_queue_of_the_users_is_warned_of(on_rabbit: Celery, queue: str, dead: str, caplog: Any) -> None:
    """It counts each look, and may have a limit: that is said once it can be seen."""
    with on_rabbit.connection_for_write() as connection:
        Queue(dead, durable=True, queue_arguments={"x-queue-type": "quorum"})(connection.default_channel).declare()
        with connection.Producer(auto_declare=False) as producer:
            told_of(producer, dead)
    letters = dead_letters(on_rabbit, dead)
    with caplog.at_level(logging.WARNING, "celery_patterns"):
        assert letters.count() == 1
        assert "counts each look" not in caplog.text
        wait_until(lambda: letters.count() == 1, 10, "it is back")
        assert "counts each look" in caplog.text


def told_of(producer: Any, dead: str) -> None:
    """A letter with the least that one must have."""
    letter = {"id": uuid.uuid4().hex, "reason": "failed", "queue": "q", "died_at": 1.0}
    producer.publish(b"[[], {}, {}]", exchange="", routing_key=dead, headers={LETTER: json.dumps(letter)})


def test_a_single_active_consumer_does_not_hide_letters(on_rabbit: Celery, queue: str, dead: str) -> None:
    """Somebody else's consumer is the only one that is given messages, and has none in its hands: they are got one by one."""
    with on_rabbit.connection_for_write() as connection:
        channel: Any = connection.channel()
        alone = {"x-single-active-consumer": True}
        Queue(dead, Exchange(""), dead, durable=True, queue_arguments=alone)(channel).queue_declare()
        channel.basic_qos(0, 1, False)
        taken: list[Any] = []
        channel.basic_consume(dead, callback=taken.append)
        with connection.Producer(auto_declare=False) as producer:
            for _ in range(4):
                told_of(producer, dead)
            wait_until(lambda: _drained(connection, taken), 10, "its own message")
            assert dead_letters(on_rabbit, dead).count() == 3


def _drained(connection: Any, taken: list[Any]) -> bool:
    if not taken:
        connection.drain_events(timeout=5)
    return bool(taken)


def test_canaries_without_a_result_backend_that_answers(database: str, queue: str, dead: str) -> None:
    """Nothing is sent, and the backend is named as what did not answer."""
    app = made(database, queue, f"redis://127.0.0.1:{free_port()}/0")
    app.conf.result_backend_always_retry = False
    app.conf.result_backend_transport_options = {"retry_policy": {"timeout": 0.2, "max_retries": 0}}
    for _ in range(3):
        written_by_hand(app, dead)
    with pytest.raises(BackendUnavailable):
        dead_letters(app, dead).replay_all(canary=1)
    assert (dead_letters(app, dead).count(), messages(app, queue)) == (3, [])
    app.close()


MOMENT = {"celery_patterns_type": "moment", "value": 1e300}
HOSTILE: dict[str, dict[str, Any]] = {
    "headers that are a list": {"headers": [1]},
    "no letter": {"headers": {}},
    "a moment that is none": {"headers": {"x": MOMENT}},
    "no number": {"headers": {"x": {"celery_patterns_type": "decimal", "value": "abc"}}},
    "no bytes": {"headers": {"x": {"celery_patterns_type": "bytes", "value": 5}}},
    "a content type that is no text": {"content_type": 5},
    "a priority that is no number": {"properties": {"priority": "high"}},
    "a correlation id that is no text": {"properties": {"correlation_id": 5}},
    "another id than the letter's": {"letter": {"id": "f" * 32}},
    "half a character": {"headers": {"x": "\ud800"}},
    "a number beyond AMQP": {"headers": {"n": 2**70}},
    "a name beyond AMQP": {"headers": {"k" * 300: 1}},
}


@pytest.mark.parametrize("damage", HOSTILE)
def test_a_hostile_line_is_seen_before_anything_is_put_back(
    app: Celery, dead: str, tmp_path: Path, damage: str
) -> None:
    """It is named; the good letters around it are not put back either."""
    written_by_hand(app, dead)
    letters, file = dead_letters(app, dead), tmp_path / "kept.jsonl"
    letters.export(file)
    letters.purge()
    good = json.loads(file.read_text())
    change = HOSTILE[damage]
    headers = change.get("headers")
    if isinstance(headers, dict) and headers:
        change = {**change, "headers": {**good["headers"], **headers}}
    file.write_text("\n".join(map(json.dumps, [good, {**good, **change}, good])))
    with pytest.raises(ConfigurationError, match="line 2 of"):
        letters.restore(file)
    assert letters.count() == 0


def test_a_sender_is_not_impersonated(app: Celery, dead: str, tmp_path: Path) -> None:
    """RabbitMQ refuses a message in another user's name: the letter is put back without it."""
    written_by_hand(app, dead)
    letters, file = dead_letters(app, dead), tmp_path / "kept.jsonl"
    letters.export(file)
    letters.purge()
    good = json.loads(file.read_text())
    file.write_text(
        json.dumps({**good, "properties": {**good["properties"], "user_id": "alice", "delivery_info": "x"}})
    )
    assert (letters.restore(file), letters.count()) == (1, 1)


def test_publishing_on_top_of_publishing(app: Celery, queue: str) -> None:
    """As a signal's handler may do: it is told to try later, and waits for no lock of its own thread."""
    publisher = Publisher(app)

    def send(producer: Any) -> None:
        with pytest.raises(PublishFailed, match="in the middle") as raised:
            publisher.publish(send, patience=timedelta(0))
        assert raised.value.transient
        publisher.close()
        producer.publish("done", exchange="", routing_key=queue, retry=False)

    publisher.publish(send)
    assert [message.payload for message in messages(app, queue)] == ["done"]
    publisher.close()


@pytest.mark.parametrize("keyed", [False, True])
def test_a_lost_connection_gives_no_sent_letter_back(
    on_rabbit: Celery, queue: str, dead: str, keyed: bool, monkeypatch: Any
) -> None:
    """With its connection a replay loses the letters that it holds: it takes them anew before it sends one more.

    Interrupted afterwards, it has told the truth of how many are left; a letter that was on its way may stand there still.
    """
    key = idempotent(key="order", ttl=timedelta(hours=1))

    @on_rabbit.task(shared=False, name="lost", patterns=(dead_letter(dead), *([key] if keyed else [])))
    def lost(order: int) -> None:
        raise ValueError(order)

    for order in range(14):
        run_here(lost, order)
    letters = dead_letters(on_rabbit, dead)
    shelves = opened_shelves(monkeypatch)
    told: list[str] = []
    seen_by_others: list[int] = []

    def on_each(letter: Any, error: Any) -> None:
        assert error is None
        told.append(letter.id)
        if len(told) == 3:
            shelves[0]._link.connection.connection.transport.sock.shutdown(socket.SHUT_RDWR)
        if len(told) > 5:
            seen_by_others.append(standing(on_rabbit, dead))
        if len(told) == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        letters.replay_all(on_each=on_each, rate=20)
    left = {letter.id for letter in letters}
    assert len(left) <= 5, "all that were replayed but the one on its way are gone"
    assert len(left & set(told)) <= 1
    assert max(seen_by_others) <= 1


def test_no_room_for_what_a_replay_remembers() -> None:
    """The file is written to when there are more letters than memory is taken for; then it says what is needed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with closing(Ledger()) as ledger:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(OSError, match="set TMPDIR to one that has it"):
                for number in range(100_000):
                    ledger.put(f"{number:032}", "sent")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
