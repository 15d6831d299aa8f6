"""Patterns as values: what they refuse, how they merge, and that the way they are worn makes no difference."""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import subprocess
import sys
import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pydantic
import pytest
import redis
import tenacity
from celery import Celery, Task, _state, chain, chord, group, shared_task

import celery_patterns as patterns
from celery_patterns import dead_letter, idempotent, logged, retry, without
from celery_patterns._edition import edition_of
from celery_patterns._task import CHECK
from celery_patterns.exceptions import ConfigurationError, NotInTask
from celery_patterns.stores import MemoryStore
from celery_patterns.worker import CheckPatterns

from .here import run_here

DAY = timedelta(days=1)


@pytest.fixture
def app(database: str) -> Any:
    made = Celery("plan", broker=database, backend=database, set_as_current=False)
    patterns.use_patterns(made)
    patterns.use_store(made, MemoryStore())
    yield made
    made.close()


def four() -> tuple[Any, ...]:
    return (
        retry(on=ConnectionError, attempts=3, wait=tenacity.wait_none()),
        idempotent(key="order", ttl=DAY),
        dead_letter("plan.dead"),
        logged("order"),
    )


def _trace_of(task: Any, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What happened to one message, its redelivery and a failing one."""
    caplog.clear()
    run_here(task, "o-1", task_id="a")
    run_here(task, "o-1", task_id="a", redelivered=True)
    run_here(task, "flaky", task_id="b")
    run_here(task, "flaky", task_id="b", retries=1)
    run_here(task, "bad", task_id="c")
    return [record.getMessage().split(" ")[0] for record in caplog.records if record.name == "celery_patterns"]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_line_order_makes_no_difference(app: Celery, caplog: pytest.LogCaptureFixture, order: tuple[int, ...]) -> None:
    """Decorators in any of their 24 orders give the same events in the same order."""
    caplog.set_level("INFO", "celery_patterns")

    def body(order: str) -> str:
        call = patterns.current_call()
        if order == "flaky" and call.attempt == 1:
            raise ConnectionError
        if order == "bad":
            raise ValueError(order)
        return f"done {order}"

    for index in order:
        body = four()[index](body)
    task = app.task(shared=False, name=f"task{order}")(body)
    assert _trace_of(task, caplog) == [
        "task_succeeded",
        "duplicate_returned",
        "task_succeeded",
        "retry_scheduled",
        "task_retried",
        "task_succeeded",
        "dead_lettered",
        "task_failed",
    ]


def test_above_below_and_on_a_base_class_are_the_same(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    """The same values below ``@app.task``, above it, in ``patterns=`` and on a base class behave identically."""
    caplog.set_level("INFO", "celery_patterns")

    def body(order: str) -> str:
        if order == "flaky" and patterns.current_call().attempt == 1:
            raise ConnectionError
        if order == "bad":
            raise ValueError(order)
        return f"done {order}"

    def fresh() -> Any:
        return _copy(body)

    class Family(patterns.PatternTask):
        patterns = four()

    below = app.task(shared=False, name="below")(functools.reduce(lambda f, p: p(f), four(), fresh()))
    above = functools.reduce(lambda t, p: p(t), four(), app.task(shared=False, name="above")(fresh()))
    option = app.task(shared=False, name="option", patterns=four())(fresh())
    family = app.task(shared=False, name="family", base=Family)(fresh())
    traces = [_trace_of(task, caplog) for task in (below, above, option, family)]
    assert traces[1:] == traces[:1] * 3
    assert [task.acks_late for task in (below, above, option, family)] == [True] * 4
    assert [task.max_retries for task in (below, above, option, family)] == [2] * 4


def _copy(function: Any) -> Any:
    @functools.wraps(function)
    def copied(order: str) -> str:
        return function(order)

    return copied


def test_a_tasks_own_pattern_replaces_its_bases_kind_by_kind(app: Celery) -> None:
    """A task's own pattern wins over its base's of the same kind, and the rest is inherited."""

    class Family(patterns.PatternTask):
        patterns = four()

    task = app.task(shared=False, base=Family, patterns=(retry(on=ValueError, attempts=7), without(idempotent)))(
        named(lambda order: order),
    )
    worn = {pattern.kind(): pattern for pattern in task.plan.patterns}
    assert worn["retry"].attempts == 7
    assert sorted(worn) == ["dead_letter", "logged", "retry"]


def test_without_in_a_subclass_reaches_its_tasks(app: Celery) -> None:
    """A base class may switch its parent's pattern off for all of its tasks."""

    class Family(patterns.PatternTask):
        patterns = four()

    class Plain(Family):
        patterns = (without(retry, idempotent, dead_letter, logged),)

    task = app.task(shared=False, base=Plain, name="plain_again")(named(lambda order: order))
    assert task.plan is None
    assert not task.acks_late
    assert run_here(task, "o").value == "o"


def test_a_task_that_wears_nothing_is_celerys_own(app: Celery) -> None:
    """Without a pattern there is no wrapper: the body is called as Celery calls it."""

    def body(x: int) -> int:
        return x

    task = app.task(shared=False, name="bare")(body)
    assert task.run is body
    assert app.tasks["celery.map"].plan is None


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: retry(on=OSError, attempts=0), "expected attempts to be at least 1, the first included, got 0"),
        (lambda: retry(on=OSError, attempts=True), "expected attempts to be an int, got True"),
        (lambda: retry(on=OSError, within=60), "expected within to be a timedelta"),
        (lambda: retry(on=OSError, within=timedelta(0)), "expected within to be longer than nothing"),
        (lambda: retry(on=OSError, wait=10), "expected wait to be one of tenacity's"),
        (lambda: retry(on=OSError, stop=3), "expected stop to be one of tenacity's"),
        (lambda: retry(on=()), "at least one exception type"),
        (lambda: retry(on=SystemExit), "subclasses of Exception"),
        (lambda: retry(on="OSError"), "expected on to be exception types or a predicate"),
        (lambda: retry(on=tenacity.retry_if_result(bool)), "looks at results"),
        (lambda: idempotent(key="a", ttl=3600), "expected ttl to be a timedelta"),
        (lambda: idempotent(key="a", ttl=timedelta(0)), "expected ttl to be longer than nothing"),
        (lambda: idempotent(key="a", ttl=DAY, lease=300), "expected lease to be a timedelta"),
        (lambda: idempotent(key=(), ttl=DAY), "expected key to name at least one argument"),
        (lambda: idempotent(key=7, ttl=DAY), "expected key to be an argument's name"),
        (lambda: idempotent(key="a", ttl=DAY, same="a"), "expected same to be a tuple"),
        (lambda: dead_letter(""), "expected queue to be a name"),
        (lambda: dead_letter(max_crashes=0), "expected max_crashes to be at least 1"),
        (lambda: logged(7), "expected logged() to take names"),
        (lambda: without(retry(on=OSError)), "without() takes pattern classes"),
        (lambda: without(), "names nothing"),
        (lambda: retry(on=OSError)(7), "expected a function or a task"),
    ],
)
def test_a_wrong_argument_is_refused_when_the_pattern_is_built(build: Any, said: str) -> None:
    """A pattern checks itself when it is built, and says what was expected and what came."""
    with pytest.raises(ConfigurationError) as caught:
        build()
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "build", [lambda: retry(), lambda: retry(OSError), lambda: idempotent(key="a"), lambda: idempotent("a", ttl=DAY)]
)
def test_dangerous_arguments_have_no_default_and_no_position(build: Any) -> None:
    """``on``, ``key`` and ``ttl`` must be said, and by name."""
    with pytest.raises(TypeError):
        build()


