"""What other systems shipped: each of these is a bug that somebody's idempotency had, on each of our stores."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Ignore, Reject

import celery_patterns as patterns
from celery_patterns import dead_letter, idempotent, retry
from celery_patterns.exceptions import InvalidKey, KeyMismatch
from celery_patterns.stores import MemoryStore, RedisStore, SQLStore
from celery_patterns.typing import Attempt, Claimed, Done, Running, Store

from .conftest import POSTGRES
from .here import run_here
from .servers import postgres_url
from .test_retry import published

DAY = timedelta(days=1)


@pytest.fixture(params=["memory", "redis", "sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "memory":
        return MemoryStore()
    if request.param == "redis":
        return RedisStore(request.getfixturevalue("database"))
    table = f"keys_{uuid.uuid4().hex}"
    url = f"sqlite:///{tmp_path}/keys.db"
    made = SQLStore(
        url if request.param == "sqlite" else postgres_url(int(os.environ[POSTGRES]), "postgres"), table=table
    )
    made.create_table()
    return made


@pytest.fixture
def app(database: str, store: Store) -> Iterator[Celery]:
    made = Celery("bugs", broker=database, backend="cache+memory://", set_as_current=False)
    patterns.use_patterns(made)
    patterns.use_store(made, store)
    with closing(made):
        yield made


def keyed(app: Celery, body: Callable[..., Any], *more: Any, name: str = "t", key: Any = "x", **how: Any) -> Any:
    return app.task(shared=False, name=name, patterns=(idempotent(key=key, ttl=DAY, **how), *more))(body)


def once() -> tuple[list[Any], Callable[..., Any]]:
    """A body, and what it was called with."""
    ran: list[Any] = []

    def work(x: Any, y: Any = None) -> str:
        ran.append((x, y))
        return f"run {len(ran)}"

    return ran, work


# The eight of the field


def test_a_living_record_without_an_end_of_its_own_is_nobodys_to_take(store: Store) -> None:
    """Field 1: a store took a live record for an orphan, as it held no deadline. Here there is none without a lease."""
    me, other = Attempt("a/0", 0, "me"), Attempt("b/0", 0, "other")
    assert isinstance(store.claim("k", me, "fp", lease=DAY, ttl=timedelta(microseconds=1)), Claimed)
    for _ in range(3):
        assert isinstance(store.claim("k", other, "fp", lease=DAY, ttl=DAY), Running)


def test_recovery_of_an_orphan_overwrites_nothing_that_lives_or_is_done(store: Store) -> None:
    """Field 2: many saw the same dead record, and each wrote over it, one over work that was done by then."""
    store.claim("k", Attempt("a/0", 0, "dead"), "fp", lease=timedelta(milliseconds=1), ttl=DAY)
    time.sleep(0.01)
    ready, answers = threading.Barrier(6), []

    def recover(number: int) -> None:
        me = Attempt(f"{number}/0", 0, f"me-{number}")
        ready.wait(20)
        held = store.claim("k", me, "fp", lease=DAY, ttl=DAY)
        answers.append(held)
        if isinstance(held, Claimed):
            answers.append(store.complete("k", me, "fp", held.fence, b"1", ttl=DAY))

    threads = [threading.Thread(target=recover, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sum(isinstance(one, Claimed) for one in answers) == 1
    assert store.claim("k", Attempt("z/0", 0, "z"), "fp", lease=DAY, ttl=DAY) == Done(b"1")


def test_a_duplicate_frees_nothing_that_it_never_had(app: Celery, store: Store) -> None:
    """Field 3: a duplicate that was refused deleted the lock of the run that held it."""
    told: list[Any] = []

    def work(x: int) -> str:
        if not told:
            told.append(run_here(app.tasks["t"], x).state)
            told.append(run_here(app.tasks["t"], x, task_id="third").state)
        return "done"

    task = keyed(app, work, when_running="raise")
    assert run_here(task, 1).value == "done"
    assert told == ["FAILURE", "FAILURE"]


def test_a_body_that_changes_its_arguments_keeps_its_key(app: Celery) -> None:
    """Field 4: the key was made again behind the body, from arguments that it had changed."""
    ran = []

    def work(x: dict[str, Any]) -> str:
        ran.append(x.pop("id"))
        x["other"] = 1
        return "done"

    task = keyed(app, work, key="x.id")
    for _ in range(2):
        assert run_here(task, {"id": "o-1"}).value == "done"
    assert ran == ["o-1"]


def test_finished_work_is_compared_before_its_result_is_given(app: Celery) -> None:
    """Field 5: a result was given to a call with other arguments; an update had dropped what they are compared by."""
    ran, work = once()
    task = keyed(app, work)
    assert run_here(task, 1, "a").value == "run 1"
    for _ in range(2):
        assert isinstance(run_here(task, 1, "b").value, KeyMismatch)
        assert run_here(task, 1, "a").value == "run 1"
    assert len(ran) == 1


def test_a_mismatch_names_the_key_and_no_value(app: Celery) -> None:
    """Field 6: people want to know what the key belongs to. The command line shows it; the error shows no argument."""
    _, work = once()
    task = keyed(app, work)
    run_here(task, 1, "a secret")
    said = str(run_here(task, 1, "another secret").value)
    assert "the key was used before with other arguments" in said
    assert "secret" not in said


@pytest.mark.parametrize("ends", [Ignore(), Reject(requeue=False), KeyError(), SystemError()])
def test_no_end_leaves_its_key_stuck(app: Celery, ends: Any) -> None:
    """Field 7, celery-singleton S4, celery-once O3: Ignore, Reject and failures left a lock for an hour, or for ever."""
    left = [ends]

    def work(x: int) -> str:
        if left:
            raise left.pop()
        return "done"

    task = keyed(app, work)
    run_here(task, 1)
    assert run_here(task, 1).value == "done"


def test_the_same_task_once_more_while_its_first_copy_lives(app: Celery) -> None:
    """Field 8, relier R3: whoever had the same task id took the lock over, and both ran."""
    told: list[Any] = []

    def work(x: int) -> str:
        if not told:
            told.append(run_here(app.tasks["t"], x, task_id="t-1", redelivered=True).state)
        return "done"

    task = keyed(app, work)
    assert run_here(task, 1, task_id="t-1").value == "done"
    assert told == ["IGNORED"]
    assert len(published(app)) == 1


def test_tasks_of_one_name_in_two_modules(app: Celery) -> None:
    """Field 8, relier R13: the key held the function's name alone, and one task returned the other one's result."""

    def same_name(x: int) -> str:
        return "of a"

    first = keyed(app, same_name, name="a.same_name")

    def same_name(x: int) -> str:  # type: ignore[no-redef]
        return "of b"

    second = keyed(app, same_name, name="b.same_name")
    assert [run_here(task, 1).value for task in (first, second)] == ["of a", "of b"]


def test_what_has_no_form_of_its_own_makes_no_key(app: Celery) -> None:
    """Field 8, relier R13b: a key was made of an object's address, and was another one in each process."""
    _, work = once()
    assert isinstance(run_here(keyed(app, work), object()).value, InvalidKey)


