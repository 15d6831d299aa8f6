"""Every order of the steps of two and three runs of one key, each of them killed before and after each step.

The steps are those of the stores themselves: the shipped scripts on a real Redis, and the store in memory. What is told
apart is what a run does between them, which a small model plays as :mod:`celery_patterns._idempotent` does it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from celery_patterns.stores import MemoryStore, RedisStore, SQLStore, _record
from celery_patterns.typing import Attempt, Claimed, Done, Ended, Running

LEASE, TTL = timedelta(hours=1), timedelta(days=1)


@dataclass(frozen=True)
class Run:
    """One delivery: who it is, and how far it came."""

    run_id: str
    number: int
    #: Its name in the store, random for each delivery.
    owner: str
    heir_of: tuple[str, ...] = ()
    #: ``asks`` (its message is there, or waits), ``holds``, ``sent`` (the next attempt stands), ``over``, ``dead``.
    status: str = "asks"
    fence: int = 0
    #: Whether its lease runs: nobody else may be given the key then.
    live: bool = False
    #: How often its message may still be given out again, and how many next attempts it may send.
    lives: int = 1
    retries: int = 0

    @property
    def attempt(self) -> Attempt:
        return Attempt(self.run_id, self.number, self.owner, self.heir_of)

    def again(self, *, heir: bool = False) -> Run:
        """The same message once more: a waiting copy, or a redelivery."""
        return replace(
            self, owner=uuid.uuid4().hex, status="asks", fence=0, live=False, heir_of=(self.owner,) if heir else ()
        )


@dataclass(frozen=True)
class World:
    """Every run, and what has happened to the key."""

    runs: tuple[Run, ...]
    #: The result that was recorded; it stays.
    done: str | None = None
    #: The fences that were given out.
    fence: int = 0

    def with_run(self, at: int, run: Run, **more: Any) -> World:
        return replace(self, runs=(*self.runs[:at], run, *self.runs[at + 1 :]), **more)


class RedisKey:
    """The one key of a Redis store, whose state can be put back."""

    def __init__(self, database: str) -> None:
        self.store: Any = RedisStore(database)
        self._client: Any = redis.Redis.from_url(database)
        self._name = "celery-patterns:k"

    def state(self) -> Any:
        return self._client.dump(self._name)

    def put_back(self, state: Any) -> None:
        if state is None:
            self._client.delete(self._name)
        else:
            self._client.restore(self._name, 10**9, state, replace=True)

    def end_lease(self) -> None:
        if self._client.hexists(self._name, "l"):
            self._client.hset(self._name, "l", 1)

    def told(self) -> dict[str, str]:
        found = {name.decode(): value.decode() for name, value in self._client.hgetall(self._name).items()}
        if "l" in found:
            found["l"] = "over" if found["l"] == "1" else "runs"
        return found


class MemoryKey:
    """The same of the store in memory."""

    def __init__(self) -> None:
        self.store: Any = MemoryStore()

    def state(self) -> Any:
        return dict(self.store._records)

    def put_back(self, state: Any) -> None:
        self.store._records = dict(state)

    def end_lease(self) -> None:
        if "k" in self.store._records:
            self.store._records["k"] = replace(self.store._records["k"], lease_ends=0)

    def told(self) -> dict[str, str]:
        record = self.store._records.get("k")
        if record is None:
            return {}
        told = {
            name: str(getattr(record, name))
            for name in ("state", "owner", "run", "number", "fence", "starts", "result", "marks")
        }
        return {**told, "l": "over" if record.lease_ends == 0 else "runs"}


class SQLKey:
    """The same of a store in SQL."""

    def __init__(self, url: str) -> None:
        self.store: Any = SQLStore(url, table=f"keys_{uuid.uuid4().hex}")
        if url.startswith("sqlite"):
            engine = self.store._database._engine
            sa.event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous=OFF"))
        self.store.create_table()
        self.store._claims = -(10**9)

    def _say(self, statement: Any) -> Any:
        return self.store._database.ask(statement, {})

    def state(self) -> Any:
        rows = self._say(sa.select(self.store.table))
        return dict(rows[0]._mapping) if rows else None

    def put_back(self, state: Any) -> None:
        self._say(sa.delete(self.store.table))
        if state is not None:
            self._say(sa.insert(self.store.table).values(state))

    def end_lease(self) -> None:
        self._say(sa.update(self.store.table).values(lease_ends=0))

    def told(self) -> dict[str, str]:
        row = self.state()
        if row is None:
            return {}
        told = {
            name: str(row[name]) for name in ("state", "owner", "run", "number", "fence", "starts", "result", "marks")
        }
        return {**told, "l": "over" if row["lease_ends"] == 0 else "runs"}


class Explorer:
    """Goes every way that the runs can go, each state once."""

    def __init__(self, key: Any) -> None:
        self.key = key
        self.seen: set[Any] = set()
        self.steps = 0
        self.ends = 0

    def explore(self, world: World) -> None:
        waiting = [(world, self.key.state())]
        while waiting:
            world, state = waiting.pop()
            if not any(run.status in ("asks", "holds", "sent") for run in world.runs):
                self.ends += 1
            for step in self._steps(world):
                self.key.put_back(state)
                self.steps += 1
                after = self._without_gone(step())
                name = self._name_of(after)
                if name not in self.seen:
                    self.seen.add(name)
                    waiting.append((after, self.key.state()))

    def _without_gone(self, world: World) -> World:
        """Nobody who is over or dead matters, but for the one that the record still names."""
        holder = self.key.told().get("o") or self.key.told().get("owner")
        return replace(
            world, runs=tuple(run for run in world.runs if run.status not in ("over", "dead") or run.owner == holder)
        )

    def _name_of(self, world: World) -> Any:
        """A state, whatever its random owners are called and however late it is."""
        fences = {fence: rank for rank, fence in enumerate(sorted({run.fence for run in world.runs} | {world.fence}))}

        def shape(run: Run) -> tuple[Any, ...]:
            return (run.run_id, run.number, run.status, run.live, run.lives, run.retries, fences[run.fence])

        shapes = {run.owner: repr(shape(run)) for run in world.runs}
        told = self.key.told()
        for counted in {
            "n",
            "starts",
        } & told.keys():  # a count can grow for ever, and nothing that is asked here hangs on it
            told[counted] = str(min(int(told[counted]), 3))
        fence = told.pop("f", None) or told.pop("fence", None)
        record = [
            (field, shapes.get(value, "gone") if field in ("o", "owner") else value) for field, value in told.items()
        ]
        runs = [(*shape(run), *sorted(shapes[one] for one in run.heir_of if one in shapes)) for run in world.runs]
        return (
            str(sorted(record)),
            fences.get(int(fence)) if fence else None,
            str(sorted(map(repr, runs))),
            world.done,
        )

    def _steps(self, world: World) -> Iterator[Callable[[], World]]:
        for at, run in enumerate(world.runs):
            if run.status == "asks":
                yield lambda at=at: self._claim(world, at)
                if run.lives:
                    yield lambda at=at: self._unheard(self._claim(world, at), world, at)
                yield lambda at=at: self._dies(self._claim(world, at), at)
            elif run.status == "holds":
                yield lambda at=at: self._renew(world, at)
                yield lambda at=at: self._complete(world, at)
                yield lambda at=at: self._dies(self._complete(world, at), at)
                yield lambda at=at: self._fails(world, at)
                yield lambda at=at: self._dies(self._fails(world, at), at)
                yield lambda at=at: self._dies(world, at)
                if run.retries:
                    yield lambda at=at: self._sends_next(world, at)
            elif run.status == "sent":
                yield lambda at=at: self._hands_over(world, at)
                yield lambda at=at: self._dies(world, at)
        if self.key.told().get("l") == "runs":
            yield lambda: self._time_passes(world)

    # What a run does

    def _claim(self, world: World, at: int) -> World:
        run = world.runs[at]
        answer = self.key.store.claim("k", run.attempt, "fp", lease=LEASE, ttl=TTL)
        others = [one for one in world.runs if one is not run and one.live and one.status in ("holds", "dead", "sent")]
        if isinstance(answer, Claimed):
            assert world.done is None, "done is final"
            assert answer.fence > world.fence, "a fence grows"
            inherited = [one for one in others if one.owner in run.heir_of]
            assert inherited == others, "never two live owners"
            assert not [one for one in inherited if one.status == "holds"], "an heir of one that works"
            # Whose key was inherited has nothing any more, and is told so by each step.
            runs = tuple(replace(one, live=False) if one in inherited else one for one in world.runs)
            held = replace(run, status="holds", fence=answer.fence, live=True)
            return replace(world, runs=runs).with_run(at, held, fence=answer.fence)
        if isinstance(answer, Running):
            assert [one for one in world.runs if one.live], "a dead owner is taken over when its lease is over"
            return world.with_run(at, run.again())
        if isinstance(answer, Done):
            assert answer.result == (world.done or "").encode(), "what was recorded first stays"
        else:
            assert isinstance(answer, Ended), answer
        return world.with_run(at, replace(run, status="over"))

    def _unheard(self, after: World, before: World, at: int) -> World:
        """The answer is lost, and the message waits: who asks then has what this one was given."""
        heir = replace(before.runs[at].again(heir=True), lives=before.runs[at].lives - 1)
        if after.runs[at].status != "holds":
            return before.with_run(at, heir)
        left = replace(after.runs[at], status="dead", lives=0)
        return replace(after.with_run(at, heir), runs=(*after.with_run(at, heir).runs, left))

    def _renew(self, world: World, at: int) -> World:
        run = world.runs[at]
        if self.key.store.renew("k", run.attempt, run.fence, lease=LEASE, ttl=TTL):
            assert run.fence == world.fence, "only the last owner renews"
            assert world.done is None
            return world.with_run(at, replace(run, live=True))
        assert not run.live, "an owner whose lease runs is refused"
        return world

    def _complete(self, world: World, at: int) -> World:
        run = world.runs[at]
        result = f"by {run.run_id} {run.number}"
        answer = self.key.store.complete("k", run.attempt, "fp", run.fence, result.encode(), ttl=TTL)
        if isinstance(answer, Done) and answer.ours:
            assert world.done is None, "done is final"
            assert run.fence == world.fence, "only the last owner completes"
            return world.with_run(at, replace(run, status="over", live=False), done=result)
        assert not run.live, "an owner whose lease runs is refused"
        if isinstance(answer, Running):
            return world.with_run(at, run.again())
        if isinstance(answer, Done):
            assert answer.result == (world.done or "").encode()
        return world.with_run(at, replace(run, status="over"))

    def _fails(self, world: World, at: int) -> World:
        return self._release(world, at, Ended(failed=True))

    def _hands_over(self, world: World, at: int) -> World:
        return self._release(world, at, Ended(failed=False))

    def _release(self, world: World, at: int, ended: Ended) -> World:
        run = world.runs[at]
        if self.key.store.release("k", run.attempt, run.fence, ended=ended, ttl=TTL):
            assert world.done is None, "done is final"
            assert run.fence == world.fence, "only the last owner frees"
        elif run.status == "holds":
            assert not run.live, "an owner whose lease runs is refused"
        return world.with_run(at, replace(run, status="over", live=False))

    def _sends_next(self, world: World, at: int) -> World:
        """The next attempt is published, and the key still held."""
        run = world.runs[at]
        following = replace(run.again(heir=True), number=run.number + 1, retries=run.retries - 1)
        sent = world.with_run(at, replace(run, status="sent"))
        return replace(sent, runs=(*sent.runs, following))

    def _dies(self, world: World, at: int) -> World:
        """Its process is killed; its message is given out again, unless it was acknowledged."""
        run = world.runs[at]
        if run.status in ("over", "asks"):
            return world
        dead = world.with_run(at, replace(run, status="dead", lives=0))
        if not run.lives:
            return dead
        return replace(dead, runs=(*dead.runs, replace(run.again(), lives=run.lives - 1)))

    def _time_passes(self, world: World) -> World:
        self.key.end_lease()
        return replace(world, runs=tuple(replace(run, live=False) for run in world.runs))


#: Which runs there are, and the fewest states that they must lead to: a model in which nothing happens shows nothing.
WORLDS = {
    "two callers, each killed once": (300, Run("a", 0, "a"), Run("b", 0, "b")),
    "two deliveries of one attempt, each sends another": (
        400,
        Run("a", 0, "a", lives=0, retries=1),
        Run("a", 0, "a2", lives=0, retries=1),
    ),
    "two callers and a second delivery": (800, Run("a", 0, "a"), Run("b", 0, "b"), Run("a", 0, "a2", lives=0)),
}
LARGE_WORLDS = {
    "two callers, killed and tried again": (8000, Run("a", 0, "a", retries=1), Run("b", 0, "b")),
    "two deliveries, killed and tried again": (
        4000,
        Run("a", 0, "a", retries=1),
        Run("a", 0, "a2", lives=0, retries=1),
    ),
    "three callers, each killed once": (2000, Run("a", 0, "a"), Run("b", 0, "b"), Run("c", 0, "c")),
}
STORES = pytest.mark.parametrize("kind", ["memory", "redis", "sqlite"])


@pytest.fixture
def key(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Any:
    if kind == "memory":
        return MemoryKey()
    if kind == "redis":
        return RedisKey(request.getfixturevalue("database"))
    return SQLKey(f"sqlite:///{tmp_path}/keys.db" if kind == "sqlite" else request.getfixturevalue("postgres"))


def _explore(key: Any, fewest: int, *runs: Run) -> None:
    explorer = Explorer(key)
    explorer.explore(World(runs))
    assert len(explorer.seen) > fewest
    assert explorer.ends > 10


#: In SQL each step is several questions, and the rules are those of the store in memory: left to the long tests.
SHORT = [(kind, world) for kind in ("memory", "redis") for world in WORLDS]


@pytest.mark.parametrize(("kind", "world"), SHORT)
def test_every_order(key: Any, world: str) -> None:
    """Never two live owners, done is final, only the owner ends a key, and a dead one is taken over."""
    _explore(key, *WORLDS[world])


@pytest.mark.long
@pytest.mark.timeout(1800)
@STORES
@pytest.mark.parametrize("world", LARGE_WORLDS)
def test_every_order_of_more(key: Any, world: str) -> None:
    """The same, with more attempts, and with a third caller."""
    _explore(key, *LARGE_WORLDS[world])


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("kind", "world"), [(kind, world) for kind in ("sqlite", "postgresql") for world in WORLDS])
def test_every_order_on_other_servers(key: Any, world: str) -> None:
    """In SQL, where it takes longer."""
    _explore(key, *WORLDS[world])


def test_an_order_that_breaks_the_promise_is_found(monkeypatch: Any) -> None:
    """A rule that was ours once: a later attempt takes the key from any delivery of the one before, also from a living one."""
    rule = _record._refusal

    def once(record: Any, asks: Attempt, run: str, fingerprint: str, now: int) -> Any:
        later = record.state == "running" and record.run == run and asks.number > record.number
        return None if later else rule(record, asks, run, fingerprint, now)

    monkeypatch.setattr(_record, "_refusal", once)
    with pytest.raises(AssertionError, match="never two live owners"):
        _explore(MemoryKey(), *WORLDS["two deliveries of one attempt, each sends another"])