def test_patterns_are_frozen_values() -> None:
    """Equal arguments make equal patterns, and none can be changed."""
    assert retry(on=OSError, attempts=2) == retry(on=(OSError,), attempts=2)
    with pytest.raises(AttributeError):
        retry(on=OSError).attempts = 3  # type: ignore[misc]


def named(function: Any) -> Any:
    """Celery cannot make a task of a lambda: its name is no identifier."""
    function.__name__ = "named"
    return function


class Order(pydantic.BaseModel):
    id: str


async def _async_body(order: str) -> None: ...


def _generator_body(order: str) -> Any:
    yield order


class Misnamed(patterns.PatternTask):
    """One of its patterns is worn, one is a constant that others may take, and one is a mistake."""

    abstract = True
    OTHER = retry(on=KeyError)
    policy = logged()
    retry = retry(on=OSError)
    patterns = (policy,)


class Misspelt(patterns.PatternTask):
    """Its patterns are called otherwise."""

    abstract = True
    paterns = (retry(on=OSError),)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda app: app.task(shared=False, name="t", base=Misspelt)(named(lambda: 0)),
            "t has retry(…) as its paterns, where it does nothing; expected it in patterns=(…,)",
        ),
        (
            lambda app: app.task(shared=False, name="t", cls=patterns.ReliableTask)(named(lambda: 0)),
            "t has ReliableTask as its cls, where it does nothing; expected base=ReliableTask",
        ),
        (
            lambda app: app.task(shared=False, name="t", bind=True)(logged("order")(named(lambda order, amount: 0))),
            "but t() takes (amount); bind=True takes order, which stands first, for the task itself",
        ),
        (
            lambda app: app.task(shared=False, name="t")(
                idempotent(key="oder", ttl=DAY)(named(lambda order, amount: 0))
            ),
            "key names 'oder', but t() takes (order, amount)",
        ),
        (
            lambda app: app.task(shared=False, name="t")(
                idempotent(key="order", ttl=DAY, same=("amuont",))(named(lambda order: 0))
            ),
            "same names 'amuont', but t() takes (order)",
        ),
        (
            lambda app: app.task(shared=False, name="t")(logged("amuont")(named(lambda order: 0))),
            "logged() names 'amuont'",
        ),
        (lambda app: app.task(shared=False, name="t")(logged()(_async_body)), "is an async def"),
        (lambda app: app.task(shared=False, name="t")(logged()(_generator_body)), "is a generator, whose body"),
        (
            lambda app: app.task(shared=False, name="t", dead_letter=dead_letter("x"))(named(lambda: 0)),
            "t has dead_letter(…) as its dead_letter, where it does nothing; expected it in patterns=(…,)",
        ),
        (
            lambda app: app.task(shared=False, name="t", pattern=[logged()], patterns=(retry(on=OSError),))(
                named(lambda: 0)
            ),
            "t has logged(…) as its pattern",
        ),
        (lambda app: app.task(shared=False, name="t", base=Misnamed)(named(lambda: 0)), "t has retry(…) as its retry"),
        (
            lambda app: app.task(shared=False, name="t", autoretry_for=(OSError,))(retry(on=OSError)(named(lambda: 0))),
            "autoretry_for",
        ),
        (
            lambda app: app.task(shared=False, name="t")(logged()(tenacity.retry(named(lambda: 0)))),
            "tenacity.retry, which sleeps",
        ),
        (
            lambda app: app.task(shared=False, name="t", max_retries=9)(retry(on=OSError)(named(lambda o: 0))),
            "says max_retries=9",
        ),
        (
            lambda app: app.task(shared=False, name="t")(
                retry(on=OSError, within=timedelta(days=2))(idempotent(key="o", ttl=DAY)(named(lambda o: 0)))
            ),
            "may be retried within 2 days",
        ),
        (lambda app: app.task(shared=False, name="t")(logged()(logged()(named(lambda o: 0)))), "wears logged twice"),
        (
            lambda app: app.task(shared=False, name="t", patterns=logged())(named(lambda o: 0)),
            "single value; expected a tuple",
        ),
        (
            lambda app: app.task(shared=False, name="t", patterns=("retry",))(named(lambda o: 0)),
            "expected values such as",
        ),
    ],
)
def test_a_task_that_cannot_work_is_refused_when_it_is_created(app: Celery, make: Any, said: str) -> None:
    """What would quietly not work is an error that names the task and the cure, each time it is looked at."""
    task = make(app)
    for _ in range(2):
        with pytest.raises(ConfigurationError) as caught:
            task.name  # noqa: B018
        assert said in str(caught.value)
    assert "t" not in app._tasks


