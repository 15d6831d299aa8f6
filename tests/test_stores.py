"""One contract, every store: the rows of the claim table, owners, fences, and time."""

from __future__ import annotations

import itertools
import os
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from celery import Celery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_patterns import idempotent, use_patterns, use_store
from celery_patterns.exceptions import ConfigurationError, StoreUnavailable
from celery_patterns.stores import MemoryStore, RedisStore, SQLStore, open_store
from celery_patterns.stores._marks import KEEP
from celery_patterns.typing import (
    Attempt,
    Claimed,
    Done,
    Ended,
    InspectableStore,
    KeyRecord,
    Mismatch,
    Running,
    Store,
)

from .conftest import POSTGRES
from .here import run_here
from .servers import RedisServer, free_port, postgres_url

LEASE, TTL = timedelta(milliseconds=400), timedelta(seconds=3)


class Clock:
    """A clock for the memory store that a test turns instead of waiting."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Bench:
    """A store with a way to let time pass on its clock."""

    store: Store
    _pass: Callable[[float], None]

    def let_pass(self, span: timedelta) -> None:
        self._pass(span.total_seconds())

    def claim(self, who: Attempt, fingerprint: str = "fp", key: str = "k", lease: timedelta = LEASE) -> Any:
        return self.store.claim(key, who, fingerprint, lease=lease, ttl=TTL)

    def renew(self, who: Attempt, fence: int, lease: timedelta = LEASE, key: str = "k") -> bool:
        return self.store.renew(key, who, fence, lease=lease, ttl=TTL)

    def complete(self, who: Attempt, fence: int, result: bytes | None = b"1", fingerprint: str = "fp") -> Any:
        return self.store.complete("k", who, fingerprint, fence, result, ttl=TTL)

    def release(self, who: Attempt, fence: int | None, ended: Ended | None = None) -> bool:
        return self.store.release("k", who, fence, ended=ended, ttl=TTL)


@pytest.fixture(params=["memory", "redis", "postgresql", "sqlite"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    if request.param == "memory":
        clock = Clock()

        def turn(seconds: float) -> None:
            clock.now += seconds

        return Bench(MemoryStore(clock), turn)
    store: Any
    if request.param == "redis":
        store = RedisStore(request.getfixturevalue("database"))
    elif request.param == "sqlite":
        store = SQLStore(f"sqlite:///{tmp_path}/keys.db")
    else:
        store = SQLStore(postgres_url(int(os.environ[POSTGRES]), "postgres"), table=f"keys_{uuid.uuid4().hex}")
    if isinstance(store, SQLStore):
        store.create_table()
    # The server's clock cannot be turned, so these wait; the spans are short for that reason.
    return Bench(store, lambda seconds: time.sleep(seconds + 0.01))


def run(run_id: str = "t1/0", number: int = 0) -> Attempt:
    return Attempt(run_id, number, uuid.uuid4().hex)


def test_a_free_key_is_claimed(bench: Bench) -> None:
    """Nobody has it: claimed, first start, with a fence on the store's clock in microseconds."""
    answer = bench.claim(run())
    assert isinstance(answer, Claimed)
    assert answer.starts == 1
    assert answer.fence > 1_600_000_000_000_000


def test_a_held_key_answers_running_with_the_time_left(bench: Bench) -> None:
    """Another run of the same arguments is told how long the lease still is."""
    bench.claim(run())
    answer = bench.claim(run("t2/0"))
    assert isinstance(answer, Running)
    assert timedelta(0) < answer.expires_in <= LEASE


def test_a_redelivery_of_a_living_run_waits_too(bench: Bench) -> None:
    """The same task id and attempt, delivered again, is another owner: it does not take over from the living one."""
    bench.claim(run())
    assert isinstance(bench.claim(run()), Running)


def test_who_waits_is_told_whether_for_its_own_task(bench: Bench) -> None:
    """Another delivery of the same task id, or another caller's."""
    bench.claim(run())
    assert [bench.claim(run(who)).same_run for who in ("t1/0", "t1/1", "t2/0")] == [True, False, False]


def test_a_dead_owner_is_taken_over_when_the_lease_is_over(bench: Bench) -> None:
    """The starts grow by one, and the fence is greater."""
    first = bench.claim(run())
    bench.let_pass(LEASE)
    second = bench.claim(run("t2/0"))
    assert isinstance(second, Claimed)
    assert (second.starts, second.fence > first.fence) == (2, True)


def test_finished_work_is_done_for_everybody(bench: Bench) -> None:
    """A duplicate, and a redelivery of the finished run itself, get the stored result."""
    me = run()
    claimed = bench.claim(me)
    assert bench.complete(me, claimed.fence, b'"r"') == Done(b'"r"')
    assert bench.claim(run()) == Done(b'"r"')
    assert bench.claim(run("t2/0")) == Done(b'"r"')


@pytest.mark.parametrize("result", [None, b"", b"null", b"0", b"x" * 10_000])
def test_results_of_any_kind_come_back(bench: Bench, result: bytes | None) -> None:
    """An empty or falsy result is a result; None says that none was kept."""
    me = run()
    bench.complete(me, bench.claim(me).fence, result)
    assert bench.claim(run("t2/0")) == Done(result)


@pytest.mark.parametrize("finished", [True, False])
def test_other_arguments_are_a_mismatch(bench: Bench, finished: bool) -> None:
    """Same key, other fingerprint: while it runs, and when it is done."""
    me = run()
    claimed = bench.claim(me)
    if finished:
        bench.complete(me, claimed.fence)
    assert bench.claim(run("t2/0"), "other") == Mismatch()


def test_other_arguments_may_take_over_a_dead_owner(bench: Bench) -> None:
    """A lease that is over binds nobody."""
    bench.claim(run())
    bench.let_pass(LEASE)
    assert isinstance(bench.claim(run("t2/0"), "other"), Claimed)


def test_release_frees_the_key_and_forgets_the_arguments(bench: Bench) -> None:
    """After a release the next call is claimed, whatever its arguments, as a first start with a greater fence."""
    me = run()
    claimed = bench.claim(me)
    assert bench.release(me, claimed.fence, Ended(failed=True)) is True
    after = bench.claim(run("t2/0"), "other")
    assert isinstance(after, Claimed)
    assert (after.starts, after.fence > claimed.fence) == (1, True)


