"""The pattern ``idempotent``: keys, claims, duplicates, and the store's trouble."""

from __future__ import annotations

import contextlib
import inspect
import json
import threading
import time
import uuid
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery
from celery.exceptions import Ignore, WorkerTerminate
from hypothesis import given, settings
from hypothesis import strategies as st

import celery_patterns as patterns
from celery_patterns import dead_letter, dead_letters, idempotent
from celery_patterns._keys import Binder, canonical, digest
from celery_patterns._message import HEADER
from celery_patterns.exceptions import (
    AlreadyFailed,
    ConfigurationError,
    InProgress,
    InvalidKey,
    KeyMismatch,
    NotInTask,
    ResultNotKept,
    StoreUnavailable,
    TooManyCrashes,
)
from celery_patterns.stores import MemoryStore, RedisStore

from .here import run_here, soft_limit
from .servers import RedisServer
from .test_retry import published

DAY = timedelta(days=1)


class Switch(MemoryStore):
    """A store that a test can unplug, step by step."""

    def __init__(self) -> None:
        self.clock = 1_700_000_000.0
        super().__init__(lambda: self.clock)
        self.down: set[str] = set()
        self.steps: list[str] = []

    def _step(self, name: str) -> None:
        self.steps.append(name)
        if name in self.down:
            raise StoreUnavailable(f"unplugged: {name}")

    def claim(self, *args: Any, **kwargs: Any) -> Any:
        self._step("claim")
        return super().claim(*args, **kwargs)

    def complete(self, *args: Any, **kwargs: Any) -> Any:
        self._step("complete")
        return super().complete(*args, **kwargs)

    def release(self, *args: Any, **kwargs: Any) -> Any:
        self._step("release")
        return super().release(*args, **kwargs)


@pytest.fixture
def store() -> Switch:
    return Switch()


@pytest.fixture
def app(database: str, store: Switch) -> Any:
    made = Celery("idempotent", broker=database, backend="cache+memory://", set_as_current=False)
    patterns.use_patterns(made)
    patterns.use_store(made, store)
    patterns.use_strict_json(made)
    yield made
    made.close()


def keyed(app: Celery, body: Any, **options: Any) -> Any:
    body = idempotent(**{"key": "x", "ttl": DAY, **options})(dead_letter("dead")(body))
    app.finalize()  # the task is made here, and not by the first of many threads that look at it
    return app.task(shared=False, name=body.__name__)(body)


def test_a_duplicate_gets_the_first_runs_result(app: Celery) -> None:
    """Another message with the same key and arguments returns the stored result, and runs nothing."""
    runs = []

    def work(x: int, note: str = "n") -> dict[str, Any]:
        runs.append(x)
        return {"x": x, "at": datetime(2026, 1, 1), "cost": Decimal("9.90"), "pair": (1, 2)}

    task = keyed(app, work)
    first, second = run_here(task, 1), run_here(task, x=1, note="n")
    assert runs == [1]
    assert second.value == {**first.value, "pair": [1, 2]}
    assert type(second.value["cost"]) is Decimal


@pytest.mark.parametrize("result", [None, 0, "", [], {}, False])
def test_falsy_results_are_results(app: Celery, result: Any) -> None:
    """A duplicate of work that returned nothing gets nothing, and does not run."""
    runs = []

    def work(x: int) -> Any:
        runs.append(x)
        return result

    task = keyed(app, work)
    assert [run_here(task, 1).value for _ in range(2)] == [result, result]
    assert runs == [1]


def test_two_round_trips_and_none_at_publish(app: Celery, store: Switch) -> None:
    """A task that succeeds asks the store twice; sending one asks it nothing."""

    def work(x: int) -> int:
        return x

    task = keyed(app, work)
    task.delay(1)
    assert store.steps == []
    run_here(task, 1)
    assert store.steps == ["claim", "complete"]