# The peers'


def test_a_holder_that_outlived_its_lock_deletes_nobodys(store: Store) -> None:
    """celery-once O1, celery-singleton S1, heimdall H2: it freed what another one had taken since."""
    late, heir = Attempt("a/0", 0, "late"), Attempt("b/0", 0, "heir")
    first = store.claim("k", late, "fp", lease=timedelta(milliseconds=1), ttl=DAY)
    time.sleep(0.01)
    assert isinstance(store.claim("k", heir, "fp", lease=DAY, ttl=DAY), Claimed)
    assert isinstance(first, Claimed)
    assert store.release("k", late, first.fence, ended=None, ttl=DAY) is False
    assert isinstance(store.claim("k", Attempt("c/0", 0, "c"), "fp", lease=DAY, ttl=DAY), Running)


def test_publishing_takes_no_key(app: Celery, store: Store) -> None:
    """celery-once O2: publishing failed, and the lock stayed for an hour. Here a sender claims nothing."""
    _, work = once()
    task = keyed(app, work)
    with pytest.raises(Exception, match="unknown"):
        task.apply_async((1,), serializer="unknown")
    assert run_here(task, 1).value == "run 1"


@pytest.mark.parametrize(
    ("one", "other"),
    [((1, None), ("1", None)), (("1_b-2", None), (1, 2)), ((True, None), (1, None)), (("a", "b"), ("a,b", None))],
)
def test_values_that_differ_are_other_keys(app: Celery, one: Any, other: Any) -> None:
    """celery-once O4: 1 and "1" were one key, and so were texts that looked like two arguments."""
    ran, work = once()
    task = keyed(app, work, key=("x", "y"))
    assert [run_here(task, *args).value for args in (one, other)] == ["run 1", "run 2"]
    assert len(ran) == 2


def test_by_position_or_by_name_it_is_one_key(app: Celery) -> None:
    """celery-singleton S6, relier R13b, jobtastic J4: ``f(7)`` and ``f(x=7)`` were two."""
    ran, work = once()
    task = keyed(app, work)
    assert run_here(task, 7).value == run_here(task, x=7).value == run_here(task, 7, y=None).value == "run 1"
    assert len(ran) == 1


@pytest.mark.parametrize(
    "value", [uuid.UUID(int=7), datetime(2026, 11, 30, tzinfo=timezone.utc), Decimal("9.90"), b"\0"]
)
def test_rich_values_make_keys_and_results(app: Celery, value: Any) -> None:
    """celery-singleton S5, relier R9: a UUID raised when it was sent, and a Decimal result when its work was done."""
    ran = []

    def work(x: Any) -> Any:
        ran.append(x)
        return {"got": x}

    task = keyed(app, work)
    assert run_here(task, value).value == run_here(task, value).value == {"got": value}
    assert len(ran) == 1