@pytest.mark.parametrize("failed", [True, False])
def test_an_ended_attempt_is_not_run_again(bench: Bench, failed: bool) -> None:
    """A redelivery of an attempt that ended, or of an earlier one, learns how; the next attempt is claimed."""
    me = run(number=1)
    bench.release(me, bench.claim(me).fence, Ended(failed=failed))
    assert bench.claim(run(number=1)) == Ended(failed=failed)
    assert bench.claim(run(number=0)) == Ended(failed=failed)
    assert isinstance(bench.claim(run(number=2)), Claimed)


def test_an_ended_attempt_stays_ended_when_the_key_is_done(bench: Bench) -> None:
    """The stale copy of attempt 1 must not return attempt 2's result a second time."""
    first, second = run(number=0), run(number=1)
    bench.release(first, bench.claim(first).fence, Ended(failed=False))
    bench.complete(second, bench.claim(second).fence)
    assert bench.claim(run(number=0)) == Ended(failed=False)
    assert bench.claim(run(number=1)) == Done(b"1")


def test_a_replacement_keeps_the_id_and_is_another_run(bench: Bench) -> None:
    """``replace()`` keeps the task id: its run is told apart, and not taken for the one that ended."""
    me = run("t1/0")
    bench.release(me, bench.claim(me).fence, Ended(failed=False))
    assert isinstance(bench.claim(run("t1/1")), Claimed)


def test_the_ends_of_several_tasks_are_remembered(bench: Bench) -> None:
    """Duplicates that fail in turn do not make each other's ends forgotten."""
    for task in range(8):
        me = run(f"t{task}/0")
        bench.release(me, bench.claim(me).fence, Ended(failed=True))
    assert [bench.claim(run(f"t{task}/0")) for task in range(8)] == [Ended(failed=True)] * 8


def test_the_ends_of_one_task_push_out_no_others(bench: Bench) -> None:
    """A task that is tried again and again has one mark: its last."""
    other = run("other/0")
    bench.release(other, bench.claim(other).fence, Ended(failed=True))
    for number in range(KEEP + 2):
        me = run(number=number)
        bench.release(me, bench.claim(me).fence, Ended(failed=False))
    assert bench.claim(run("other/0")) == Ended(failed=True)


def test_no_more_ends_are_remembered_than_some(bench: Bench) -> None:
    """A record does not grow for ever: the oldest end gives way."""
    for task in range(KEEP + 1):
        me = run(f"t{task}/0")
        bench.release(me, bench.claim(me).fence, Ended(failed=True))
    assert bench.claim(run(f"t{KEEP}/0")) == bench.claim(run("t1/0")) == Ended(failed=True)
    assert isinstance(bench.claim(run("t0/0")), Claimed)


def test_an_end_is_forgotten_after_its_ttl(bench: Bench) -> None:
    """And with it the record: the attempt is as new."""
    me = run()
    claimed = bench.claim(me)
    bench.store.release("k", me, claimed.fence, ended=Ended(failed=True), ttl=LEASE)
    assert bench.claim(run()) == Ended(failed=True)
    bench.let_pass(LEASE)
    assert isinstance(bench.claim(run()), Claimed)


def test_a_claim_that_nobody_ended_is_forgotten_at_last(bench: Bench) -> None:
    """After its lease and ``ttl``: no crash is remembered."""
    bench.store.claim("k", run(), "fp", lease=LEASE, ttl=LEASE)
    bench.let_pass(2.1 * LEASE)
    after = bench.claim(run("t2/0"))
    assert isinstance(after, Claimed)
    assert after.starts == 1


def test_a_fence_grows_also_when_the_servers_clock_goes_back(database: str) -> None:
    """As a replica's may that takes over: by one."""
    store, client = RedisStore(database), redis.Redis.from_url(database)
    me = run()
    claimed = store.claim("k", me, "fp", lease=LEASE, ttl=TTL)
    assert isinstance(claimed, Claimed)
    ahead = claimed.fence + 10**12
    client.hset("celery-patterns:k", "f", ahead)
    store.release("k", me, ahead, ended=None, ttl=TTL)
    after = store.claim("k", run(), "fp", lease=LEASE, ttl=TTL)
    assert isinstance(after, Claimed)
    assert after.fence == ahead + 1


def test_a_fence_grows_also_when_a_clock_of_ones_own_goes_back() -> None:
    """By one, as long as the record is there."""
    clock = Clock()
    store = MemoryStore(clock)
    me = run()
    first = store.claim("k", me, "fp", lease=LEASE, ttl=TTL)
    assert isinstance(first, Claimed)
    store.release("k", me, first.fence, ended=None, ttl=TTL)
    clock.now -= 1000
    after = store.claim("k", run(), "fp", lease=LEASE, ttl=TTL)
    assert isinstance(after, Claimed)
    assert after.fence == first.fence + 1


def test_a_release_without_an_end_lets_the_attempt_run_again(bench: Bench) -> None:
    """A message that goes back to its queue has not ended."""
    me = run()
    bench.release(me, bench.claim(me).fence, None)
    assert isinstance(bench.claim(run()), Claimed)


def test_the_owner_alone_gives_a_lost_runs_key_back(bench: Bench) -> None:
    """Who knows only the owner frees what that run holds, and the record itself says which attempt has ended."""
    me = run(number=1)
    claimed = bench.claim(me)
    assert bench.release(Attempt("", 0, me.owner), None, Ended(failed=True)) is True
    assert bench.claim(run(number=1)) == Ended(failed=True)
    after = bench.claim(run("t2/0"), "other")
    assert isinstance(after, Claimed)
    assert (after.starts, after.fence > claimed.fence) == (1, True)