def test_other_arguments_are_refused_unless_said_otherwise(app: Celery) -> None:
    """The same key with another amount is a mistake, and is not answered with the first one's result."""

    def strict(x: int, amount: int) -> int:
        return amount

    def loose(x: int, amount: int) -> int:
        return amount

    task, other = keyed(app, strict), keyed(app, loose, same=())
    assert run_here(task, 1, 10).value == 10
    assert isinstance(run_here(task, 1, 20).value, KeyMismatch)
    assert [run_here(other, 1, amount).value for amount in (10, 20)] == [10, 10]


def test_a_release_may_add_an_argument_with_a_default(app: Celery) -> None:
    """What was sent before, and comes again after the deploy, is the same call; a value that is said is another one."""

    def before(x: int, amount: int) -> int:
        return amount

    def after(x: int, amount: int, currency: str = "EUR", tags: Any = ()) -> int:
        return -1

    before.__name__ = "charge"
    assert run_here(keyed(app, before), 1, 10).value == 10
    del app.tasks["charge"]
    after.__name__ = "charge"
    task = keyed(app, after)
    assert run_here(task, 1, 10).value == 10
    assert run_here(task, 1, 10, currency="EUR").value == 10
    assert isinstance(run_here(task, 1, 10, currency="USD").value, KeyMismatch)
    assert isinstance(run_here(task, 1, 10, tags=["new"]).value, KeyMismatch)


def test_the_same_names_are_looked_at_with_their_defaults(app: Celery) -> None:
    """``same`` names an argument that has a default: left out and said, it is one value."""

    def work(x: int, amount: int = 10, note: str = "") -> int:
        return amount

    task = keyed(app, work, same=("amount",))
    assert [run_here(task, 1).value, run_here(task, 1, 10).value, run_here(task, 1, note="other").value] == [10, 10, 10]
    assert isinstance(run_here(task, 1, 20).value, KeyMismatch)


@pytest.mark.parametrize("given", ["", 7, {"a": 1}])
def test_a_key_in_the_header_that_is_none(app: Celery, given: Any) -> None:
    """Written by hand, it is looked at by the worker: an empty one would be shared by all that are."""

    def work(x: int) -> int:
        return x

    outcome = run_here(keyed(app, work), 1, headers={HEADER: {"key": given}})
    assert isinstance(outcome.value, InvalidKey)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"idempotency_key": ""}, "a str that is not empty, got an empty one"),
        ({"idempotency_key": 7}, "a str that is not empty, got a int"),
        ({"headers": {HEADER: "import-17"}, "idempotency_key": "a"}, "to be a mapping"),
    ],
)
def test_a_calls_own_key_that_is_none(app: Celery, options: Any, said: str) -> None:
    """Nothing is sent."""

    def work(x: int) -> int:
        return x

    with pytest.raises(ConfigurationError, match=said):
        keyed(app, work).apply_async((1,), **options)


def test_keys_of_every_form(app: Celery) -> None:
    """A name, several names, a function of the arguments, and one call's own."""
    runs: list[Any] = []

    def by_two(x: int, y: str, z: int = 0) -> None:
        runs.append((x, y))

    def by_function(order: dict[str, Any]) -> None:
        runs.append(order["id"])

    def by_call(x: int) -> None:
        runs.append(x)

    two = keyed(app, by_two, key=("x", "y"), same=("x",))
    function = keyed(app, by_function, key=lambda order: order["id"], same=())
    call = keyed(app, by_call, same=())
    for args in ((1, "a"), (1, "a", 5), (1, "b"), (2, "a")):
        run_here(two, *args)
    for order in ({"id": 1, "n": 1}, {"id": 1, "n": 2}, {"id": 2}):
        run_here(function, order)
    for x, key in ((1, "k"), (2, "k"), (1, None)):
        run_here(call, x, headers={HEADER: {"key": key}} if key else {})
    assert runs == [(1, "a"), (1, "b"), (2, "a"), 1, 2, 1, 1]