def test_a_class_decorated_with_a_pattern_is_refused() -> None:
    """A pattern on a class is refused with the place where it belongs."""
    with pytest.raises(ConfigurationError, match=r"expected the value in its patterns"):

        @retry(on=OSError)
        class Wrong(patterns.PatternTask): ...


def test_a_pattern_above_a_shared_task_is_refused() -> None:
    """A shared task has no app yet: the pattern goes below it."""
    with pytest.raises(ConfigurationError, match="expected it below"):

        @retry(on=OSError)
        @shared_task
        def wrong() -> None: ...


def test_a_shared_task_wears_its_patterns_in_each_app(database: str) -> None:
    """Below ``@shared_task``: every app that was equipped makes its own task of it, and one that was not refuses."""
    others = set(_state._on_app_finalizers)

    @shared_task(name="shared_by_all")
    @retry(on=OSError, attempts=2)
    def shared_by_all() -> None:
        raise OSError

    apps = [Celery(name, broker=database, backend=database, set_as_current=False) for name in ("one", "two", "bare")]
    try:
        for app in apps[:2]:
            patterns.use_patterns(app)
            app.finalize()
            task = app.tasks["shared_by_all"]
            assert (task.app, task.max_retries) == (app, 1)
            assert [type(pattern) for pattern in task.plan.patterns] == [retry]
            assert [run_here(task, retries=number).state for number in (0, 1)] == ["RETRY", "FAILURE"]
        apps[2].finalize()
        with pytest.raises(ConfigurationError, match="wears patterns but its class is not a PatternTask"):
            apps[2].tasks["shared_by_all"].delay()
    finally:
        _state._on_app_finalizers.intersection_update(others)
        for app in apps:
            app.close()


def test_patterns_on_a_task_whose_class_cannot_wear_them(database: str, caplog: pytest.LogCaptureFixture) -> None:
    """Where the app was never equipped, a decorated task can neither be sent nor run, and says why."""
    bare = Celery("bare", broker=database, set_as_current=False)

    @bare.task(shared=False, name="naked")
    @retry(on=OSError)
    def naked() -> None: ...

    bare.finalize()
    for use in (naked.delay, naked.apply_async, naked.apply):
        with pytest.raises(ConfigurationError, match="naked wears patterns but its class is not a PatternTask"):
            use()
    assert "naked wears patterns" in caplog.text
    above = bare.task(shared=False, name="above", lazy=False)(named(lambda: 0))
    with pytest.raises(ConfigurationError, match="call equip"):
        retry(on=OSError)(above)


def test_the_first_message_protocol_is_refused(database: str) -> None:
    """It has no headers, so what the patterns remember would be lost on the way: the task says so at the call."""
    old = Celery("old", broker=database, set_as_current=False)
    old.conf.task_protocol = 1
    patterns.use_patterns(old)

    @old.task(shared=False, name="kept", patterns=(retry(on=OSError),))
    def kept() -> None: ...

    @old.task(shared=False, name="bare")
    def bare() -> int:
        return 1

    old.finalize()
    with pytest.raises(ConfigurationError, match="take task_protocol=1 away"):
        kept.delay()
    assert bare.apply().get() == 1