def test_the_owner_alone_frees_nothing_of_anybody_else(bench: Bench) -> None:
    """Neither what is done, nor what another run has taken since, be it of the same task and attempt."""
    me, copy = run(), run()
    bench.claim(me)
    bench.let_pass(LEASE)
    taken = bench.claim(copy)
    assert isinstance(taken, Claimed)
    assert bench.release(me, None, Ended(failed=True)) is False
    assert bench.complete(copy, taken.fence) == Done(b"1")
    assert bench.release(copy, None, Ended(failed=True)) is False
    assert bench.claim(run("t2/0")) == Done(b"1")


def test_a_later_attempt_takes_over_from_its_own_predecessor(bench: Bench) -> None:
    """It exists only once the body that sent it is over: it does not wait for a release that a kill swallowed."""
    first = run(number=0)
    before = bench.claim(first)
    after = bench.claim(replace(run(number=1), heir_of=(first.owner,)), "other")
    assert isinstance(after, Claimed)
    assert (after.starts, after.fence > before.fence) == (1, True)
    assert bench.claim(run(number=0)) == Ended(failed=False)
    assert bench.release(first, before.fence, Ended(failed=True)) is False


def test_a_later_attempt_takes_nothing_from_another_delivery(bench: Bench) -> None:
    """One that stood still sent it; the message came once more meanwhile, and that run lives: the later attempt waits."""
    zombie, alive = run(), run()
    bench.claim(zombie)
    bench.let_pass(LEASE)
    taken = bench.claim(alive)
    assert isinstance(bench.claim(replace(run(number=1), heir_of=(zombie.owner,))), Running)
    assert isinstance(bench.claim(run(number=1)), Running)
    assert bench.complete(alive, taken.fence) == Done(b"1")


def test_a_later_attempt_that_nobody_sent_on_waits_for_the_lease(bench: Bench) -> None:
    """And counts no crash then: the attempt before has ended."""
    bench.claim(run())
    assert isinstance(bench.claim(run(number=1)), Running)
    bench.let_pass(LEASE)
    after = bench.claim(run(number=1))
    assert isinstance(after, Claimed)
    assert after.starts == 1
    assert bench.claim(run()) == Ended(failed=False)


def test_another_tasks_later_attempt_takes_over_as_anybody(bench: Bench) -> None:
    """The dead owner's start counts, and its attempt has not ended."""
    bench.claim(run())
    bench.let_pass(LEASE)
    other = run("t2/0", number=1)
    taken = bench.claim(other)
    assert isinstance(taken, Claimed)
    assert taken.starts == 2
    assert bench.release(other, taken.fence) is True
    assert isinstance(bench.claim(run()), Claimed)


def test_a_stale_owner_can_neither_complete_nor_free(bench: Bench) -> None:
    """Paused past its lease and taken over, the zombie changes nothing and is told what stands."""
    zombie, heir = run(), run("t2/0")
    old = bench.claim(zombie)
    bench.let_pass(LEASE)
    new = bench.claim(heir, lease=timedelta(seconds=30))
    assert isinstance(bench.complete(zombie, old.fence, b'"zombie"'), Running)
    assert bench.release(zombie, old.fence, Ended(failed=True)) is False
    assert bench.complete(heir, new.fence, b'"heir"') == Done(b'"heir"')
    assert bench.complete(zombie, old.fence, b'"zombie"') == Done(b'"heir"')
    assert bench.release(zombie, old.fence) is False
    assert bench.claim(run("t3/0")) == Done(b'"heir"')


@pytest.mark.parametrize("wrong", ["owner", "fence"])
def test_owner_and_fence_must_both_be_right(bench: Bench, wrong: str) -> None:
    """A guess at one of the two opens nothing."""
    me = run()
    claimed = bench.claim(me, lease=timedelta(seconds=30))
    who = replace(me, owner="other") if wrong == "owner" else me
    fence = claimed.fence + (wrong == "fence")
    assert isinstance(bench.complete(who, fence), Running | type(None)) or wrong == "fence"
    assert bench.release(who, fence) is False
    assert isinstance(bench.claim(run("t2/0")), Running)


def test_a_renewed_lease_holds_from_then_on(bench: Bench) -> None:
    """As the owner's same start and fence; others wait meanwhile, and have the key when it is over."""
    me = run()
    claimed = bench.claim(me)
    for _ in range(3):
        bench.let_pass(LEASE * 0.7)
        assert bench.renew(me, claimed.fence) is True
        assert isinstance(bench.claim(run("t2/0")), Running)
    assert bench.claim(me) == claimed
    bench.let_pass(LEASE)
    after = bench.claim(run("t2/0"))
    assert isinstance(after, Claimed)
    assert after.starts == 2


def test_a_renewal_may_be_longer_than_the_lease_before(bench: Bench) -> None:
    """The time left is that of the last renewal, and the record outlives it by ``ttl``."""
    me = run()
    claimed = bench.claim(me)
    assert bench.renew(me, claimed.fence, lease=timedelta(seconds=30)) is True
    answer = bench.claim(run("t2/0"))
    assert isinstance(answer, Running)
    assert timedelta(seconds=29) < answer.expires_in <= timedelta(seconds=30)


def test_a_lease_that_is_over_is_renewed_while_nobody_has_the_key(bench: Bench) -> None:
    """A worker that stood still a moment too long goes on, if it was not replaced."""
    me = run()
    claimed = bench.claim(me)
    bench.let_pass(LEASE)
    assert bench.renew(me, claimed.fence) is True
    assert isinstance(bench.claim(run("t2/0")), Running)


@pytest.mark.parametrize("wrong", ["owner", "fence"])
def test_only_the_owner_renews_and_only_with_its_fence(bench: Bench, wrong: str) -> None:
    """A guess at one of the two changes nothing."""
    me = run()
    claimed = bench.claim(me)
    who = replace(me, owner="other") if wrong == "owner" else me
    assert bench.renew(who, claimed.fence + (wrong == "fence"), lease=timedelta(seconds=30)) is False
    bench.let_pass(LEASE)
    assert isinstance(bench.claim(run("t2/0")), Claimed)