def test_one_calls_own_key_travels_with_the_message(app: Celery) -> None:
    """``.set(idempotency_key=…)`` and ``apply_async(idempotency_key=…)`` go into our header, and only where it helps."""

    def work(x: int) -> None: ...

    task = keyed(app, work)
    task.s(1).set(idempotency_key="a").delay()
    task.apply_async((1,), idempotency_key="b", headers={"mine": 1})
    first, second = published(app)
    assert (first["headers"][HEADER]["key"], second["headers"][HEADER]["key"]) == ("a", "b")
    assert second["headers"]["mine"] == 1
    with pytest.raises(ConfigurationError, match="expected idempotency_key to be a str"):
        task.apply_async((1,), idempotency_key=7)
    plain = app.task(shared=False, name="plain")(_plain)
    with pytest.raises(ConfigurationError, match="wears no idempotent"):
        plain.apply_async((1,), idempotency_key="a")


def _plain(x: int) -> int:
    return x


def test_same_named_tasks_in_two_modules_are_two_keys(app: Celery) -> None:
    """The key holds the task's full name: another task's result is never returned."""
    results = []
    for name in ("a.work", "b.work"):

        @app.task(shared=False, name=name)
        @idempotent(key="x", ttl=DAY)
        def work(x: int, name: str = name) -> str:
            return name

        results.append(run_here(work, 1).value)
    assert results == ["a.work", "b.work"]


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.text(),
        st.binary(),
        st.dates(),
        st.uuids(),
        st.decimals(allow_nan=False, allow_infinity=False),
        st.datetimes(),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)


def identity(value: Any) -> Any:
    """A value with its types, so that 1 and True differ."""
    if isinstance(value, dict):
        return ("dict", frozenset((name, identity(item)) for name, item in value.items()))
    if isinstance(value, list):
        return ("list", tuple(map(identity, value)))
    return (type(value).__name__, str(value) if isinstance(value, Decimal) else value)


@settings(max_examples=500, deadline=None)
@given(values, values)
def test_two_values_that_differ_never_share_a_key(left: Any, right: Any) -> None:
    """Equal in value and type, or another canonical form: both ways."""
    forms = [canonical(value, where="x", floats=False) for value in (left, right)]
    assert (forms[0] == forms[1]) == (identity(left) == identity(right))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (1, "1"),
        (1, True),
        (0, False),
        (None, "None"),
        ("a,b", ["a", "b"]),
        (["a", "b"], ["a,b"]),
        ({"a": 1}, {"a": "1"}),
        ("", None),
        (b"a", "a"),
        (date(2026, 1, 1), "2026-01-01"),
        ([], {}),
        ("s1:a", ["a"]),
        ([["a"], "b"], [["a", "b"]]),
    ],
)
def test_confusions_that_other_libraries_shipped(left: Any, right: Any) -> None:
    """1 and "1", a split tuple, a joined list: two keys."""
    assert canonical(left, where="x", floats=False) != canonical(right, where="x", floats=False)
    assert digest("t", "a", "b") != digest("t", "ab") != digest("ta", "b")


def test_a_float_in_a_key_is_refused_and_nan_everywhere(app: Celery) -> None:
    """A float key raises at ``.delay()`` and names the argument; in the worker it is a dead letter."""

    def work(x: Any, y: Any = 0) -> None: ...

    task = keyed(app, work)
    for bad, said in (
        (1.5, "work(): x is a float"),
        ({"a": [1.0]}, "x.a[0] is a float"),
        (object(), "x is a builtins.object"),
    ):
        with pytest.raises(InvalidKey) as caught:
            task.delay(bad)
        assert said in str(caught.value)
    assert published(app) == []
    assert isinstance(run_here(task, 1.5).value, InvalidKey)
    assert isinstance(run_here(task, 1, float("nan")).value, InvalidKey)
    assert run_here(task, 1, 1.5).state == "SUCCESS"
    assert len(list(dead_letters(app, "dead"))) == 2


