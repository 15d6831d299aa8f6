"""Every canvas form, with plain, duplicated, retried and dead-lettered members, on both brokers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celery
import pytest
from celery import chain, chord, group

from celery_patterns import dead_letters

from .harness import Floor, Worker, floor


@pytest.fixture
def running(shop: Floor) -> Floor:
    shop.worker(concurrency=3)
    return shop


def test_a_chain_passes_results_on_through_retries_and_keys(running: Floor) -> None:
    """A retried keyed step hands its result to the next one, once."""
    flaky, note = running.task("flaky_keyed"), running.task("note")
    result = chain(flaky.s("o-1", failures=1), note.s()).delay()
    assert result.get(timeout=40) == "done o-1"
    assert running.traces.all("noted") == ["done o-1"]


def test_a_chain_goes_on_after_a_duplicate(running: Floor) -> None:
    """A chain whose keyed step is a duplicate goes on with the first run's result."""
    slow, note = running.task("slow_keyed"), running.task("note")
    slow.delay("o-1").get(timeout=20)
    assert chain(slow.s("o-1"), note.s()).delay().get(timeout=20) == "done o-1"
    assert running.traces.all("effects") == ["o-1"]


def test_a_group_gathers_all_results(running: Floor) -> None:
    """Members that are retried or doubled give their results in order."""
    member = running.task("member")
    result = group(member.s(1), member.s(2, how="retried"), member.s(1)).delay()
    assert result.get(timeout=40) == [10, 20, 10]
    assert sorted(x for x, _ in running.traces.all("members")) == [1, 2, 2]


def test_a_chord_with_a_duplicated_and_a_retried_member_runs_its_body_once(running: Floor) -> None:
    """The body gets every member's result, once."""
    member, collect = running.task("member"), running.task("collect")
    result = chord([member.s(n, how="retried" if n == 2 else "plain") for n in (1, 2, 3, 1)], collect.s()).delay()
    assert result.get(timeout=60) == [10, 20, 30, 10]
    assert running.traces.all("collected") == [[10, 20, 30, 10]]


@pytest.mark.skipif(
    celery.VERSION < (5, 7), reason="before 5.7 Celery's Redis backend counts a member as often as it ends"
)
def test_a_chord_whose_members_are_delivered_twice(running: Floor) -> None:
    """The same header messages once more, as a broker may: the body still runs once, with the same results."""
    member, collect = running.task("member"), running.task("collect")
    doubled = _Doubler(running)
    result = chord([member.s(n) for n in range(4)], collect.s()).delay()
    assert result.get(timeout=60) == [0, 10, 20, 30]
    doubled.close()
    running.wait(lambda: doubled.sent >= 4 and _idle(running), 40, "the copies to be worked off")
    assert running.traces.all("collected") == [[0, 10, 20, 30]]
    assert sorted(x for x, _ in running.traces.all("members")) == [0, 1, 2, 3]


class _Doubler:
    """Publishes every message of the task ``member`` a second time, as it is."""

    def __init__(self, shop: Floor) -> None:
        from celery.signals import after_task_publish

        self.shop, self.sent = shop, 0
        self.signal = after_task_publish
        self.signal.connect(self._copy, sender="member", weak=False)

    def _copy(self, sender: Any, headers: Any, body: Any, exchange: str, routing_key: str, **_: Any) -> None:
        with self.shop.app.producer_pool.acquire() as producer:
            producer.publish(
                body,
                exchange=exchange,
                routing_key=routing_key,
                headers=headers,
                serializer="json",
                correlation_id=headers["id"],
            )
        self.sent += 1

    def close(self) -> None:
        self.signal.disconnect(self._copy, sender="member")


def _idle(shop: Floor) -> bool:
    """Nothing runs, nothing waits for its time."""
    inspect = shop.app.control.inspect(timeout=1)
    names = [f"{worker.text().split(' ready.')[0].rsplit(' ', 1)[1]}" for worker in shop.workers]
    told = [inspect.active(), inspect.reserved(), inspect.scheduled()]
    mine = [answer.get(name) for answer in told for name in names if answer]
    return len(mine) == 3 * len(names) and not any(mine)


def test_a_chord_with_a_dead_lettered_member_fails_as_ever(running: Floor) -> None:
    """The errback hears of it, the body does not run, and the letter stands; its replay does not touch the chord."""
    member, collect, errback = running.task("member"), running.task("collect"), running.task("failed_errback")
    result = chord([member.s(1), member.s(2, how="dead"), member.s(3)], collect.s().on_error(errback.s())).delay()
    with pytest.raises(Exception, match="for good"):
        result.get(timeout=60)
    running.wait(lambda: running.traces.count("errback") == 1, what="the errback")
    running.wait(lambda: len(running.letters()) == 1, what="the letter")
    dead_letters(running.app, running.dead).replay_all()
    running.wait(lambda: len(running.letters()) == 1 and running.letters()[0].replay == 1, 30, "the second death")
    assert running.traces.count("collected") == 0
    assert running.traces.count("errback") == 1