def test_what_is_over_is_not_renewed(bench: Bench) -> None:
    """Neither a key that was taken over, nor one that is free, or unknown: each stays as it was."""
    lost, me = run(), run("t2/0")
    old = bench.claim(lost)
    bench.let_pass(LEASE)
    new = bench.claim(me)
    assert bench.renew(lost, old.fence, lease=timedelta(seconds=30)) is False
    assert bench.complete(me, new.fence) == Done(b"1")
    assert bench.renew(lost, old.fence) is False
    free = bench.claim(me, key="other")
    assert bench.store.release("other", me, free.fence, ended=None, ttl=TTL)
    assert bench.renew(me, free.fence, key="other") is False
    assert bench.renew(me, 7, key="unknown") is False
    assert isinstance(bench.claim(run("t3/0"), key="unknown"), Claimed)


def test_what_is_done_stays_its_owners(bench: Bench) -> None:
    """Nobody can have the key any more: to renew it changes nothing, and is no loss."""
    me = run()
    claimed = bench.claim(me)
    assert bench.complete(me, claimed.fence) == Done(b"1")
    assert bench.renew(me, claimed.fence) is True
    assert bench.renew(me, claimed.fence + 1) is False
    assert bench.renew(run(), claimed.fence) is False
    assert bench.renew(me, claimed.fence, lease=timedelta(days=9)) is True
    record = bench.store.record("k")
    assert (record.state, record.lease_left, record.expires_in <= TTL) == ("done", None, True)
    assert bench.claim(run("t3/0")) == Done(b"1")


def test_a_record_outlives_its_renewed_lease_by_its_ttl(bench: Bench) -> None:
    """It is not forgotten while it is held, however short ``ttl`` is: the starts of a dead owner are still counted."""
    me, short = run(), timedelta(milliseconds=300)
    claimed = bench.store.claim("k", me, "fp", lease=LEASE, ttl=short)
    assert isinstance(claimed, Claimed)
    for _ in range(3):
        bench.let_pass(LEASE * 0.8)
        assert bench.store.renew("k", me, claimed.fence, lease=LEASE, ttl=short) is True
    bench.let_pass(LEASE)
    after = bench.claim(run("t2/0"))
    assert (after.starts, after.fence > claimed.fence) == (2, True)


def test_an_owner_that_nobody_replaced_may_still_complete(bench: Bench) -> None:
    """The lease is over, but the key is still its own: the work is done, and is recorded."""
    me = run()
    claimed = bench.claim(me)
    bench.let_pass(LEASE)
    assert bench.complete(me, claimed.fence) == Done(b"1")


def test_every_step_may_be_repeated_by_its_owner(bench: Bench) -> None:
    """A lost answer is asked for again without harm."""
    me = run()
    claimed = bench.claim(me)
    assert bench.claim(me) == claimed
    assert bench.complete(me, claimed.fence) == bench.complete(me, claimed.fence) == Done(b"1")


def test_done_is_final(bench: Bench) -> None:
    """A second completion by the same owner changes nothing, and is told what stands."""
    me = run()
    claimed = bench.claim(me)
    bench.complete(me, claimed.fence, b"1")
    assert bench.complete(me, claimed.fence, None) == Done(b"1")
    assert bench.claim(run("t2/0")) == Done(b"1")


def test_a_record_is_forgotten_after_its_ttl_and_the_fence_still_grows(bench: Bench) -> None:
    """``ttl`` counts from the completion; afterwards the key is new, but its fence is greater than ever."""
    me = run()
    claimed = bench.claim(me)
    bench.complete(me, claimed.fence)
    bench.let_pass(TTL)
    after = bench.claim(run("t2/0"))
    assert isinstance(after, Claimed)
    assert (after.starts, after.fence > claimed.fence) == (1, True)


def test_completing_a_record_that_was_evicted_writes_it(bench: Bench) -> None:
    """A server that lost the record mid-run still learns that the work is done."""
    assert bench.complete(run(), 7, b"5") == Done(b"5")
    assert bench.claim(run("t2/0")) == Done(b"5")


def test_starts_without_a_key_are_counted_and_forgotten(bench: Bench) -> None:
    """The counter for tasks without a key begins with the first delivery, grows, expires and can be forgotten."""
    count = [bench.store.count_start("m", owner, ttl=timedelta(days=1)) for owner in "abbc"]
    assert count == [2, 3, 3, 4]
    bench.store.forget_starts("m")
    assert bench.store.count_start("m", "d", ttl=LEASE) == 2
    bench.let_pass(LEASE)
    assert bench.store.count_start("m", "e", ttl=LEASE) == 2


def test_a_first_delivery_that_was_no_start_is_excused(bench: Bench) -> None:
    """Once, however often a worker says so; forgetting and time end it too."""
    bench.store.excuse_start("m", ttl=timedelta(days=1))
    bench.store.excuse_start("m", ttl=timedelta(days=1))
    assert [bench.store.count_start("m", owner, ttl=timedelta(days=1)) for owner in "ab"] == [1, 2]
    bench.store.forget_starts("m")
    assert bench.store.count_start("m", "c", ttl=timedelta(days=1)) == 2


def test_what_an_unheard_owner_holds_passes_to_its_heir(bench: Bench) -> None:
    """The next delivery of a message whose claim was not answered has the key at once, as the same start."""
    lost, other = run(), run()
    first = bench.claim(lost)
    heir = replace(run(), heir_of=("somebody", lost.owner))
    taken = bench.claim(heir)
    assert (taken.starts, taken.fence > first.fence) == (1, True)
    assert isinstance(bench.claim(replace(run(), heir_of=(lost.owner,))), Running)
    assert isinstance(bench.claim(replace(run("t2/0"), heir_of=(other.owner,))), Running)
    assert isinstance(bench.complete(lost, first.fence), Running)
    assert bench.complete(heir, taken.fence) == Done(b"1")
    assert bench.claim(replace(run("t3/0"), heir_of=(heir.owner,))) == Done(b"1")


def told(bench: Bench, beginning: str = "") -> dict[str, KeyRecord]:
    assert isinstance(bench.store, InspectableStore)
    return {record.key: record for record in bench.store.records(beginning)}