def test_a_key_function_must_give_something(app: Celery) -> None:
    """None names no work."""

    def work(x: int) -> None: ...

    task = keyed(app, work, key=lambda x: None)
    with pytest.raises(InvalidKey, match="returned None"):
        task.delay(1)


def test_the_key_comes_from_the_arguments_as_received(app: Celery, store: Switch) -> None:
    """A body that changes its arguments does not change its key: the record is completed, and found again."""

    def work(x: list[int]) -> int:
        x.append(99)
        return len(x)

    task = keyed(app, work)
    assert [run_here(task, [1]).value for _ in range(2)] == [2, 2]


def test_a_running_duplicate_waits_by_a_copy(app: Celery) -> None:
    """It publishes the same message for the same attempt, with a countdown, and lets this one go."""
    inside: dict[str, Any] = {}

    def work(x: int) -> int:
        if not inside:
            inside["outcome"] = run_here(task, 1, task_id="second", retries=1, headers={"custom": "kept"})
        return x

    task = keyed(app, work, lease=timedelta(seconds=10))
    run_here(task, 1)
    assert inside["outcome"].state == "IGNORED"
    (copy,) = published(app)
    headers = copy["headers"]
    assert (headers["id"], headers["retries"], headers["custom"]) == ("second", 1, "kept")
    assert headers[HEADER]["waiting"] <= time.time()
    wait = datetime.fromisoformat(headers["eta"]).timestamp() - time.time()
    assert 0 < wait <= 3
    assert headers[HEADER]["looks"] == 1


@pytest.mark.parametrize(
    ("looks", "lease", "least", "most"),
    [(0, 3600, 0, 3), (3, 3600, 7, 17), (9, 3600, 29, 30.1), (9, 5, 4, 7), (0, 0.5, 0, 2)],
)
def test_a_duplicate_looks_again_soon_and_then_later(
    app: Celery, looks: int, lease: float, least: float, most: float
) -> None:
    """Within two seconds at first, twice as late each time, at most 30 s, and when the lease is over."""

    def work(x: int) -> Any:
        return run_here(task, 1, headers={HEADER: {"looks": looks}}).state

    task = keyed(app, work, lease=timedelta(seconds=lease))
    assert run_here(task, 1).value == "IGNORED"
    wait = datetime.fromisoformat(published(app)[0]["headers"]["eta"]).timestamp() - time.time()
    assert least < wait <= most


def test_waiting_is_bounded(app: Celery) -> None:
    """Past ``wait_within`` the duplicate fails with ``InProgress``, and is a dead letter."""

    def work(x: int) -> Any:
        return type(run_here(task, 1, headers={HEADER: {"waiting": time.time() - 61}}).value).__name__

    task = keyed(app, work, wait_within=timedelta(minutes=1))
    assert run_here(task, 1).value == "InProgress"
    assert [letter.error for letter in dead_letters(app, "dead")] == [f"{InProgress.__module__}.InProgress"]


def test_a_failure_frees_the_key(app: Celery) -> None:
    """The next call with the key runs; the failed attempt, delivered again, does not, and leaves no second letter."""
    runs = []

    def work(x: int) -> str:
        runs.append(x)
        if len(runs) == 1:
            raise ValueError(x)
        return "done"

    task = keyed(app, work)
    assert run_here(task, 1, task_id="a").state == "FAILURE"
    assert isinstance(run_here(task, 1, task_id="a", redelivered=True).value, AlreadyFailed)
    assert run_here(task, 1, task_id="b").value == "done"
    assert isinstance(run_here(task, 1, task_id="a", redelivered=True).value, AlreadyFailed)
    assert len(runs) == 2
    assert len(published(app, "dead")) == 1


def test_handing_over_frees_the_key(app: Celery) -> None:
    """``Ignore`` hands the work over: its redelivery is ignored, another call runs."""
    runs = []

    def work(x: int) -> None:
        runs.append(x)
        raise Ignore

    task = keyed(app, work)
    assert [run_here(task, 1, task_id="a").state, run_here(task, 1, task_id="a").state] == ["IGNORED", "IGNORED"]
    run_here(task, 1, task_id="b")
    assert runs == [1, 1]


