"""What a duplicate does that finds its key's work running: it waits, or it fails at once."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
import redis
from celery import Celery

import celery_patterns as patterns
from celery_patterns import dead_letters, idempotent, retry
from celery_patterns._message import HEADER
from celery_patterns.exceptions import ClaimLost, ConfigurationError, InProgress, KeyMismatch

from .harness import Floor
from .here import run_here
from .test_idempotent import Switch, keyed
from .test_retry import published

DAY = timedelta(days=1)


@pytest.fixture
def store() -> Switch:
    return Switch()


@pytest.fixture
def app(database: str, store: Switch) -> Any:
    made = Celery("running", broker=database, backend="cache+memory://", set_as_current=False)
    patterns.use_patterns(made)
    patterns.use_store(made, store)
    yield made
    made.close()


def held(app: Celery, inside: Any, **options: Any) -> Any:
    """A task that fails its duplicates at once, and whose first run does this."""
    runs: list[int] = []

    def work(x: int, page: int = 0) -> Any:
        runs.append(x)
        return inside(task) if len(runs) == 1 else f"run {len(runs)}"

    task = keyed(app, work, **{"when_running": "raise", **options})
    return task


@pytest.mark.parametrize("wrong", ["stop", None, True])
def test_when_running_is_one_of_two_words(wrong: Any) -> None:
    """Anything else is refused when the pattern is built."""
    with pytest.raises(ConfigurationError) as caught:
        idempotent(key="x", ttl=DAY, when_running=wrong)
    assert str(caught.value) == f'expected when_running to be "wait" or "raise", got {wrong!r}'


def test_a_duplicate_of_running_work_fails_at_once(app: Celery) -> None:
    """With ``InProgress`` and a letter, as after ``wait_within``; nothing waits, and the work that runs is not touched."""
    duplicates = []

    def inside(task: Any) -> str:
        duplicates.append(run_here(task, 1))
        return "done"

    assert run_here(held(app, inside), 1).value == "done"
    (duplicate,) = duplicates
    assert duplicate.state == "FAILURE"
    assert repr(duplicate.value) == "InProgress('work: another run of the same key is not over')"
    assert [letter.error for letter in dead_letters(app, "dead")] == [f"{InProgress.__module__}.InProgress"]
    assert published(app) == []


def test_a_duplicate_of_work_that_is_done_gets_its_result(app: Celery) -> None:
    """And one with other arguments is a mistake, as ever."""
    task = held(app, lambda task: type(run_here(task, 1, page=1).value).__name__)
    assert run_here(task, 1).value == KeyMismatch.__name__
    assert run_here(task, 1).value == KeyMismatch.__name__


def test_no_retry_tries_it_again(app: Celery) -> None:
    """Not a ``retry`` that names it either: that one is about what the body raises, which is not run."""
    seen = []

    @app.task(shared=False, name="t", patterns=(retry(on=InProgress, attempts=5),))
    @idempotent(key="x", ttl=DAY, when_running="raise")
    def t(x: int) -> None:
        seen.append(run_here(t, 1))

    run_here(t, 1)
    assert [type(one.value) for one in seen] == [InProgress]
    assert published(app) == []


def test_another_delivery_of_the_running_task_waits(app: Celery) -> None:
    """To fail would be to fail the task that runs. Its copy goes on waiting, and gets the result."""
    task = held(app, lambda task: run_here(task, 1, task_id="t-1", redelivered=True).state)
    assert run_here(task, 1, task_id="t-1").value == "IGNORED"
    (copy,) = published(app)
    assert run_here(task, 1, task_id="t-1", headers=copy["headers"]).value == "IGNORED"
    assert list(dead_letters(app, "dead")) == []


def test_a_delivery_that_has_waited_for_its_own_run_waits_for_another_one(app: Celery, store: Switch) -> None:
    """Its worker was killed, and another call took the key over first: the task is no duplicate, and does not fail."""
    inside: list[Any] = []

    def killed(task: Any) -> None:
        inside.append(run_here(task, 1, task_id="t-1", redelivered=True).state)
        store.clock += 31  # nobody renewed it
        heir = keyed_again(app, inside, published(app)[0]["headers"])
        inside.append(run_here(heir, 1, task_id="other").state)

    task = held(app, killed)
    run_here(task, 1, task_id="t-1")
    assert inside == ["IGNORED", "IGNORED", "InProgress", "SUCCESS"]
    assert len(published(app)) >= 2


def keyed_again(app: Celery, inside: list[Any], headers: Any) -> Any:
    """The same task on the next worker: while it runs, the copy comes back, and so does another call."""
    del app.tasks["work"]

    def work(x: int, page: int = 0) -> str:
        inside.append(run_here(task, 1, task_id="t-1", headers=headers).state)
        inside.append(type(run_here(task, 1).value).__name__)
        return "heir"

    task = keyed(app, work, when_running="raise")
    return task


@pytest.mark.parametrize("how", ["returns", "gives up"])
def test_a_run_that_lost_its_key_waits_for_the_other_one(app: Celery, store: Switch, how: str) -> None:
    """It is no duplicate: its message waits, and so does its copy, and the task returns the other run's result."""
    states: list[str] = []

    def loses(task: Any) -> str:
        store.clock += 31
        assert store.claim(key_of(task), other("o"), task_seen(task), lease=DAY, ttl=DAY)
        if how == "gives up":
            raise ClaimLost("another run has it")
        return "zombie"

    task = held(app, loses)
    states.append(run_here(task, 1, task_id="t-1").state)
    headers = published(app)[-1]["headers"]
    states.append(run_here(task, 1, task_id="t-1", headers=headers).state)
    assert states == ["IGNORED", "IGNORED"]
    assert isinstance(run_here(task, 1).value, InProgress)
    assert len(published(app)) == 2