def test_each_key_is_told(bench: Bench) -> None:
    """Who has it, since when and for how long, or that its work is done; starts that are counted are no keys."""
    me, long = run(), timedelta(seconds=30)
    held = {name: bench.claim(me, key=f"shop.{name}:1", lease=long) for name in ("runs", "done", "free")}
    bench.store.complete("shop.done:1", me, "fp", held["done"].fence, b"x" * 10, ttl=TTL)
    bench.store.release("shop.free:1", me, held["free"].fence, ended=Ended(failed=True), ttl=TTL)
    bench.store.count_start("shop.runs", "a", ttl=TTL)
    found = told(bench)
    assert found.keys() == {"shop.runs:1", "shop.done:1", "shop.free:1"}
    runs, done, free = (found[f"shop.{name}:1"] for name in ("runs", "done", "free"))
    assert (runs.state, runs.owner, runs.fence, runs.starts) == ("running", me.owner, held["runs"].fence, 1)
    assert runs.held_for is not None
    assert timedelta(0) <= runs.held_for < timedelta(seconds=5)
    assert runs.lease_left is not None
    assert long - timedelta(seconds=5) < runs.lease_left <= long
    assert long < runs.expires_in <= long + TTL
    assert (done.state, done.owner, done.fence) == ("done", me.owner, held["done"].fence)
    assert timedelta(0) < done.expires_in <= TTL
    assert (free.state, free.owner, free.held_for, free.lease_left, done.lease_left) == ("free", "", None, None, None)


def test_a_lease_that_is_over_is_told_so(bench: Bench) -> None:
    """Nothing is left of it, and it is still held; what has expired is not told at all."""
    bench.claim(run())
    bench.store.claim("gone", run(), "fp", lease=timedelta(milliseconds=1), ttl=timedelta(milliseconds=1))
    bench.let_pass(LEASE)
    found = told(bench)
    assert found.keys() == {"k"}
    assert (found["k"].state, found["k"].lease_left) == ("running", timedelta(0))


def test_keys_are_told_by_how_they_begin(bench: Bench) -> None:
    """What begins so, to the letter: nothing in a name means anything else."""
    names = ["a:1", "a:2", "ab:1", "a*:1", "[a]:1", "A:1", "a_:1", "a%:1", "é:1"]
    for name in names:
        bench.claim(run(), key=name)
    assert told(bench).keys() == {*names}
    for beginning in ("a:", "a:1", "a*", "[a]", "A", "a_", "a%", "é"):
        assert told(bench, beginning).keys() == {name for name in names if name.startswith(beginning)}, beginning


def test_many_keys_are_told(bench: Bench) -> None:
    """Each once."""
    for number in range(2100):
        bench.store.claim(f"k-{number}", run(), "fp", lease=TTL, ttl=timedelta(days=1))
    records = list(bench.store.records())  # type: ignore[attr-defined]
    assert sorted(record.key for record in records) == sorted(f"k-{number}" for number in range(2100))


def test_finished_work_can_be_forgotten(bench: Bench) -> None:
    """It is run again then, with a greater fence, whatever its arguments; what has ended stays ended."""
    first, second = run(), run(number=1)
    bench.release(first, bench.claim(first).fence, Ended(failed=False))
    held = bench.claim(second)
    assert bench.complete(second, held.fence) == Done(b"1")
    assert bench.store.forget("k") is True  # type: ignore[attr-defined]
    assert bench.claim(run()) == Ended(failed=False)
    assert bench.complete(second, held.fence) == Running(timedelta(0))
    again = bench.claim(run("t2/0"), "other")
    assert isinstance(again, Claimed)
    assert (again.starts, again.fence > held.fence) == (1, True)


def test_only_the_work_that_is_meant_is_forgotten(bench: Bench) -> None:
    """What was done again since stays."""
    me, again = run(), run("t2/0")
    first = bench.claim(me)
    bench.complete(me, first.fence)
    assert bench.store.forget("k", fence=first.fence + 1) is False  # type: ignore[attr-defined]
    assert bench.store.forget("k", fence=first.fence) is True  # type: ignore[attr-defined]
    second = bench.claim(again)
    bench.complete(again, second.fence, b"2")
    assert bench.store.forget("k", fence=first.fence) is False  # type: ignore[attr-defined]
    assert bench.claim(run("t3/0")) == Done(b"2")


def test_one_key_is_told(bench: Bench) -> None:
    """That of this very name; nothing of one that is unknown or has expired."""
    me = run()
    held = bench.claim(me, key="k:1")
    bench.claim(run(), key="k:12")
    bench.store.claim("gone", run(), "fp", lease=timedelta(milliseconds=1), ttl=timedelta(milliseconds=1))
    bench.let_pass(timedelta(milliseconds=20))
    one = bench.store.record("k:1")  # type: ignore[attr-defined]
    assert (one.key, one.state, one.owner, one.fence) == ("k:1", "running", me.owner, held.fence)
    assert [bench.store.record(name) for name in ("k:", "k", "gone", "K:1")] == [None] * 4  # type: ignore[attr-defined]


def test_a_key_is_taken_from_a_dead_owner(bench: Bench) -> None:
    """It is free then, whatever the arguments, as a first start; what has ended stays ended."""
    ended, me = run(), run(number=1)
    bench.release(ended, bench.claim(ended).fence, Ended(failed=False))
    held = bench.claim(me)
    assert bench.store.free("k", held.fence) is False  # type: ignore[attr-defined]
    bench.let_pass(LEASE)
    assert bench.store.free("k", held.fence + 1) is False  # type: ignore[attr-defined]
    assert bench.store.free("k", held.fence) is True  # type: ignore[attr-defined]
    assert bench.claim(run()) == Ended(failed=False)
    assert bench.renew(me, held.fence) is False
    after = bench.claim(run("t2/0"), "other")
    assert isinstance(after, Claimed)
    assert (after.starts, after.fence > held.fence) == (1, True)