def test_a_result_that_cannot_be_encoded_never_runs_again(app: Celery) -> None:
    """The body is done and its caller has the result; a later duplicate learns that it was not kept."""
    runs = []

    def work(x: int) -> Any:
        runs.append(x)
        return {1, 2}

    task = keyed(app, work)
    run_here(task, 1)
    assert isinstance(run_here(task, 1).value, ResultNotKept)
    assert runs == [1]


def test_a_dead_owner_is_counted_and_buried(app: Celery, store: Switch) -> None:
    """Three starts without an end, and the fourth is a letter; afterwards the key is new."""

    class Killed(WorkerTerminate): ...

    runs = []

    def work(x: int) -> None:
        runs.append(patterns.current_claim().fence)
        raise Killed

    task = keyed(app, work)
    for _ in range(3):
        with pytest.raises(Killed):
            run_here(task, 1, task_id="a", redelivered=True)
        store.clock += 31
    assert isinstance(run_here(task, 1, task_id="a", redelivered=True).value, TooManyCrashes)
    assert runs == sorted(set(runs))
    assert [letter.reason for letter in dead_letters(app, "dead")] == ["crashed"]
    with pytest.raises(Killed):
        run_here(task, 1, task_id="b")


def test_a_zombie_does_not_win(app: Celery, store: Switch, caplog: Any) -> None:
    """A run that outlived its lease and was taken over gives up its result, and returns its successor's."""
    turns = []

    def work(x: int) -> str:
        turns.append(x)
        if len(turns) == 1:
            store.clock += 31
            assert run_here(task, 1, task_id="heir").value == "heir"
            return "zombie"
        return "heir"

    task = keyed(app, work)
    assert run_here(task, 1, task_id="zombie").value == "heir"
    assert run_here(task, 1, task_id="later").value == "heir"
    assert "claim_lost" in caplog.text


def test_store_down_at_claim_waits_and_uses_no_attempt(app: Celery, store: Switch) -> None:
    """The message is sent again for the same attempt; past ``wait_within`` it is a dead letter."""

    def work(x: int) -> int:
        return x

    task = keyed(app, work)
    store.down = {"claim"}
    assert run_here(task, 1, retries=2).state == "IGNORED"
    headers = published(app)[0]["headers"]
    assert headers["retries"] == 2
    late = run_here(task, 1, headers={HEADER: {"waiting": time.time() - 7200}})
    assert isinstance(late.value, StoreUnavailable)
    assert len(list(dead_letters(app, "dead"))) == 1


def test_another_delivery_of_the_running_task_waits_as_long_as_it_runs(app: Celery) -> None:
    """To fail after ``wait_within`` would be to fail the task that runs."""

    def work(x: int) -> Any:
        waited = {HEADER: {"waiting": time.time() - 61}}
        return run_here(task, 1, task_id="t-1", headers=waited, redelivered=False).state

    task = keyed(app, work, wait_within=timedelta(minutes=1))
    assert run_here(task, 1, task_id="t-1").value == "IGNORED"
    assert list(dead_letters(app, "dead")) == []


def test_store_down_at_complete_is_tried_until_the_lease_is_over(app: Celery, store: Switch, caplog: Any) -> None:
    """The task succeeds anyway, with the loudest event; a store that comes back in time gets the record."""

    def work(x: int) -> int:
        store.down = {"complete"}
        if x == 2:
            threading.Timer(0.3, store.down.clear).start()
        return x

    task = keyed(app, work, lease=timedelta(seconds=1))
    assert run_here(task, 1).value == 1
    assert ("CRITICAL", True) in [(r.levelname, "claim_not_recorded" in r.getMessage()) for r in caplog.records]
    caplog.clear()
    assert run_here(task, 2).value == 2
    assert "claim_not_recorded" not in caplog.text
    assert run_here(task, 2).value == 2
    assert store.steps.count("complete") > 3


