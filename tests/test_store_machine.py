"""Each store in lockstep with the rules, through any history of several workers: killed, unheard, late, with clocks that are wrong."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from celery_patterns.stores import MemoryStore, RedisStore, SQLStore
from celery_patterns.typing import Attempt, Claimed, Done, Ended, Running

LEASE, TTL = timedelta(hours=1), timedelta(days=2)
WORKERS = st.integers(0, 3)
#: How wrong a worker's own clock is, in seconds.
SKEWS = st.sampled_from([0, -86_400, 86_400])


@dataclass
class Held:
    """What a worker believes it has: a claim in each of the stores."""

    attempt: Attempt
    fences: list[int]


class Lockstep:
    """The same steps on a store and on the rules, with a clock that a test turns in both."""

    def __init__(self, store: Any, end_leases: Any) -> None:
        self.now = time.time()
        self.stores: list[Any] = [MemoryStore(lambda: self.now), store]
        self._end_leases = end_leases

    def end_leases(self) -> None:
        model = self.stores[0]
        model._records = {key: replace(record, lease_ends=0) for key, record in model._records.items()}
        self._end_leases()

    def ask(self, step: str, *args: Any, fences: list[int] | None = None, **more: Any) -> list[Any]:
        told = []
        for number, store in enumerate(self.stores):
            given = [fences[number] if one is FENCE and fences is not None else one for one in args]
            told.append(getattr(store, step)("k", *given, **more))
        assert shape(told[0]) == shape(told[1]), (step, args, told)
        return told


FENCE: Any = object()


def shape(answer: Any) -> Any:
    """An answer, without what only the clocks decide."""
    if isinstance(answer, Claimed):
        return ("claimed", answer.starts)
    if isinstance(answer, Running):
        return ("running", answer.same_run)
    if isinstance(answer, Done):
        return ("done", answer.result)
    return answer


@contextmanager
def clock_of(skew: float) -> Iterator[None]:
    """A worker whose own clock is wrong: no store may look at it."""
    right = time.time
    time.time = lambda: right() + skew
    try:
        yield
    finally:
        time.time = right


class Machine(RuleBasedStateMachine):
    """Four workers and one key. Two of them are deliveries of one task."""

    make: Any

    @initialize()
    def begin(self) -> None:
        self.lockstep = type(self).make()
        self.held: dict[int, Held] = {}
        self.attempts = {worker: self.delivery(worker, 0) for worker in range(4)}
        self.done: bytes | None = None
        self.fence = 0
        #: Whose lease runs, and who was given the key last.
        self.live: str | None = None
        self.last: str | None = None

    @staticmethod
    def delivery(worker: int, number: int, heir_of: tuple[str, ...] = ()) -> Attempt:
        return Attempt(f"task-{worker // 2}/0", number, uuid.uuid4().hex, heir_of)

    @rule(worker=WORKERS, fingerprint=st.sampled_from(["fp", "fp", "other"]), skew=SKEWS, heard=st.booleans())
    def claim(self, worker: int, fingerprint: str, skew: float, heard: bool) -> None:
        if worker in self.held:
            return  # its body runs
        me = self.attempts[worker]
        with clock_of(skew):
            told = self.lockstep.ask("claim", me, fingerprint, lease=LEASE, ttl=TTL)
            if isinstance(told[1], Claimed):  # asked again, as when the first answer is lost
                assert self.lockstep.ask("claim", me, fingerprint, lease=LEASE, ttl=TTL) == told
        if isinstance(told[1], Claimed):
            assert self.done is None
            assert self.live in (None, me.owner, *me.heir_of)
            if told[1].fence != self.fence:
                assert told[1].fence > self.fence
                self.live, self.last, self.fence = me.owner, me.owner, told[1].fence
            assert self.last == me.owner  # who asks again is told the same, and has no more than before
            if heard:
                self.held[worker] = Held(me, [one.fence for one in told])
            else:  # the answer was lost: its message waits, and inherits
                self.attempts[worker] = self.delivery(worker, me.number, (me.owner,))
        elif isinstance(told[1], Done):
            assert told[1].result == self.done

    @precondition(lambda self: self.held)
    @rule(data=st.data(), skew=SKEWS)
    def renew(self, data: Any, skew: float) -> None:
        held = self.held[data.draw(st.sampled_from(sorted(self.held)))]
        with clock_of(skew):
            told = self.lockstep.ask("renew", held.attempt, FENCE, fences=held.fences, lease=LEASE, ttl=TTL)
        if told[1] and self.done is None:
            assert held.fences[1] == self.fence
            self.live = held.attempt.owner
        assert told[1] or self.live != held.attempt.owner

    @precondition(lambda self: self.held)
    @rule(data=st.data(), result=st.sampled_from([b"1", b"2", b"null", None]), twice=st.booleans())
    def complete(self, data: Any, result: bytes | None, twice: bool) -> None:
        worker = data.draw(st.sampled_from(sorted(self.held)))
        held = self.held.pop(worker)
        for _ in range(1 + twice):  # the first answer may be lost
            told = self.lockstep.ask("complete", held.attempt, "fp", FENCE, result, fences=held.fences, ttl=TTL)
            if isinstance(told[1], Done) and told[1].ours:
                assert held.fences[1] == self.fence
                self.done, self.live = result, None
        assert isinstance(told[1], Done) or self.live != held.attempt.owner

    @precondition(lambda self: self.held)
    @rule(data=st.data(), ended=st.sampled_from([None, Ended(failed=True), Ended(failed=False)]))
    def release(self, data: Any, ended: Ended | None) -> None:
        worker = data.draw(st.sampled_from(sorted(self.held)))
        held = self.held.pop(worker)
        told = self.lockstep.ask("release", held.attempt, FENCE, fences=held.fences, ended=ended, ttl=TTL)
        if told[1]:
            assert held.fences[1] == self.fence
            self.live = None
        again = held.attempt.number + (ended is not None)
        self.attempts[worker] = self.delivery(worker, again)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def hand_over(self, data: Any) -> None:
        """The next attempt is sent, and the release never comes."""
        worker = data.draw(st.sampled_from(sorted(self.held)))
        held = self.held.pop(worker)
        self.attempts[worker] = self.delivery(worker, held.attempt.number + 1, (held.attempt.owner,))

    @rule(worker=WORKERS)
    def die(self, worker: int) -> None:
        """Killed at any point: its message comes again, under another owner."""
        held = self.held.pop(worker, None)
        number = held.attempt.number if held else self.attempts[worker].number
        self.attempts[worker] = self.delivery(worker, number)

    @rule()
    def time_passes(self) -> None:
        self.lockstep.end_leases()
        self.live = None

    @rule(living=st.booleans())
    def take(self, living: bool) -> None:
        """An operator frees the key."""
        fences = [getattr(store.record("k"), "fence", 0) for store in self.lockstep.stores]
        told = self.lockstep.ask("free", FENCE, fences=fences, living=living)
        if told[1]:
            assert living or self.live is None
            self.live = None

    @rule()
    def forget(self) -> None:
        told = self.lockstep.ask("forget")
        if told[1]:
            self.done = None
            self.held = {}

    @invariant()
    def the_record_is_the_same(self) -> None:
        if hasattr(self, "lockstep"):
            model, store = (one.record("k") for one in self.lockstep.stores)
            assert (model is None) == (store is None)
            if model is not None:
                assert (model.state, model.owner, model.starts) == (store.state, store.owner, store.starts)


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
def test_a_store_keeps_step_with_the_rules(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    """Never two live owners, done is final, only the owner ends a key: whatever is done, and whatever a worker's clock says."""
    _run(request, tmp_path, kind, 60)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["redis", "sqlite", "postgresql"])
def test_a_store_keeps_step_for_long(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    """The same, many times more."""
    _run(request, tmp_path, kind, 400)


def _run(request: pytest.FixtureRequest, tmp_path: Path, kind: str, examples: int) -> None:
    if kind == "redis":
        url = request.getfixturevalue("database")
        client: Any = redis.Redis.from_url(url)

        def make() -> Lockstep:
            prefix = uuid.uuid4().hex
            return Lockstep(RedisStore(url, prefix=prefix), lambda: _end(client, f"{prefix}:k"))
    else:
        shared = SQLStore(f"sqlite:///{tmp_path}/keys.db" if kind == "sqlite" else request.getfixturevalue("postgres"))
        shared.create_table()

        def make() -> Lockstep:
            shared._database.ask(sa.delete(shared.table), {})
            return Lockstep(shared, lambda: shared._database.ask(sa.update(shared.table).values(lease_ends=0), {}))

    machine = type("Machine", (Machine,), {"make": staticmethod(make)})
    some = settings(
        max_examples=examples, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(machine, settings=some)  # type: ignore[no-untyped-call]


def _end(client: Any, name: str) -> None:
    if client.hexists(name, "l"):
        client.hset(name, "l", 1)