def test_a_key_is_taken_from_a_living_owner_only_if_that_is_said(bench: Bench) -> None:
    """It is fenced off then: it can neither renew, complete nor release."""
    me = run()
    held = bench.claim(me, lease=timedelta(seconds=30))
    assert bench.store.free("k", held.fence) is False  # type: ignore[attr-defined]
    assert bench.renew(me, held.fence) is True
    assert bench.store.free("k", held.fence, living=True) is True  # type: ignore[attr-defined]
    assert bench.renew(me, held.fence) is False
    assert bench.release(me, held.fence) is False
    assert bench.complete(me, held.fence) == Running(timedelta(0))
    assert isinstance(bench.claim(run("t2/0"), "other"), Claimed)


def test_only_what_is_held_is_taken(bench: Bench) -> None:
    """Neither finished work, nor what is free or unknown."""
    me = run()
    held = bench.claim(me)
    bench.complete(me, held.fence)
    assert bench.store.free("k", held.fence, living=True) is False  # type: ignore[attr-defined]
    assert bench.claim(run("t2/0")) == Done(b"1")
    assert bench.store.free("unknown", 7, living=True) is False  # type: ignore[attr-defined]


def test_only_finished_work_is_forgotten(bench: Bench) -> None:
    """Neither what runs, nor what is free or unknown."""
    me = run()
    held = bench.claim(me)
    assert bench.store.forget("k") is False  # type: ignore[attr-defined]
    assert isinstance(bench.claim(run("t2/0")), Running)
    bench.release(me, held.fence)
    assert bench.store.forget("k") is False  # type: ignore[attr-defined]
    assert bench.store.forget("unknown") is False  # type: ignore[attr-defined]


def test_a_certain_result_can_be_forgotten(bench: Bench) -> None:
    """One that begins so: what has been recorded since stays, and so does what runs, and what was not kept."""
    forget: Any = bench.store.forget  # type: ignore[attr-defined]
    first, second, third = run(), run("t2/0"), run("t3/0")
    held = bench.claim(first)
    assert forget("k", beginning=b"!1") is False
    assert bench.complete(first, held.fence, b"!1\x00\xff[") == Done(b"!1\x00\xff[")
    assert [forget("k", beginning=one) for one in (b"!2", b"1", b"!1\x00\xff[[")] == [False] * 3
    assert forget("k", beginning=b"!1\x00\xff") is True
    assert bench.complete(second, bench.claim(second).fence, b"!2") == Done(b"!2")
    assert forget("k", beginning=b"!1") is False
    assert bench.claim(third) == Done(b"!2")
    assert forget("k") is True
    assert bench.complete(third, bench.claim(third).fence, None) == Done(None)
    assert forget("k", beginning=b"!") is False
    assert forget("k") is True


def test_keys_do_not_meet(bench: Bench) -> None:
    """Each key has its own owner."""
    assert isinstance(bench.claim(run(), key="a"), Claimed)
    assert isinstance(bench.claim(run("t2/0"), key="b"), Claimed)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("claim"), st.integers(0, 2), st.integers(0, 1), st.sampled_from(["fp", "other"])),
            st.tuples(st.just("complete"), st.integers(0, 2), st.sampled_from([b"1", None])),
            st.tuples(st.just("renew"), st.integers(0, 2)),
            st.tuples(
                st.sampled_from(["release", "release by owner"]),
                st.integers(0, 2),
                st.sampled_from([None, Ended(failed=True), Ended(failed=False)]),
            ),
            st.tuples(st.just("expire")),
        ),
        max_size=14,
    ),
)
def test_all_stores_answer_alike(database: str, tmp_path: Path, steps: list[Any]) -> None:
    """Any history of claims, completions, releases and dead owners gets the same answers from each store."""
    clock = Clock()
    sql = SQLStore(f"sqlite:///{tmp_path}/{uuid.uuid4().hex}.db")
    sql.create_table()
    pair: list[Store] = [MemoryStore(clock), RedisStore(database, prefix=uuid.uuid4().hex), sql]
    client = redis.Redis.from_url(database)
    prefix = pair[1]._prefix  # type: ignore[attr-defined]
    holders: dict[int, tuple[Attempt, list[int]]] = {}
    for step in steps:
        if step[0] == "expire":
            # The lease is ended in the record, since the server's clock cannot be turned.
            clock.now += 60
            if client.hexists(f"{prefix}:k", "l"):
                client.hset(f"{prefix}:k", "l", 1)
            sql._database.ask(sa.update(sql.table).values(lease_ends=0), {})
            continue
        if step[0] == "claim":
            who = run(f"t{step[1]}/0", step[2])
            answers = [s.claim("k", who, step[3], lease=timedelta(seconds=50), ttl=timedelta(hours=1)) for s in pair]
            if isinstance(answers[0], Claimed):
                holders[step[1]] = (who, [a.fence if isinstance(a, Claimed) else 0 for a in answers])
        else:
            who, fences = holders.get(step[1], (run(f"t{step[1]}/0"), [1, 1, 1]))
            if step[0] == "renew":
                answers = [
                    s.renew("k", who, f, lease=timedelta(seconds=50), ttl=timedelta(hours=1))
                    for s, f in zip(pair, fences, strict=True)
                ]
            elif step[0] == "complete":
                answers = [
                    s.complete("k", who, "fp", f, step[2], ttl=timedelta(hours=1))
                    for s, f in zip(pair, fences, strict=True)
                ]
            else:
                known: list[int | None] = [*fences] if step[0] == "release" else [None] * 3
                answers = [
                    s.release("k", who, f, ended=step[2], ttl=timedelta(hours=1))
                    for s, f in zip(pair, known, strict=True)
                ]
        kinds = [
            (type(a), a.starts if isinstance(a, Claimed) else None if isinstance(a, Running) else a) for a in answers
        ]
        assert kinds[0] == kinds[1] == kinds[2], (step, answers)


def test_a_record_in_flight_is_small(database: str) -> None:
    """One key, under 300 bytes, while a task runs; also after two attempts."""
    store, client = RedisStore(database), redis.Redis.from_url(database)
    first = run()
    store.release(
        "k" * 32,
        first,
        store.claim("k" * 32, first, "f" * 32, lease=LEASE, ttl=TTL).fence,  # type: ignore[union-attr]
        ended=Ended(failed=False),
        ttl=TTL,
    )
    store.claim("k" * 32, run(number=1), "f" * 32, lease=timedelta(seconds=9), ttl=TTL)
    (key,) = client.keys()
    assert client.memory_usage(key) < 300