def test_a_foreign_base_on_an_equipped_app_is_refused(app: Celery) -> None:
    """A task with a base of its own, that is no PatternTask, does not lose its patterns in silence."""

    class Foreign(Task): ...

    task = app.task(shared=False, name="foreign", base=Foreign)(logged()(named(lambda: 0)))
    app.finalize()
    with pytest.raises(ConfigurationError, match="foreign wears patterns"):
        task.delay()


class Asleep:
    """As a lazy object is, which must not be woken up."""

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise AssertionError("woken up")


def test_a_base_may_hold_patterns_for_others_to_take(app: Celery) -> None:
    """And a task may take none of them."""

    class Base(patterns.PatternTask):
        abstract = True
        lazy = Asleep()
        slow, fast = retry(on=OSError, attempts=2), retry(on=OSError, attempts=9)
        patterns = (fast,)

    one = app.task(shared=False, name="one", base=Base)(named(lambda: 0))
    other = app.task(shared=False, name="other", base=Base, patterns=(Base.slow,))(named(lambda: 0))
    assert [task.plan.patterns[0].attempts for task in (one, other)] == [9, 2]


def test_a_generator_that_a_decorator_goes_through_is_none(app: Celery) -> None:
    """What Celery calls gives a list."""

    def listed(function: Any) -> Any:
        @functools.wraps(function)
        def all_of(*args: Any) -> list[Any]:
            return list(function(*args))

        return all_of

    @app.task(shared=False, name="listed")
    @logged()
    @listed
    def numbers(count: int) -> Any:
        yield from range(count)

    assert run_here(numbers, 3).value == [0, 1, 2]


def test_hooks_are_found_where_they_are(app: Celery, monkeypatch: Any) -> None:
    """What a second base says, or a test puts in its place, is called as in a plain task."""
    heard = []

    class Base(patterns.PatternTask):
        abstract = True

        def on_failure(self, *args: Any) -> None:
            heard.append("base")

    class Alert(Base):
        abstract = True

        def on_failure(self, *args: Any) -> None:
            heard.append("alert")
            super().on_failure(*args)

    class First(Base):
        name = "first"
        patterns = (dead_letter("plan.dead"),)

        def run(self) -> None:
            raise ValueError

    class Second(First, Alert):
        name = "second"

    for task in (First, Second):
        run_here(app.register_task(task()))
    assert heard == ["base", "alert", "base"]
    monkeypatch.setattr(Base, "on_failure", lambda *_: heard.append("patched"))
    run_here(app.tasks["first"])
    assert heard[3:] == ["patched"]


def test_the_result_backend_is_the_users_own(app: Celery, database: str, monkeypatch: Any) -> None:
    """Set on a task, by a class of the user's, or replaced in a test."""
    loose = patterns.PatternTask()
    loose.backend = "set"
    assert loose.backend == "set"

    class Own(Task):
        abstract = True
        kept: Any = None

        @property
        def backend(self) -> Any:
            return self.kept or super().backend

        @backend.setter
        def backend(self, backend: Any) -> None:
            type(self).kept = backend

    owned = Celery("owned", broker=database, backend=database, task_cls=Own, set_as_current=False)
    patterns.use_patterns(owned)
    owned.task(shared=False, name="t")(named(lambda: 0))
    task = owned.tasks["t"]
    task.backend = "kept"
    assert (task.backend, type(task).kept) == ("kept", "kept")
    owned.close()

    fails = app.task(shared=False, name="fails", patterns=(dead_letter("plan.dead"),))(named(lambda: 1 / 0))
    refusing = Mock(side_effect=OSError)
    monkeypatch.setattr(app.backend, "mark_as_failure", refusing)
    assert isinstance(run_here(fails).value, ZeroDivisionError)
    assert refusing.call_count == 2


def test_a_named_pattern_of_a_base_may_be_replaced(app: Celery) -> None:
    """The base wears it; the task wears another one of its kind, or none."""

    class Base(patterns.PatternTask):
        abstract = True
        policy = retry(on=OSError, attempts=2)
        patterns = (policy,)

    other = app.task(shared=False, name="other", base=Base)(retry(on=OSError, attempts=9)(named(lambda: 0)))
    bare = app.task(shared=False, name="bare", base=Base, patterns=(without(retry),))(named(lambda: 0))
    assert [pattern.attempts for pattern in other.plan.patterns] == [9]
    assert bare.plan is None


def test_a_foreign_base_on_a_task_that_is_made_late_is_refused(app: Celery) -> None:
    """Nobody looks at it when it is made; the worker does when it starts."""

    class Foreign(Task): ...

    app.finalize()
    app.task(shared=False, name="late", base=Foreign)(logged()(named(lambda: 0)))
    assert CHECK in app.steps["worker"]
    with pytest.raises(ConfigurationError, match="late wears patterns but its class is not a PatternTask"):
        CheckPatterns(SimpleNamespace(app=app, time_limit=None, soft_time_limit=None))