def test_store_down_at_release_leaves_the_lease_to_end_it(app: Celery, store: Switch, caplog: Any) -> None:
    """It is logged; the failure stands."""

    def work(x: int) -> None:
        store.down = {"release"}
        raise ValueError

    assert isinstance(run_here(keyed(app, work), 1).value, ValueError)
    assert "claim_not_released" in caplog.text


def test_the_running_claim_can_be_asked(app: Celery) -> None:
    """Key, fence and the time left, inside the body; an answer outside of one."""
    seen = []

    def work(x: int) -> None:
        claim = patterns.current_claim()
        seen.append((claim.key, claim.fence, claim.expires_in))

    task = keyed(app, work, lease=timedelta(seconds=60))
    run_here(task, 1)
    ((key, fence, left),) = seen
    assert (len(key), fence > 0) == (32, True)
    assert timedelta(seconds=55) < left <= timedelta(seconds=60)
    for ask in (patterns.current_call, patterns.current_claim):
        with pytest.raises(NotInTask):
            ask()


def test_a_missing_store_is_an_answer(database: str) -> None:
    """A keyed task on an app without a store fails with the cure; the worker does not start at all."""
    app = Celery("bare", broker=database, backend="cache+memory://", set_as_current=False)
    patterns.use_patterns(app)

    def work(x: int) -> None: ...

    task = keyed(app, work)
    assert "use_store(app" in str(run_here(task, 1).value)


def test_replace_hands_the_key_over(app: Celery) -> None:
    """A replacement of the same task and key keeps the id, has other arguments, and runs."""
    pages = []

    @app.task(shared=False, name="paged", bind=True)
    @idempotent(key="x", ttl=DAY)
    @dead_letter("dead")
    def paged(self: Any, x: int, page: int = 0) -> Any:
        pages.append(page)
        if page == 0:
            raise self.replace(self.s(x, page=1))
        return f"page {page}"

    assert run_here(paged, 1, task_id="a").state == "IGNORED"
    (message,) = published(app)
    assert (message["headers"]["id"], message["headers"]["replaced_task_nesting"]) == ("a", 1)
    assert run_here(paged, 1, page=1, task_id="a", nesting=1).value == "page 1"
    assert run_here(paged, 1, task_id="a", redelivered=True).state == "IGNORED"
    assert pages == [0, 1]


def test_a_replacement_that_is_faster_than_its_parents_release(app: Celery) -> None:
    """It has other arguments and finds the key held: it looks again, and does not fail."""
    inside = []

    @app.task(shared=False, name="fast")
    @idempotent(key="x", ttl=DAY)
    def fast(x: int, page: int = 0) -> None:
        if page == 0:
            inside.append(run_here(fast, x, page=1, task_id="a", nesting=1).state)
            inside.append(type(run_here(fast, x, page=1, task_id="b").value).__name__)

    run_here(fast, 1, task_id="a")
    assert inside == ["IGNORED", "KeyMismatch"]
    assert len(published(app)) == 1