def test_a_prefix_keeps_two_applications_apart(database: str) -> None:
    """In one database, with tasks and keys of the same names."""
    for prefix in ("one", "two"):
        store, who = RedisStore(database, prefix=prefix), run("a/0")
        answer = store.claim("k", who, f"arguments of {prefix}", lease=LEASE, ttl=TTL)
        assert isinstance(answer, Claimed)
        store.complete("k", who, f"arguments of {prefix}", answer.fence, prefix.encode(), ttl=TTL)
        known = store.claim("k", run("b/0"), f"arguments of {prefix}", lease=LEASE, ttl=TTL)
        assert isinstance(known, Done)
        assert known.result == prefix.encode()


def test_a_task_with_a_key_costs_two_round_trips() -> None:
    """One script before the body and one behind it, as the server counts them; nothing when it is sent."""
    with closing(RedisServer()) as server:
        server.start()
        app = Celery("trips", broker="memory://", set_as_current=False)
        use_patterns(app)
        use_store(app, server.url())

        @app.task(shared=False, name="t")
        @idempotent(key="x", ttl=TTL)
        def t(x: int) -> int:
            return x

        run_here(t, 0)  # connects, and loads the scripts
        client = redis.Redis.from_url(server.url())

        def calls() -> dict[str, int]:
            return {name: told["calls"] for name, told in client.info("commandstats").items() if "info" not in name}  # type: ignore[union-attr]

        before = calls()
        t.delay(1)
        assert calls() == before
        run_here(t, 1)
        after = calls()
        assert {name: count - before.get(name, 0) for name, count in after.items() if name == "cmdstat_evalsha"} == {
            "cmdstat_evalsha": 2
        }
        assert after.keys() == before.keys()
        client.close()
        app.close()


def test_two_workers_in_every_order_of_their_steps(database: str) -> None:
    """Two runs of one key, each of claim and complete, in every interleaving: one of them does the work."""
    for index, order in enumerate(sorted(set(itertools.permutations("aabb")))):
        store = RedisStore(database, prefix=str(index))
        who = {"a": run("a/0"), "b": run("b/0")}
        held: dict[str, Claimed] = {}
        told: dict[str, list[Any]] = {"a": [], "b": []}
        for name in order:
            if name in held:
                told[name].append(store.complete("k", who[name], "fp", held[name].fence, name.encode(), ttl=TTL))
            elif not told[name]:
                answer = store.claim("k", who[name], "fp", lease=timedelta(seconds=30), ttl=TTL)
                told[name].append(answer)
                if isinstance(answer, Claimed):
                    held[name] = answer
        assert len(held) == 1, order
        assert store.claim("k", run("c/0"), "fp", lease=LEASE, ttl=TTL) == Done(next(iter(held)).encode())


def test_trouble_is_store_unavailable_and_soon() -> None:
    """A server that is not there is our own error, within the store's patience, and shows no password."""
    store = RedisStore(f"redis://user:hunter2@127.0.0.1:{free_port()}/0", patience=timedelta(seconds=0.3))
    begun = time.monotonic()
    for ask in (lambda: store.claim("k", run(), "fp", lease=LEASE, ttl=TTL), lambda: store.record("k")):
        with pytest.raises(
            StoreUnavailable, match=r"redis did not answer at 127.0.0.1:\d+, database 0: Conn.* refused"
        ) as caught:
            ask()
        assert "hunter2" not in str(caught.value)
    assert time.monotonic() - begun < 3


def test_a_wrong_password_is_refused_at_once(database: str) -> None:
    """It is no outage, which redis-py takes it for: it is not tried again, and says what it is."""
    store = RedisStore(database.replace("redis://", "redis://user:hunter2@"), patience=timedelta(seconds=10))
    begun = time.monotonic()
    with pytest.raises(
        StoreUnavailable, match=r"redis refused at 127.0.0.1:\d+, database \d+: AuthenticationError"
    ) as caught:
        store.claim("k", run(), "fp", lease=LEASE, ttl=TTL)
    assert time.monotonic() - begun < 5
    assert "hunter2" not in str(caught.value)


def test_a_restarted_server_is_found_again() -> None:
    """A connection that broke, and scripts that were lost with the server, are made again within one call."""
    server = RedisServer()
    try:
        server.start()
        store = RedisStore(server.url())
        assert isinstance(store.claim("a", run(), "fp", lease=LEASE, ttl=TTL), Claimed)
        server.stop()
        server.start()
        assert isinstance(store.claim("b", run(), "fp", lease=LEASE, ttl=TTL), Claimed)
    finally:
        server.close()


def test_a_store_is_named_by_its_url() -> None:
    """Redis's, PostgreSQL's and SQLite's open a store; anything else says what was expected, and no password."""
    assert isinstance(open_store("redis://localhost/1"), RedisStore)
    mine = MemoryStore()
    assert open_store(mine) is mine
    assert isinstance(open_store("postgresql://me:secret@host/db"), SQLStore)
    assert isinstance(open_store("postgres://me:secret@host/db"), SQLStore)
    assert isinstance(open_store("sqlite:////a/file"), SQLStore)
    with pytest.raises(ConfigurationError, match="scheme 'mysql'") as caught:
        open_store("mysql://me:secret@host/db")
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="expected store to be a URL or a Store"):
        open_store(7)  # type: ignore[arg-type]

    steps = {
        name: getattr(MemoryStore, name) for name in ("claim", "complete", "release", "count_start", "forget_starts")
    }
    with pytest.raises(ConfigurationError, match="got a Five, which has no renew, excuse_start"):
        open_store(type("Five", (), steps)())