@pytest.mark.parametrize(
    ("consumed", "refused"),
    [("celery", False), ("celery,celery.dead", True), ("failures", True), ("audit.dead", False), ("orders.dead", True)],
)
def test_the_queues_that_a_worker_may_consume(app: Celery, consumed: str, refused: bool) -> None:
    """Not those that letters may stand in; a user's own of such a name, where plain tasks go, it may. None is made known."""

    def router(name: str, args: Any, kwargs: Any, *_: Any, **__: Any) -> Any:
        return {"queue": kwargs["region"]} if name == "by_region" else None

    app.conf.task_routes = [
        router,
        {"audits": {"queue": "audit"}, "burying": {"queue": "audit.dead"}, "orders": {"queue": "orders"}},
    ]
    for name in ("audits", "burying"):
        app.task(shared=False, name=name)(named(lambda: 0))
    buries = dead_letter("failures", max_crashes=None)
    for name, pattern in (
        ("by_region", dead_letter(max_crashes=None)),
        ("orders", dead_letter(max_crashes=None)),
        ("kept", buries),
    ):
        app.task(shared=False, name=name, patterns=(pattern,))(named(lambda: 0))
    app.finalize()
    app.amqp.queues.select(consumed.split(","))
    known, taken = {*app.amqp.queues}, {*app.amqp.queues.consume_from}
    worker = SimpleNamespace(app=app, time_limit=None, soft_time_limit=None)
    if refused:
        with pytest.raises(ConfigurationError, match="which is for dead letters"):
            CheckPatterns(worker)
    else:
        CheckPatterns(worker)
    assert ({*app.amqp.queues}, {*app.amqp.queues.consume_from}) == (known, taken)


def test_equipping_too_late_is_refused(database: str) -> None:
    """An app whose tasks were made already cannot be equipped."""
    late = Celery("late", broker=database, set_as_current=False)
    late.task(shared=False, name="early", lazy=False)(named(lambda: 0))
    with pytest.raises(ConfigurationError, match="came too late"):
        patterns.use_patterns(late)
    late.finalize()
    with pytest.raises(ConfigurationError, match="came too late"):
        patterns.use_strict_json(late)


def test_the_users_task_class_stays(database: str) -> None:
    """``use_patterns`` goes in front of the app's own Task class, whose methods keep working."""

    class Own(Task):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return ("own", super().__call__(*args, **kwargs))

    app = Celery("own", broker=database, task_cls=Own, set_as_current=False)
    patterns.use_patterns(app)
    patterns.use_store(app, MemoryStore())

    @app.task(shared=False, name="t")
    @idempotent(key="x", ttl=DAY)
    def t(x: int) -> int:
        return x

    assert isinstance(t, Own)
    assert run_here(t, 5).value == ("own", 5)
    assert t(5) == ("own", 5)
    assert t.apply((5,)).get() == ("own", 5)


def test_bound_class_based_and_pydantic_tasks(app: Celery) -> None:
    """Patterns work on ``bind=True``, class-based, inherited and pydantic tasks."""

    @app.task(shared=False, bind=True, name="bound")
    @idempotent(key="x", ttl=DAY)
    def bound(self: Any, x: int) -> str:
        return f"{self.name} {x}"

    class Based(patterns.PatternTask):
        name = "based"
        patterns = (idempotent(key="x", ttl=DAY), logged("x"))

        def run(self, x: int) -> str:
            return f"{self.name} {x}"

    class Child(Based):
        name = "child"

    def model(order: Order) -> str:
        assert isinstance(order, Order)
        return order.id

    model.__annotations__["order"] = Order  # Celery 5.5 does not read annotations that are strings
    modelled = app.task(shared=False, pydantic=True, name="modelled")(idempotent(key="order", ttl=DAY)(model))

    based, child = app.register_task(Based()), app.register_task(Child())
    assert run_here(bound, 1).value == "bound 1"
    assert run_here(based, 1).value == "based 1"
    assert run_here(child, 1).value == "child 1"
    assert run_here(modelled, {"id": "o-1"}).value == "o-1"
    modelled.delay({"id": "o-2"})
    assert (bound(2), based(2), child(2)) == ("bound 2", "based 2", "child 2")


def test_two_apps_in_one_process_do_not_share(database: str) -> None:
    """State hangs on the app: two apps with one task name keep their own stores."""
    seen = []
    for name in ("one", "two"):
        app = Celery(name, broker=database, set_as_current=False)
        patterns.use_patterns(app)
        patterns.use_store(app, MemoryStore())

        @app.task(shared=False, name="same")
        @idempotent(key="x", ttl=DAY)
        def same(x: int, name: str = name) -> str:
            seen.append(name)
            return name

        assert run_here(same, 1).value == name
    assert seen == ["one", "two"]


def test_celery_still_checks_arguments_at_delay(app: Celery) -> None:
    """A wrong call raises at ``.delay()``, for decorated functions and for classes alike."""

    @app.task(shared=False, name="checked")
    @retry(on=OSError)
    def checked(order: str) -> None: ...

    with pytest.raises(TypeError):
        checked.delay()
    assert str(inspect.signature(checked.run)) == "(order: 'str') -> 'None'"


