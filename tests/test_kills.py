"""SIGKILL between any two steps, of a pool child and of the whole worker, on both brokers."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import redis
from celery import chord

from celery_patterns import dead_letters

from .harness import Floor

#: Seconds after which a Redis broker gives a killed worker's messages to another; above the 5 s that Celery may take
#: to notice a dead child.
VISIBILITY = "7"
# A result is waited for 150 s: before kombu 5.6 the sweep that does so comes every 100 s, whatever is set.


def _run_with_crash(shop: Floor, point: str, who: str, send: Any) -> Any:
    """Send work to a worker that dies at the point; when it died whole, start another."""
    settings = {"FLOOR_CRASH": point, "FLOOR_WHOLE": "1" if who == "whole" else "", "FLOOR_VISIBILITY": VISIBILITY}
    worker = shop.worker(concurrency=1, **settings)
    result = send()
    shop.wait(lambda: shop.traces.redis.exists(shop.traces._name("crashed")), 30, "the crash")
    if who == "whole":
        shop.wait(lambda: not worker.alive(), 20, "the worker's end")
        shop.worker(concurrency=1, **settings)
    return result


@pytest.mark.parametrize("who", ["child", "whole"])
@pytest.mark.parametrize("point", ["claim.after", "release.before", "release.after", "complete.after"])
def test_killed_between_next_attempt_release_and_ack(shop: Floor, point: str, who: str) -> None:
    """Nothing is lost, the work is done once, and no attempt runs again after it ended."""
    result = _run_with_crash(shop, point, who, lambda: shop.task("flaky_keyed").delay("o-1"))
    assert result.get(timeout=150) == "done o-1"
    runs = [attempt for _, _, attempt in shop.traces.all("runs")]
    assert runs == [1, 2, 3]
    assert shop.traces.all("effects") == ["o-1"]
    assert shop.letters() == []


@pytest.mark.parametrize("who", ["child", "whole"])
def test_killed_between_the_effect_and_its_record(shop: Floor, who: str) -> None:
    """What nobody can promise: an effect that was not recorded happens again, once, and the result arrives."""
    result = _run_with_crash(shop, "complete.before", who, lambda: shop.task("slow_keyed").delay("o-1"))
    assert result.get(timeout=150) == "done o-1"
    assert shop.traces.all("effects") == ["o-1", "o-1"]
    fences = [fence for _, _, fence in shop.traces.all("starts")]
    assert fences[0] < fences[1]


@pytest.mark.parametrize("who", ["child", "whole"])
@pytest.mark.parametrize("point", ["release.before", "release.after"])
def test_killed_between_letter_release_and_ack(shop: Floor, point: str, who: str) -> None:
    """One letter is listed, whatever stands in the queue; after the release the body is not run again."""
    result = _run_with_crash(shop, point, who, lambda: shop.task("doomed_keyed").delay("o-1"))
    with pytest.raises(Exception, match=r"o-1|has failed before"):
        result.get(timeout=150)
    shop.wait(lambda: len(shop.letters()) == 1, 30, "one letter")
    assert shop.traces.count("doomed") == (1 if point == "release.after" else 2)
    shop.traces.set("mended")
    letters = dead_letters(shop.app, shop.dead)
    assert [letters.replay(one).get(timeout=60) for one in list(letters)] == ["mended o-1"]
    assert shop.letters() == []
    assert shop.traces.all("effects") == ["o-1"]


def test_a_killed_holders_message_finishes_the_work_when_the_lease_is_over(shop: Floor) -> None:
    """``kill -9`` of the holder: the redelivered message waits out the lease and finishes, with a greater fence."""
    shop.worker(concurrency=2)
    result = shop.task("slow_keyed").delay("o-1", flag="go")
    shop.wait(lambda: shop.traces.count("starts") == 1, what="the start")
    os.kill(shop.traces.all("starts")[0][1], signal.SIGKILL)
    shop.traces.set("go")
    assert result.get(timeout=60) == "done o-1"
    (_, first, fence), (_, second, greater) = shop.traces.all("starts")
    assert first != second
    assert fence < greater
    assert shop.traces.all("effects") == ["o-1"]


@pytest.mark.parametrize("name", ["killer", "killer_keyed"])
def test_a_body_that_kills_its_child_starts_three_times_and_leaves_one_letter(shop: Floor, name: str) -> None:
    """The crash limit holds, with a key and without, while other tasks go on."""
    worker = shop.worker(concurrency=2)
    pid = worker.pid
    doomed = shop.task(name).delay("o-1")
    others = [shop.task("add").delay(n, n) for n in range(20)]
    assert [other.get(timeout=60) for other in others] == [2 * n for n in range(20)]
    shop.wait(lambda: len(shop.letters()) == 1, 90, "the letter")
    letter = shop.letters()[0]
    assert (letter.reason, letter.task_id) == ("crashed", doomed.id)
    assert shop.traces.count("kills") == 3
    with pytest.raises(Exception, match="was started 3 times"):
        doomed.get(timeout=20)
    assert worker.alive()
    assert worker.pid == pid


def test_what_crashed_too_often_can_be_replayed(shop: Floor) -> None:
    """The cause is mended: the replay starts anew, its crashes forgotten."""
    shop.worker(concurrency=1)
    shop.task("killer_keyed").delay("o-1", kills=3)
    shop.wait(lambda: len(shop.letters()) == 1, 90, "the letter")
    letters = dead_letters(shop.app, shop.dead)
    assert [letter.reason for letter in letters] == ["crashed"]
    assert [letters.replay(one).get(timeout=60) for one in list(letters)] == ["survived o-1"]
    assert shop.letters() == []


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_a_message_that_is_given_out_again_while_it_runs(shop: Floor) -> None:
    """Longer than the visibility timeout: the copy waits for the living run, in a chord too, and its work is done once."""
    workers = [shop.worker(concurrency=2, FLOOR_VISIBILITY="2") for _ in range(2)]
    members = [shop.task("ends_keyed").s("o-1", "held"), shop.task("add").s(1, 1)]
    sent = chord(members, shop.task("note").s("told")).delay()
    shop.wait(lambda: any("duplicate_waiting" in one.text() for one in workers), 150, "the copy")
    shop.traces.set("go")
    assert sent.get(timeout=150) == ["held", 2]
    shop.wait(lambda: not redis.Redis.from_url(shop.environment["FLOOR_BROKER"]).hlen("unacked"), 150, "the copy's end")
    assert (shop.traces.all("ends"), shop.traces.count("told"), shop.letters()) == (["held"], 1, [])


def test_a_body_that_survives_in_the_end_is_not_buried(shop: Floor) -> None:
    """Two crashes are under the limit: the third start does the work."""
    shop.worker(concurrency=1)
    assert shop.task("killer_keyed").delay("o-1", kills=2).get(timeout=150) == "survived o-1"
    assert shop.letters() == []


def test_twenty_flaky_tasks_sent_twice(shop: Floor) -> None:
    """20 keys, each sent twice, each failing twice: 40 right results, 20 effects."""
    shop.worker(concurrency=4)
    results = [(n, shop.task("flaky_keyed").delay(f"o-{n}")) for n in range(20) for _ in range(2)]
    assert [result.get(timeout=120) for _, result in results] == [f"done o-{n}" for n, _ in results]
    assert sorted(shop.traces.all("effects")) == sorted(f"o-{n}" for n in range(20))


@pytest.mark.parametrize("same", [False, True])
def test_a_frozen_holder_can_neither_complete_nor_overwrite(shop: Floor, same: bool) -> None:
    """SIGSTOP past its lease, then SIGCONT: another run has done the work, and its result is the one both callers get.

    The one that lost its key is told of in the log, also when both results are the same.
    """
    first, second = shop.worker(concurrency=1), shop.worker(concurrency=1)
    frozen = shop.task("slow_keyed").delay("o-1", flag="go", result="of the other" if same else "of the frozen")
    shop.wait(lambda: shop.traces.count("starts") == 1, what="the start")
    (_, pid, fence) = shop.traces.all("starts")[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        shop.traces.set("go")
        other = shop.task("slow_keyed").delay("o-1", result="of the other")
        assert other.get(timeout=60) == "of the other"
    finally:
        os.kill(pid, signal.SIGCONT)
    assert frozen.get(timeout=60) == "of the other"
    assert fence < shop.traces.all("starts")[1][2]
    assert "claim_lost" in first.text() + second.text()
    assert shop.task("slow_keyed").delay("o-1").get(timeout=30) == "of the other"


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_the_patterns_hold_in_other_pools(shop: Floor, pool: str) -> None:
    """Keys, retries and letters where tasks run in threads of one process, or in the worker itself."""
    shop.worker(pool=pool, concurrency=4)
    results = [(n, shop.task("flaky_keyed").delay(f"o-{n}")) for n in range(8) for _ in range(2)]
    doomed = [shop.task("doomed").delay(f"o-{n}") for n in range(4)]
    assert [result.get(timeout=120) for _, result in results] == [f"done o-{n}" for n, _ in results]
    assert sorted(shop.traces.all("effects")) == sorted(f"o-{n}" for n in range(8))
    for result in doomed:
        with pytest.raises(ValueError, match="cannot do"):
            result.get(timeout=60)
    assert {letter.task_id for letter in shop.letters()} == {result.id for result in doomed}