def test_links_and_errbacks_are_called_once(running: Floor) -> None:
    """``link`` after the last attempt, ``link_error`` after the dead letter."""
    note, errback = running.task("note"), running.task("failed_errback")
    running.task("flaky").apply_async(("o-1",), link=note.s())
    failed = running.task("doomed").apply_async(("o-2",), link_error=errback.s())
    running.wait(lambda: running.traces.all("noted") == ["done o-1"], what="the link")
    running.wait(lambda: running.traces.all("errback") == [failed.id], what="the errback")
    assert [letter.task_id for letter in running.letters()] == [failed.id]


def test_replace_of_a_keyed_task(running: Floor) -> None:
    """Three pages, one id, the last one's result."""
    result = running.task("replaced").delay("o-1")
    assert result.get(timeout=40) == "page 2"
    assert running.traces.all("pages") == [0, 1, 2]


def test_map_starmap_and_chunks_call_the_body_alone(running: Floor) -> None:
    """Without a key they work as in Celery: one task, the body called directly, no patterns."""
    fanned, add = running.task("fanned"), running.task("add")
    assert fanned.map([1, 2, 3]).delay().get(timeout=20) == [2, 4, 6]
    assert add.starmap([(1, 2), (3, 4)]).delay().get(timeout=20) == [3, 7]
    assert add.chunks([(1, 2), (3, 4), (5, 6)], 2).delay().get(timeout=20) == [[3, 7], [11]]


def test_self_retry_gets_the_arguments_as_received(running: Floor) -> None:
    """A body that spoils its list asks three times, and sees it fresh each time."""
    assert running.task("by_hand").delay(["egg"]).get(timeout=40) == ["egg"]
    assert running.traces.all("by_hand") == [["egg"]] * 3


def test_ignore_reject_and_requeue_with_a_key(running: Floor) -> None:
    """Celery's own words keep their meaning, and leave the key free."""
    leaves = running.task("leaves")
    for order, how in (("a", "ignore"), ("b", "reject"), ("c", "requeue")):
        leaves.delay(order, how)
    running.wait(lambda: sorted(running.traces.all("leaves"))[:2] == ["ignore", "reject"], what="the first runs")
    assert leaves.delay("a", "done").get(timeout=20) is None
    assert leaves.delay("b", "done").get(timeout=20) is None
    assert leaves.delay("c", "done").get(timeout=40) is None
    assert [letter.reason for letter in running.letters()] == ["rejected"]


def test_reliable_task_on_a_worker(running: Floor) -> None:
    """Without a word of configuration: tried again on connection trouble, then a letter in ``<its queue>.dead``."""
    task = running.task("reliable")
    task.plan.patterns[-1].wait  # noqa: B018 - worn, with its default schedule
    result = task.apply_async(("o-1",), retries=4)
    with pytest.raises(ConnectionError):
        result.get(timeout=20)
    running.wait(lambda: [letter.attempt for letter in running.letters()] == [5], what="the letter")


@pytest.fixture
def quorum(rabbit: str, database: str, tmp_path: Path) -> Iterator[Floor]:
    """A corner with a quorum queue behind a topic exchange, where RabbitMQ itself keeps what has to wait."""
    environment = {
        "FLOOR_BROKER": rabbit,
        "FLOOR_BACKEND": database,
        "FLOOR_STORE": database,
        "FLOOR_TRACES": database,
        "FLOOR_QUEUE_TYPE": "quorum",
    }
    with floor(environment, tmp_path) as made:
        yield made


def test_two_quorum_features_together(quorum: Floor) -> None:
    """On a quorum queue behind a topic exchange a retry with a fraction of a second arrives."""
    quorum.worker(concurrency=2)
    results = [quorum.task("by_hand").delay([str(n)]) for n in range(5)]
    assert [result.get(timeout=60) for result in results] == [[str(n)] for n in range(5)]
    assert quorum.task("flaky_keyed").delay("o-1").get(timeout=60) == "done o-1"


def test_a_letter_on_quorum_queues_knows_its_queue(quorum: Floor) -> None:
    """After a wait, which RabbitMQ itself keeps there, the delivery names an exchange and a key of the broker's own."""
    quorum.worker(concurrency=1)
    with pytest.raises(ConnectionError, match="attempt 2 of o-1"):
        quorum.task("doomed_slowly").delay("o-1").get(timeout=60)
    (letter,) = quorum.letters()
    assert (letter.queue, letter.routing_key, letter.attempt) == (quorum.queue, quorum.queue, 2)
    letters = dead_letters(quorum.app, quorum.dead)
    assert [letters.replay(one).get(timeout=60, propagate=False) for one in list(letters)] != []


def test_a_retry_stays_in_its_own_quorum_queue(quorum: Floor) -> None:
    """After a wait too: not in the app's default queue, where nobody listens."""
    second = f"{quorum.queue}-second"
    at_default = quorum.worker(concurrency=1)
    quorum.workers.append(
        Worker(quorum.environment, second, quorum.folder / "second.log", pool="prefork", concurrency=1).wait_ready()
    )
    assert at_default.stop() == 0
    with pytest.raises(ConnectionError, match="attempt 2 of o-1"):
        quorum.task("doomed_slowly").apply_async(("o-1",), queue=second).get(timeout=60)
    (letter,) = dead_letters(quorum.app, f"{second}.dead")
    assert (letter.queue, letter.attempt) == (second, 2)