def test_threads_share_a_store_and_get_their_own_answers(database: str) -> None:
    """Each takes a connection of its own while it asks; no more are kept than were used at once."""
    store = RedisStore(database)
    wrong: list[str] = []

    def work(number: int) -> None:
        for turn in range(50):
            key, me = f"k-{number}-{turn}", Attempt(f"run-{number}-{turn}", 0, f"me-{number}")
            held = store.claim(key, me, "fp", lease=TTL, ttl=TTL)
            done = store.complete(key, me, "fp", held.fence, key.encode(), ttl=TTL)  # type: ignore[union-attr]
            again = store.claim(key, Attempt("other", 0, "you"), "fp", lease=TTL, ttl=TTL)
            if not (done == again == Done(key.encode())):
                wrong.append(f"{key}: {held} {done} {again}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert 1 <= len(store._server._free) <= 12


def _hang_up(url: str) -> None:
    """End every connection of the server's but the one that says so, as its time-out or a proxy would."""
    with redis.Redis.from_url(url, single_connection_client=True) as admin:
        admin.client_kill_filter(_type="normal", skipme=True)


@pytest.fixture
def lonely() -> Any:
    """A server of the test's own: it hangs up on everybody."""
    server = RedisServer()
    server.start()
    yield server
    server.close()


def test_a_server_that_hangs_up_is_asked_again(lonely: RedisServer) -> None:
    """150 times: connections that were let go are not counted by anybody."""
    store = RedisStore(lonely.url())
    for turn in range(150):
        who = Attempt(f"run-{turn}", 0, f"me-{turn}")
        assert isinstance(store.claim(f"k-{turn}", who, "fp", lease=TTL, ttl=TTL), Claimed)
        _hang_up(lonely.url())
    assert len(store._server._free) == 1


def test_many_stale_connections_are_no_outage(lonely: RedisServer) -> None:
    """One look at a dead connection lets the others go: the next question is asked on a new one, at once."""
    store = RedisStore(lonely.url(), patience=timedelta(seconds=0.5))
    ready = threading.Barrier(30)

    def work(number: int) -> None:
        connection = store._server._take()
        connection.connect()
        ready.wait(20)
        store._server._free.append(connection)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(store._server._free) == 30
    _hang_up(lonely.url())
    assert isinstance(store.claim("k", Attempt("run", 0, "me"), "fp", lease=TTL, ttl=TTL), Claimed)
    assert len(store._server._free) == 1


def test_a_hundred_threads_at_once(database: str) -> None:
    """There is no limit of ours to how many may ask at the same time."""
    store = RedisStore(database + "?max_connections=5")
    together, told = threading.Barrier(120), []

    def work(number: int) -> None:
        together.wait(30)
        told.append(store.claim(f"k-{number}", Attempt(f"r-{number}", 0, f"me-{number}"), "fp", lease=TTL, ttl=TTL))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(120)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [type(answer) for answer in told] == [Claimed] * 120


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: RedisStore("redis://localhost", patience=5), "expected patience to be a timedelta"),  # type: ignore[arg-type]
        (lambda: RedisStore("redis://localhost", prefix=5), "expected prefix to be a str"),  # type: ignore[arg-type]
        (lambda: RedisStore("redis://localhost?lease=4"), "cannot read this one: the option 'lease'"),
        (lambda: RedisStore("redis://localhost/abc"), "cannot read this one: its database is no number"),
        (lambda: RedisStore("redis://localhost/1/2"), "cannot read this one: its database is no number"),
        (lambda: RedisStore("redis://:a#hunter2@localhost/1"), "to be percent-encoded: @ as %40"),
        (lambda: RedisStore("redis://:a/hunter2@localhost/1"), "to be percent-encoded: @ as %40"),
        (lambda: RedisStore("redis://:123?hunter2@localhost/1"), "to be percent-encoded: @ as %40"),
        (lambda: RedisStore("unix://:a/hunter2@/run/redis.sock"), "to be percent-encoded: @ as %40"),
        (lambda: RedisStore("redis://localhost?password=a&hunter2=1"), "cannot read this one: TypeError"),
        (lambda: RedisStore("sentinel://:1/hunter2@one:26379/shop"), "it names no Sentinel, or no service"),
        (lambda: RedisStore("sentinel://one:26379"), "it names no Sentinel, or no service"),
        (lambda: RedisStore("redis://:hunter2@localhost?socket_timeout=x"), "with options that redis-py knows"),
        (lambda: open_store(RedisStore), "got the class RedisStore itself"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_store_is_refused_when_it_is_made(wrong: Any, says: str) -> None:
    """And not at the first claim."""
    with pytest.raises(ConfigurationError, match=says) as caught:
        wrong()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost/1 ",
        "redis://localhost/%31",
        "redis://localhost/",
        "redis://[::1]:6380/1",
        "redis://a:b%40c%23d@localhost/1",
        "redis://localhost?client_name=worker@host",
        "unix:///run/redis@6379/redis.sock?db=1",
        "unix://a:b@/run/redis.sock",
        "rediss://localhost",
    ],
)
def test_a_url_that_redis_py_reads_is_taken(url: str) -> None:
    """What is refused is what it would read as something else."""
    assert isinstance(open_store(url) if not url.startswith("unix") else RedisStore(url), RedisStore)


def test_who_recorded_the_work_is_told(bench: Bench) -> None:
    """The owner, also when it asks again; nobody else, also when its result is the same."""
    me, you = run(), run()
    old = bench.claim(me)
    bench.let_pass(LEASE)
    new = bench.claim(you)
    assert bench.complete(you, new.fence, b"1").ours
    assert bench.complete(you, new.fence, b"1").ours
    assert bench.complete(you, new.fence, None).ours
    other = bench.complete(me, old.fence, b"1")
    assert (other, other.ours) == (Done(b"1"), False)
    later = bench.claim(run())
    assert (later, later.ours) == (Done(b"1"), False)


@pytest.mark.parametrize(
    "url",
    [
        "redis:/:hunter2@localhost/1",
        "hunter2@localhost",
        "redis://:hunter2/x@h:6379/0",
        "redis://:hunter2@localhost?protocol=5",
        "rediss://:hunter2@localhost?ssl_cert_reqs=zzz",
    ],
)
def test_no_wrong_url_is_shown(url: str) -> None:
    """Not in the message, and not in an error behind it."""
    with pytest.raises(ConfigurationError) as caught:
        open_store(url)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