def test_a_direct_call_is_the_body_alone(app: Celery) -> None:
    """Calling the task is calling the function: no claim, no retry, no letter, also from inside another task."""
    calls: list[str] = []

    @app.task(shared=False, name="inner")
    @retry(on=OSError, attempts=5)
    @idempotent(key="order", ttl=DAY)
    @dead_letter("plan.dead")
    def inner(order: str) -> None:
        calls.append(order)
        with pytest.raises(NotInTask):
            patterns.current_call()
        raise OSError(order)

    @app.task(shared=False, name="outer")
    @retry(on=ValueError, attempts=2)
    def outer(order: str) -> int:
        try:
            inner(order)
        except OSError:
            return patterns.current_call().attempt
        return 0

    with pytest.raises(OSError):
        inner("o")
    assert run_here(outer, "o").value == 1
    assert calls == ["o", "o"]


def test_a_task_that_calls_itself_is_one_attempt(app: Celery) -> None:
    """A direct call of the running task by its own body stays a plain call."""

    @app.task(shared=False, name="countdown")
    @idempotent(key="n", ttl=DAY)
    def countdown(n: int) -> int:
        return 0 if n == 0 else 1 + countdown(n - 1)

    assert run_here(countdown, 5).value == 5


def test_eager_mode_makes_the_attempts_at_once(app: Celery) -> None:
    """``apply()`` tries the body the policy's number of times, without waiting, and raises the last error."""
    attempts: list[tuple[int, bool]] = []

    @app.task(shared=False, name="eager")
    @retry(on=OSError, attempts=3, wait=tenacity.wait_fixed(100))
    @idempotent(key="order", ttl=DAY)
    @dead_letter("plan.dead")
    @logged("order")
    def eager(order: str, until: int = 9) -> str:
        call = patterns.current_call()
        attempts.append((call.attempt, call.is_last))
        if call.attempt < until:
            raise OSError(order)
        return "done"

    assert eager.apply(("o", 3)).get() == "done"
    assert attempts == [(1, False), (2, False), (3, True)]
    for throw in (True, False):
        with pytest.raises(OSError):
            eager.apply(("o",), throw=throw).get()
    assert len(attempts) == 9


@pytest.mark.parametrize("propagates", [True, False])
def test_canvas_in_eager_mode(app: Celery, propagates: bool, monkeypatch: Any) -> None:
    """Under ``task_always_eager`` every form gives what it gives on a worker, and nothing is published or buried."""
    app.conf.update(task_always_eager=True, task_eager_propagates=propagates)
    monkeypatch.setattr(_state._tls, "current_app", app)  # what embedded signatures belong to
    done: list[str] = []

    @app.task(shared=False, name="step", patterns=four())
    def step(before: str, order: str = "o") -> str:
        done.append(order)
        if order == "flaky" and done.count("flaky") == 1:
            raise ConnectionError
        return f"{before}{order}"

    @app.task(shared=False, name="joined", patterns=four())
    def joined(parts: list[str], order: str = "all") -> str:
        return "+".join(parts)

    assert chain(step.s("a", "b"), step.s("flaky"), step.s("c")).delay().get() == "abflakyc"
    assert group(step.s("", n) for n in "xyz").delay().get() == ["x", "y", "z"]
    assert chord([step.s("", n) for n in "xyz"], joined.s()).delay().get() == "x+y+z"
    assert done.count("flaky") == 2
    with app.connection_for_read() as connection:
        client = connection.default_channel.client
        assert [client.llen(name) for name in (app.conf.task_default_queue, "plan.dead")] == [0, 0]


def test_self_retry_shares_the_budget_in_eager_mode_too(app: Celery) -> None:
    """A body that asks by itself gets the pattern's number of attempts, not Celery's."""
    runs = []

    @app.task(shared=False, bind=True, name="asks")
    @retry(on=OSError, attempts=5)
    def asks(self: Any) -> None:
        runs.append(self.request.retries)
        raise self.retry(exc=ValueError("enough"), countdown=0)

    with pytest.raises(ValueError, match="enough"):
        asks.apply(throw=True)
    assert runs == [0, 1, 2, 3, 4]


def test_map_starmap_and_chunks_of_a_task_with_a_key_are_refused(app: Celery) -> None:
    """Their calls would be made without a key, so they raise and name the group instead."""

    @app.task(shared=False, name="keyed")
    @idempotent(key="x", ttl=DAY)
    def keyed(x: int) -> int:
        return x

    for form in (lambda: keyed.map([1]), lambda: keyed.starmap([(1,)]), lambda: keyed.chunks([(1,)], 1)):
        with pytest.raises(ConfigurationError, match="expected a group"):
            form()


def test_acknowledgement_follows_the_promise(app: Celery) -> None:
    """Late and back to the queue with a key or a dead letter; Celery's own otherwise; the task's word is last."""
    make = functools.partial(app.task, shared=False)
    plain = make(name="a")(retry(on=OSError)(named(lambda: 0)))
    keyed = make(name="b")(idempotent(key="x", ttl=DAY)(named(lambda x: 0)))
    buried = make(name="c")(dead_letter()(named(lambda: 0)))
    early = make(name="d", acks_late=False)(dead_letter()(named(lambda: 0)))
    told = [(bool(task.acks_late), bool(task.reject_on_worker_lost)) for task in (plain, keyed, buried, early)]
    assert told == [(False, False), (True, True), (True, True), (False, True)]
    assert early.plan.terms.crash_limit is None