def test_many_threads_one_key(database: str) -> None:
    """Twenty threads deliver one key at once on a real store: one runs, all others wait or return its result."""
    app = Celery("threads", broker=database, backend="cache+memory://", set_as_current=False)
    patterns.use_patterns(app)
    patterns.use_store(app, RedisStore(database, prefix=uuid.uuid4().hex))
    runs = []

    def work(x: int) -> int:
        runs.append(x)
        time.sleep(0.05)
        return x

    task = keyed(app, work)
    app.finalize()
    states: list[str] = []
    threads = [threading.Thread(target=lambda: states.append(run_here(task, 7).state)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runs == [7]
    assert states.count("SUCCESS") + states.count("IGNORED") == 20


def test_a_real_store_that_dies_mid_run(database: str) -> None:
    """The server is killed while the body runs: the task succeeds, nothing hangs beyond the lease."""
    server = RedisServer()
    server.start()
    try:
        app = Celery("dying", broker=database, backend="cache+memory://", set_as_current=False)
        patterns.use_patterns(app)
        patterns.use_store(app, RedisStore(server.url(), patience=timedelta(seconds=0.2)))

        def work(x: int) -> int:
            server.stop(9)
            return x

        task = keyed(app, work, lease=timedelta(seconds=1.5))
        begun = time.monotonic()
        assert run_here(task, 1).value == 1
        assert time.monotonic() - begun < 6
        assert run_here(task, 2).state == "IGNORED"
    finally:
        server.close()


def test_secrets_stay_out_of_store_keys(database: str) -> None:
    """The store sees digests: no argument, and no key in clear."""
    import redis

    app = Celery("secret", broker=database, backend="cache+memory://", set_as_current=False)
    patterns.use_patterns(app)
    patterns.use_store(app, database)

    def work(x: str) -> None: ...

    run_here(keyed(app, work), "hunter2")
    client = redis.Redis.from_url(database)
    everything = json.dumps([[str(key), str(client.hgetall(key))] for key in client.scan_iter("celery-patterns:*")])
    assert everything != "[]"
    assert "hunter2" not in everything


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(), max_size=4), st.dictionaries(st.sampled_from("abcde"), st.integers(), max_size=4))
@pytest.mark.parametrize(
    "body",
    [
        lambda a, b: 0,
        lambda a, b=2, *, c=3: 0,
        lambda a=1, b=2: 0,
        lambda *, a, b: 0,
        lambda a, *rest, b=5: 0,
        lambda a, **more: 0,
        lambda: 0,
        eval("lambda a, /, b=1: 0"),
    ],
)
def test_arguments_are_bound_as_python_binds_them(body: Any, args: list[int], kwargs: dict[str, int]) -> None:
    """Whatever the signature and the call: the same arguments, or the same refusal."""
    signature = inspect.signature(body)
    try:
        exact = signature.bind(*args, **kwargs)
    except TypeError as refused:
        with pytest.raises(TypeError) as caught:
            Binder(signature)(tuple(args), kwargs)
        assert str(caught.value) == str(refused)
        return
    exact.apply_defaults()
    assert Binder(signature)(tuple(args), kwargs) == dict(exact.arguments)


def test_a_key_function_that_fails_is_named_with_its_task(app: Celery) -> None:
    """Its error is the cause; the arguments stay out of the text."""

    @app.task(shared=False, name="t")
    @idempotent(key=lambda order: order["id"], ttl=timedelta(days=1))
    def t(order: dict[str, Any]) -> None: ...

    with pytest.raises(InvalidKey, match="the key function of t raised KeyError") as caught:
        t.delay({"secret": "hunter2"})
    assert isinstance(caught.value.__cause__, KeyError)
    assert "hunter2" not in str(caught.value)


def test_a_key_that_contains_itself_is_refused() -> None:
    """And an integer that Python does not write: named, not a crash of the interpreter."""
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InvalidKey, match="x is nested too deeply, or contains itself"):
        canonical(endless, where="x", floats=False)
    with pytest.raises(InvalidKey, match=r"x\[0\].a is an int of thousands of digits"):
        canonical([{"a": 10**5000}], where="x", floats=False)


def test_a_soft_limit_after_the_work_does_not_undo_it(app: Celery, store: Switch, caplog: Any) -> None:
    """The store is away at the completion, and the limit ends the wait for it: the task succeeds, loudly unrecorded."""
    caplog.set_level("INFO", "celery_patterns")

    def t(x: str) -> str:
        store.down = {"complete"}
        return f"done {x}"

    with soft_limit(0.7):
        outcome = run_here(keyed(app, t), "o-1")
    assert (outcome.state, outcome.value) == ("SUCCESS", "done o-1")
    (told,) = [record.msg for record in caplog.records if getattr(record.msg, "name", "") == "claim_not_recorded"]
    assert told.fields["reason"] == "unplugged: complete"