def key_of(task: Any) -> str:
    pattern = next(one for one in task.plan.patterns if isinstance(one, idempotent))
    return f"work:{pattern.key_of('work', {'x': 1}, (1,), {})}"


def task_seen(task: Any) -> str:
    pattern = next(one for one in task.plan.patterns if isinstance(one, idempotent))
    return pattern.fingerprint({"x": 1})


def other(owner: str) -> Any:
    return patterns.typing.Attempt("other/0", 0, owner)


def test_a_message_that_waited_for_the_store_is_a_duplicate_still(app: Celery, store: Switch) -> None:
    """It has had no run of its own: it fails at once when it comes back to running work."""

    def inside(task: Any) -> str:
        store.down = {"claim"}
        assert run_here(task, 1, task_id="t-2").state == "IGNORED"
        store.down = set()
        headers = published(app)[0]["headers"]
        return type(run_here(task, 1, task_id="t-2", headers=headers).value).__name__

    assert run_here(held(app, inside), 1).value == InProgress.__name__


def test_a_later_attempt_is_a_new_question(app: Celery) -> None:
    """While it waited for its turn the key was free, and another call has it: it does not inherit its copies' patience."""

    @app.task(shared=False, name="t", bind=True)
    @idempotent(key="x", ttl=DAY, when_running="raise")
    @retry(on=ConnectionError, attempts=3)
    def t(self: Any, x: int) -> None:
        if patterns.current_call().id == "a":
            raise ConnectionError
        late = published(app)[0]["headers"]
        assert isinstance(run_here(t, 1, task_id="a", retries=1, headers=late).value, InProgress)

    assert run_here(t, 1, task_id="a", headers={HEADER: {"patient": True, "looks": 2}}).state == "RETRY"
    assert run_here(t, 1, task_id="b").state == "SUCCESS"


def test_a_replacement_that_is_faster_than_its_parents_release_waits(app: Celery) -> None:
    """replace() publishes it inside the body that holds the key; a few looks later the key counts as another's."""
    task = held(
        app,
        lambda task: [
            type(run_here(task, 1, task_id="a", nesting=1, headers={HEADER: {"looks": looks}}).value).__name__
            for looks in (0, 2, 3)
        ],
    )
    assert run_here(task, 1, task_id="a").value[-1] == InProgress.__name__
    assert len(published(app)) == 2


def test_a_duplicate_on_a_worker_fails_at_once(shop: Floor) -> None:
    """Its caller learns it while the first one runs; that one succeeds, and a later duplicate gets its result."""
    worker = shop.worker()
    task, order = shop.task("placed"), {"tenant": "a", "id": 1}
    first = task.delay(order, flag="go")
    shop.wait(lambda: shop.traces.count("placed") == 1, what="the start")
    begun = time.monotonic()
    with pytest.raises(Exception, match="another run of the same key is not over") as caught:
        task.delay(order).get(timeout=20)
    assert time.monotonic() - begun < 10
    assert type(caught.value).__name__ == "InProgress"
    assert task.delay({"tenant": "b", "id": 1}).get(timeout=20) == "b 1"
    shop.traces.set("go")
    assert first.get(timeout=20) == "a 1"
    assert task.delay(order).get(timeout=20) == "a 1"
    assert [letter.error.rpartition(".")[2] for letter in shop.letters()] == ["InProgress"]
    assert "duplicate_waiting" not in worker.text()
    assert shop.traces.all("placed") == [["a", 1], ["b", 1]]


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_a_message_that_is_given_out_again_waits_for_its_own_run(shop: Floor) -> None:
    """Longer than the visibility timeout: the copy does not fail the task that runs, and both end as one success."""
    workers = [shop.worker(concurrency=2, FLOOR_VISIBILITY="2") for _ in range(2)]
    sent = shop.task("placed").delay({"tenant": "a", "id": 1}, flag="go")
    # Before kombu 5.6 the sweep that gives it out comes every 100 s, whatever is set.
    shop.wait(lambda: any("duplicate_waiting" in one.text() for one in workers), 150, "the copy")
    shop.traces.set("go")
    assert sent.get(timeout=30) == "a 1"
    client = redis.Redis.from_url(shop.environment["FLOOR_BROKER"])
    shop.wait(lambda: not client.hlen("unacked"), 150, "the copy's end")
    assert (sent.state, shop.traces.count("placed"), shop.letters()) == ("SUCCESS", 1, [])


def test_a_killed_holders_message_runs_again(shop: Floor) -> None:
    """Redelivered while the dead run's lease lasts, it waits, runs, and is not failed."""
    doomed = shop.worker(FLOOR_VISIBILITY="2")
    sent = shop.task("placed_shortly").delay({"tenant": "a", "id": 1}, flag="go")
    shop.wait(lambda: shop.traces.count("placed") == 1, what="the start")
    doomed.kill()
    shop.traces.set("go")
    shop.worker(FLOOR_VISIBILITY="2")
    assert sent.get(timeout=150) == "a 1"
    assert (shop.traces.count("placed"), shop.letters()) == (2, [])