def test_reliable_task_wears_what_it_says(app: Celery) -> None:
    """``ReliableTask`` is logged, buried and retried, and holds no key."""
    task = app.task(shared=False, name="r", base=patterns.ReliableTask)(named(lambda: 0))
    assert [pattern.kind() for pattern in task.plan.patterns] == ["logged", "dead_letter", "retry"]
    assert task.max_retries == 4


def test_patterns_may_come_from_annotations(database: str) -> None:
    """``task_annotations`` can set a task's patterns, as any other option."""
    app = Celery("annotated", broker=database, set_as_current=False)
    patterns.use_patterns(app)
    app.conf.task_annotations = {"t": {"patterns": (retry(on=OSError, attempts=2),)}}
    task = app.task(shared=False, name="t")(named(lambda: 0))
    assert task.plan.terms.attempts == 2


def test_importing_the_library_configures_nothing() -> None:
    """No handler, no signal receiver that logs, no serializer: each is adopted by its own call."""
    import subprocess
    import sys

    code = (
        "import logging, celery_patterns, celery.signals as s;"
        "from kombu.serialization import registry;"
        "assert not logging.getLogger().handlers and not logging.getLogger('celery_patterns').handlers;"
        "assert not s.setup_logging.receivers and not s.before_task_publish.receivers;"
        "assert 'celery-patterns-json' not in registry._encoders"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("pattern", [retry, idempotent, dead_letter, logged])
def test_a_pattern_without_its_arguments_says_so(pattern: Any) -> None:
    """``@retry`` above a function, where ``@retry(…)`` was meant."""

    def charge() -> None: ...

    with pytest.raises(ConfigurationError, match=rf"@{pattern.kind()} stands without its arguments above charge"):
        pattern(charge)


@pytest.mark.parametrize("adopt", [patterns.use_patterns, patterns.use_strict_json, patterns.use_structlog])
def test_only_an_app_can_be_equipped(adopt: Any) -> None:
    """A name, which Celery takes in other places, is no app."""
    with pytest.raises(ConfigurationError, match=rf"{adopt.__name__}\(\) takes your Celery app.*got a str"):
        adopt("proj")
    with pytest.raises(ConfigurationError, match="takes your Celery app"):
        patterns.equip("proj", store="redis://localhost")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="takes your Celery app"):
        patterns.use_store("proj", "redis://localhost")  # type: ignore[arg-type]


def test_a_hook_after_the_body_is_no_attempt(app: Celery) -> None:
    """In ``on_success`` the attempt is over: a call of the task is a plain call, and there is no current call."""
    told: list[Any] = []

    class Hooked(patterns.PatternTask):
        def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
            told.append(("after", retval, self.run("o-2"), self("o-3")))
            with pytest.raises(NotInTask):
                patterns.current_call()

    @app.task(shared=False, name="t", base=Hooked)
    @logged("order")
    @retry(on=OSError, attempts=2)
    def t(order: str) -> str:
        told.append(order)
        return f"done {order}"

    assert run_here(t, "o-1").value == "done o-1"
    assert told == ["o-1", "o-2", "o-3", ("after", "done o-1", "done o-2", "done o-3")]


# Which edition of a task a process has


_EDITIONS = """
import sys
from datetime import timedelta

import tenacity

from celery_patterns import dead_letter, idempotent, retry
from celery_patterns._edition import edition_of


def body(order, amount=1):
    def inner(x):
        return x in {"a", "b", "c", "d"}

    return inner(order), [timedelta(seconds=one) for one in (1, 2)]


def policy(error):
    return "gone" in str(error)


print(edition_of(body, (
    retry(on=policy, attempts=3, wait=tenacity.wait_fixed(1) + tenacity.wait_random(0, 2)),
    retry(on=(ConnectionError, TimeoutError), stop=tenacity.stop_after_delay(60)),
    retry(on=tenacity.retry_if_exception_message("gone")),
    idempotent(key=lambda order: {order, 1, 2}, ttl=timedelta(days=1), scope="amount"),
    dead_letter("orders.dead"),
)))
"""