def test_what_asked_for_another_attempt_is_not_done(app: Celery) -> None:
    """``self.retry(throw=False)`` and a return: the next attempt gets the key and runs, as it does without one."""
    runs = []

    @app.task(shared=False, name="t", bind=True)
    @idempotent(key="order", ttl=DAY)
    def t(self: Any, order: str) -> str:
        runs.append(self.request.retries)
        if not self.request.retries:
            self.retry(countdown=0, throw=False)
        return f"run {self.request.retries}"

    assert run_here(t, "o-1", task_id="id-1").value == "run 0"
    assert [message["headers"]["retries"] for message in published(app)] == [1]
    assert run_here(t, "o-1", task_id="id-1", retries=1).value == "run 1"
    assert runs == [0, 1]
    assert run_here(t, "o-1").value == "run 1"


def test_why_the_store_cannot_be_had_is_told(database: str, caplog: Any) -> None:
    """A store that answers with a refusal: the log says what the server said, and nothing of the arguments."""
    caplog.set_level("INFO", "celery_patterns")
    made = Celery("refused", broker=database, backend="cache+memory://", set_as_current=False)
    patterns.use_patterns(made)
    patterns.use_store(made, RedisStore(database.rpartition("/")[0] + "/99999", patience=timedelta(0)))
    with contextlib.closing(made):
        assert run_here(keyed(made, lambda_like), "hunter2").state == "IGNORED"
    (told,) = [record.msg for record in caplog.records if getattr(record.msg, "name", "") == "claim_postponed"]
    assert "DB index is out of range" in told.fields["reason"]
    assert "hunter2" not in str(told)


def lambda_like(x: str) -> None: ...


def test_a_sender_that_does_not_know_the_task_writes_the_header(app: Celery) -> None:
    """As the docs say: ``send_task`` with the header is the same call as ``idempotency_key`` on the task."""

    def t(x: str) -> str:
        return patterns.current_claim().key

    task = keyed(app, t)
    app.send_task("t", ("a",), headers={"celery_patterns": {"key": "import-17"}})
    task.apply_async(("a",), idempotency_key="import-17")
    keys = {run_here(task, "a", headers=message["headers"]).value for message in published(app)}
    assert len(keys) == 1
    assert keys != {run_here(task, "a").value}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["claim", "complete", "release"])
def test_a_soft_limit_in_a_step_leaves_no_key_held(app: Celery, step: str, when: str) -> None:
    """It strikes while the store is asked, before or after the store has heard: the next call need not wait."""

    class Struck(MemoryStore):
        strikes = 1

        def _strike(self, name: str, method: Any, *args: Any, **kwargs: Any) -> Any:
            now = name == step and self.strikes
            if now and when == "before":
                self.strikes = 0
                raise SoftTimeLimitExceeded
            answer = method(*args, **kwargs)
            if now:
                self.strikes = 0
                raise SoftTimeLimitExceeded
            return answer

        def claim(self, *args: Any, **kwargs: Any) -> Any:
            return self._strike("claim", super().claim, *args, **kwargs)

        def complete(self, *args: Any, **kwargs: Any) -> Any:
            return self._strike("complete", super().complete, *args, **kwargs)

        def release(self, *args: Any, **kwargs: Any) -> Any:
            return self._strike("release", super().release, *args, **kwargs)

    patterns.use_store(app, Struck())
    fails = [step == "release"]
    runs = []

    def t(x: str) -> str:
        runs.append(x)
        if fails and fails.pop():
            raise ValueError("the first time")
        return f"done {x}"

    task = keyed(app, t)
    first = run_here(task, "o-1")
    if step == "complete":
        assert (first.state, first.value) == ("SUCCESS", "done o-1")
    else:
        assert first.state == "FAILURE"
        assert isinstance(first.value, SoftTimeLimitExceeded if step == "claim" else ValueError)
    assert run_here(task, "o-1").value == "done o-1"
    assert len(runs) == (2 if step == "release" else 1)