def test_a_retry_is_not_its_own_duplicate(app: Celery) -> None:
    """celery-singleton S2, heimdall H3, jobtastic J5: a retry found its own lock and was dropped, and the key stuck."""
    attempts = []

    def work(x: int) -> str:
        attempts.append(patterns.current_call().attempt)
        if len(attempts) < 3:
            raise ConnectionError
        return "done"

    task = keyed(app, work, retry(on=ConnectionError, attempts=5, wait=lambda _: 0))
    states = [run_here(task, 1, task_id="a", retries=number).state for number in range(3)]
    assert states == ["RETRY", "RETRY", "SUCCESS"]
    assert run_here(task, 1).value == "done"
    assert attempts == [1, 2, 3]


def test_a_failure_does_not_kill_later_calls(app: Celery) -> None:
    """relier R2: a failed task kept its lock, and every later call failed without having run, and without a letter."""
    left = [True]

    def work(x: int) -> str:
        if left and left.pop():
            raise ValueError
        return "done"

    task = keyed(app, work, dead_letter("dead", max_crashes=None))
    assert [run_here(task, 1).state, run_here(task, 1).value] == ["FAILURE", "done"]
    assert len(list(patterns.dead_letters(app, "dead"))) == 1


def test_a_duplicate_at_run_time_leaves_the_owner_its_key(app: Celery) -> None:
    """heimdall H1: a duplicate ended as a success with None, and deleted the running owner's lock: a third one ran beside."""
    told: list[Any] = []

    def work(x: int) -> str:
        if not told:
            told.extend([run_here(app.tasks["t"], x).state for _ in range(2)])
        return "done"

    task = keyed(app, work)
    assert run_here(task, 1).value == "done"
    assert told == ["IGNORED", "IGNORED"]
    assert run_here(task, 1).value == "done"


@pytest.mark.parametrize("result", [None, 0, "", [], {}, False])
def test_a_falsy_result_is_one(app: Celery, result: Any) -> None:
    """celery-once O6: a duplicate got None whatever the first run had returned, and None was taken for nothing."""
    ran = []

    def work(x: int) -> Any:
        ran.append(x)
        return result

    task = keyed(app, work)
    assert [run_here(task, 1).value for _ in range(3)] == [result] * 3
    assert ran == [1]


def test_a_zombies_result_is_not_the_keys(app: Celery, store: Store) -> None:
    """relier R8: the run that had stood still had no fence, so its result counted, and it removed the living run's record."""
    zombie, alive = Attempt("a/0", 0, "zombie"), Attempt("a/0", 0, "alive")
    first = store.claim("k", zombie, "fp", lease=timedelta(milliseconds=1), ttl=DAY)
    time.sleep(0.01)
    second = store.claim("k", alive, "fp", lease=DAY, ttl=DAY)
    assert isinstance(first, Claimed)
    assert isinstance(second, Claimed)
    assert second.fence > first.fence
    assert isinstance(store.complete("k", zombie, "fp", first.fence, b'"zombie"', ttl=DAY), Running)
    assert store.complete("k", alive, "fp", second.fence, b'"alive"', ttl=DAY) == Done(b'"alive"')


def test_a_body_longer_than_its_lease_keeps_its_key(app: Celery, store: Store) -> None:
    """relier R7: the lock was not renewed, and a duplicate ran beside a body that took longer."""
    told = []

    def work(x: int) -> str:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            told.append(run_here(app.tasks["t"], x).state if len(told) < 200 else "IGNORED")
            time.sleep(0.05)
        return "done"

    task = keyed(app, work, lease=timedelta(seconds=0.4))
    assert run_here(task, 1).value == "done"
    assert {*told} == {"IGNORED"}


def test_what_succeeded_is_no_letter_after_a_kill(app: Celery, store: Store) -> None:
    """relier R10: a worker killed behind its record was started again and again, and its finished task buried."""
    ran, work = once()
    task = keyed(app, work, dead_letter("dead"))
    first = run_here(task, 1, task_id="a")
    for _ in range(6):
        assert run_here(task, 1, task_id="a", redelivered=True).value == first.value
    assert list(patterns.dead_letters(app, "dead")) == []
    assert len(ran) == 1


def test_a_replaced_attempt_is_told_apart(store: Store) -> None:
    """relier R1: a replay carried tokens of the run before, and was taken for a stale duplicate of itself."""
    first = Attempt("a/0", 0, "first")
    held = store.claim("k", first, "fp", lease=DAY, ttl=DAY)
    assert isinstance(held, Claimed)
    store.release("k", first, held.fence, ended=None, ttl=DAY)
    again = store.claim("k", replace(first, owner="again"), "fp", lease=DAY, ttl=DAY)
    assert isinstance(again, Claimed)
    assert again.fence > held.fence