def test_an_edition_is_alike_in_each_process() -> None:
    """Whatever the chance of hashes and addresses is, and wherever the lines stand."""
    told = set()
    for seed, above in (("1", ""), ("2", "\n\n# another line\n"), ("3", "import os\n")):
        done = subprocess.run(
            [sys.executable, "-c", above + _EDITIONS],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        told.add(done.stdout)
    assert len(told) == 1


def _two(n: int) -> tuple[Any, Any]:
    def one(order: str) -> str:
        return order + "a"

    def other(order: str) -> str:
        return order + "b"

    return (one, other)[n], (lambda error: "x" in str(error), lambda error: "y" in str(error))[n]


def _made(rate: int, fee: int) -> tuple[Any, Any]:
    return lambda order: (order * rate, fee)[0], lambda order: (order * fee, rate)[0]


#: A body and what it wears, and how each differs.
EDITIONS: dict[str, tuple[tuple[Any, Any], tuple[Any, Any]]] = {
    "the code": ((_two(0)[0], ()), (_two(1)[0], ())),
    "the arguments": ((lambda order: 1, ()), (lambda order, amount: 1, ())),
    "their names": ((lambda order: 1, ()), (lambda number: 1, ())),
    "whether there is a default": ((lambda order, n: n, ()), (lambda order, *, n: n, ())),
    "a star": ((lambda order, *n: 1, ()), (lambda order, **n: 1, ())),
    "a slash": ((lambda order, /: 1, ()), (lambda order: 1, ())),
    "what a factory gives": ((_made(1, 2)[0], ()), (_made(1, 2)[1], ())),
    "a class of the same name": (
        (len, (retry(on=ConnectionError),)),
        (len, (retry(on=redis.exceptions.ConnectionError),)),
    ),
    "a partial": (
        (len, (retry(on=functools.partial(isinstance, OSError)),)),
        (len, (retry(on=functools.partial(isinstance, KeyError)),)),
    ),
    "code under a decorator": (
        (functools.wraps(_two(0)[0])(lambda *a: 1), ()),
        (functools.wraps(_two(1)[0])(lambda *a: 1), ()),
    ),
    "attempts": ((len, (retry(on=OSError, attempts=3),)), (len, (retry(on=OSError, attempts=4),))),
    "errors": ((len, (retry(on=OSError),)), (len, (retry(on=(OSError, KeyError)),))),
    "a predicate": ((len, (retry(on=_two(0)[1]),)), (len, (retry(on=_two(1)[1]),))),
    "a wait of waits": (
        (len, (retry(on=OSError, wait=tenacity.wait_fixed(1) + tenacity.wait_random(0, 2)),)),
        (len, (retry(on=OSError, wait=tenacity.wait_fixed(1) + tenacity.wait_random(0, 3)),)),
    ),
    "a span": ((len, (idempotent(key="a", ttl=DAY),)), (len, (idempotent(key="a", ttl=2 * DAY),))),
    "a key": ((len, (idempotent(key="a", ttl=DAY),)), (len, (idempotent(key=("a", "b"), ttl=DAY),))),
    "a queue": ((len, (dead_letter("a.dead"),)), (len, (dead_letter("b.dead"),))),
}


@pytest.mark.parametrize("name", EDITIONS)
def test_another_edition_is_told(name: str) -> None:
    """What a worker of older code would do otherwise makes another digest; the same makes the same."""
    one, other = EDITIONS[name]
    assert edition_of(*one) == edition_of(*one)
    assert edition_of(*one) != edition_of(*other)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="before, what a try guards stands in the code itself")
def test_what_a_try_guards_is_a_part_of_the_edition() -> None:
    """The lines may be the same, and in the same order."""
    spaces: list[dict[str, Any]] = []
    for source in (
        "def f(x):\n    try:\n        a(x)\n        b(x)\n    except OSError:\n        c(x)\n",
        "def f(x):\n    try:\n        a(x)\n    except OSError:\n        c(x)\n    else:\n        b(x)\n",
    ):
        spaces.append({})
        exec(source, spaces[-1])
    assert edition_of(spaces[0]["f"], ()) != edition_of(spaces[1]["f"], ())


def test_what_a_process_makes_by_itself_is_no_part_of_the_edition() -> None:
    """A default that is a cache, or the time of the import, is another one in each process, and changes as it runs."""

    def task(order: str, cache: dict[str, str] = {}, at: float = time.time()) -> str:  # noqa: B006
        nonlocal calls
        calls += 1
        return cache.setdefault(order, f"{order} {at} {calls}")

    calls = 0
    before = edition_of(task, ())
    task("a")
    assert edition_of(task, ()) == before


def test_an_edition_of_whatever_stands_there() -> None:
    """What Python cannot write as a text, and what holds itself."""
    space: dict[str, Any] = {}
    exec(f"def f(x):\n    return x % 0x{'f' * 5000}\n", space)
    itself: list[Any] = []
    itself.extend([itself] * 12)
    policy = functools.partial(isinstance, itself)
    began = time.monotonic()
    assert edition_of(space["f"], (retry(on=policy),)) == edition_of(space["f"], (retry(on=policy),))
    assert time.monotonic() - began < 2


def test_an_edition_asks_no_value_of_the_users() -> None:
    """A policy may be an object of theirs: neither its text nor what it holds is looked at."""

    class Policy:
        def __init__(self) -> None:
            self.secret = self

        def __repr__(self) -> str:
            raise AssertionError

        def __getattr__(self, name: str) -> Any:
            raise AssertionError(name) if asked else AttributeError(name)

        def __call__(self, error: Exception) -> bool:
            return True

    asked: list[str] = []
    one, other = retry(on=Policy()), retry(on=Policy())
    asked.append("from now on")
    assert edition_of(len, (one,)) == edition_of(len, (other,))
