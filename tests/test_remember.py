"""What is kept of an end: a failure that is remembered, and a result that is not too large."""

from __future__ import annotations

import logging
import pickle
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery
from celery.exceptions import Ignore, Reject, Retry, TaskPredicate, WorkerTerminate

import celery_patterns as patterns
from celery_patterns import _dead_letter, _republish, dead_letter, dead_letters, idempotent, retry
from celery_patterns._events import Event
from celery_patterns._idempotent._failure import encoded, failure_in
from celery_patterns._message import HEADER
from celery_patterns.exceptions import (
    AlreadyFailed,
    ClaimLost,
    ConfigurationError,
    FailedBefore,
    KeyMismatch,
    OutOfMemory,
    PatternsError,
    PublishFailed,
    ResultNotKept,
    TooManyCrashes,
)
from celery_patterns.stores import MemoryStore
from celery_patterns.typing import Store

from .harness import Floor
from .here import run_here
from .test_idempotent import Switch, keyed
from .test_kills import _run_with_crash
from .test_retry import published

DAY = timedelta(days=1)


class Declined(Exception):
    """What the tests remember."""


class DeclinedForGood(Declined):
    """One kind of it."""


@pytest.fixture
def store() -> Switch:
    return Switch()


@pytest.fixture
def app(database: str, store: Switch) -> Any:
    made = Celery("remember", broker=database, backend="cache+memory://", set_as_current=False)
    patterns.use_patterns(made)
    patterns.use_store(made, store)
    yield made
    made.close()


def failing(app: Celery, *errors: Any, **options: Any) -> tuple[Any, list[int]]:
    """A task whose runs raise these, one after the other, and then succeed; and its runs."""
    runs: list[int] = []

    def work(x: int, note: str = "") -> str:
        runs.append(x)
        if len(runs) <= len(errors):
            raise errors[len(runs) - 1]
        return f"run {len(runs)}"

    return keyed(app, work, **{"remember": Declined, **options}), runs


def letters(app: Celery) -> list[str]:
    return [letter.error.rpartition(".")[2] for letter in dead_letters(app, "dead")]


def replayed(app: Celery) -> Any:
    """Replay the oldest letter, and take the message that it is sent as."""
    shelf = dead_letters(app, "dead")
    shelf.replay(next(iter(list(shelf))).id)
    with app.connection_for_read() as connection:
        message = connection.SimpleQueue("celery").get(timeout=5)
        message.ack()
    args, kwargs, _ = message.payload
    return lambda task: run_here(task, *args, task_id=message.headers["id"], headers=message.headers, **kwargs)


def events(caplog: Any) -> list[Event]:
    return [record.msg for record in caplog.records if isinstance(record.msg, Event)]


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        "Declined",
        Declined("x"),
        [Declined],
        (Declined, "x"),
        int,
        KeyboardInterrupt,
        BaseException,
        lambda _: True,
    ],
    ids=lambda value: repr(value).partition(" at 0x")[0],
)
def test_only_exception_types_can_be_remembered(wrong: Any) -> None:
    """Anything else is refused when the pattern is built."""
    with pytest.raises(ConfigurationError) as caught:
        idempotent(key="x", ttl=DAY, remember=wrong)
    assert str(caught.value) == (
        f"expected remember to be an exception type, a subclass of Exception, or a tuple of such types, got {wrong!r}"
    )


@pytest.mark.parametrize(
    "wrong", [Retry, Ignore, Reject, TaskPredicate, PatternsError, ClaimLost, TooManyCrashes, OutOfMemory, FailedBefore]
)
def test_what_is_no_failure_of_the_bodys_own_cannot_be_remembered(wrong: Any) -> None:
    """How Celery or this library ends a run says nothing about the work."""
    with pytest.raises(
        ConfigurationError, match=r"expected remember to name failures of the body's own, .* got <class"
    ):
        idempotent(key="x", ttl=DAY, remember=(Declined, wrong))


def test_a_remembered_failure_is_what_each_duplicate_gets(app: Celery, caplog: Any) -> None:
    """At once, without a run, for ``ttl``: its type and its text, and one letter for all of them."""
    caplog.set_level(logging.INFO)
    task, runs = failing(app, Declined("no funds"))
    assert type(run_here(task, 1).value) is Declined
    caplog.clear()
    for outcome in [run_here(task, 1) for _ in range(3)]:
        assert (outcome.state, type(outcome.value)) == ("FAILURE", FailedBefore)
        assert (outcome.value.task, outcome.value.error) == ("work", f"{__name__}.Declined")
        assert outcome.value.message == "no funds"
    assert (runs, letters(app)) == ([1], ["Declined"])
    told = [event.fields for event in events(caplog) if event.name == "duplicate_failed"]
    assert [one["first_error"] for one in told] == [f"{__name__}.Declined"] * 3
    assert not any("no funds" in str(event) for event in events(caplog))
    assert run_here(task, 2).value == "run 2"


def test_it_is_kept_for_ttl(app: Celery, store: Switch) -> None:
    """From its end on; then the key is new."""
    task, _ = failing(app, Declined(), ttl=timedelta(hours=1))
    run_here(task, 1)
    store.clock += 3599
    assert type(run_here(task, 1).value) is FailedBefore
    store.clock += 2
    assert run_here(task, 1).value == "run 2"


def test_other_arguments_are_another_call(app: Celery) -> None:
    """As with a result: the key belongs to the call that failed."""
    task, runs = failing(app, Declined())
    run_here(task, 1)
    assert type(run_here(task, 1, note="again").value) is KeyMismatch
    assert runs == [1]


@pytest.mark.parametrize("remember", [(), ValueError, DeclinedForGood])
def test_a_failure_that_is_not_named_frees_the_key(app: Celery, remember: Any) -> None:
    """And so does each one by default."""
    task, _ = failing(app, Declined(), remember=remember)
    run_here(task, 1)
    assert run_here(task, 1).value == "run 2"


@pytest.mark.parametrize("remember", [Declined, (ValueError, Declined), Exception])
def test_a_kind_of_what_is_named_is_named(app: Celery, remember: Any) -> None:
    """As ``except`` takes it."""
    task, _ = failing(app, DeclinedForGood("x"), remember=remember)
    run_here(task, 1)
    assert run_here(task, 1).value.error == f"{__name__}.DeclinedForGood"


@pytest.mark.parametrize("kind", [SoftTimeLimitExceeded, MemoryError])
def test_what_the_machine_ran_out_of_must_be_named_itself(app: Celery, kind: Any) -> None:
    """Time and memory say nothing about the work, unless the task says that they do."""
    task, _ = failing(app, kind(), remember=Exception)
    run_here(task, 1)
    assert run_here(task, 1).value == "run 2"
    del app.tasks["work"]
    task, _ = failing(app, kind(), remember=kind)
    run_here(task, 2)
    assert type(run_here(task, 2).value) is FailedBefore


@pytest.mark.parametrize("error", [ClaimLost("x"), FailedBefore("t", "e", "m"), Reject("no", requeue=False), Ignore()])
def test_an_end_that_is_no_failure_of_the_bodys_own_is_never_remembered(app: Celery, store: Switch, error: Any) -> None:
    """Not where all is named: what another task failed with before, for example, that this body waited for."""
    task, _ = failing(app, error, remember=Exception)
    run_here(task, 1)
    assert "complete" not in store.steps


def test_too_many_crashes_are_never_remembered(app: Celery, store: Switch) -> None:
    """The body has not said how it ended."""

    class Killed(WorkerTerminate): ...

    task, _ = failing(app, Killed(), Killed(), Killed(), remember=Exception)
    for _ in range(3):
        with pytest.raises(Killed):
            run_here(task, 1, task_id="a", redelivered=True)
        store.clock += 31
    assert type(run_here(task, 1, task_id="a", redelivered=True).value) is TooManyCrashes
    assert run_here(task, 1).value == "run 4"


def test_only_the_last_attempt_is_an_end(app: Celery) -> None:
    """What ``retry`` tries again is not remembered, and the key is free meanwhile; what it gives up is."""

    @app.task(shared=False, name="t")
    @idempotent(key="x", ttl=DAY, remember=Declined)
    @retry(on=Declined, attempts=2)
    def t(x: int) -> None:
        raise Declined

    assert run_here(t, 1, task_id="a").state == "RETRY"
    assert run_here(t, 1, task_id="b").state == "RETRY"
    assert type(run_here(t, 1, task_id="a", retries=1).value) is Declined
    assert type(run_here(t, 1, task_id="b", retries=1).value) is FailedBefore
    assert len(published(app)) == 2


@pytest.mark.parametrize("throw", [True, False])
def test_what_the_body_itself_tries_again_is_no_end(app: Celery, throw: bool) -> None:
    """Also where it fails after it has asked."""

    @app.task(shared=False, name="t", bind=True)
    @idempotent(key="x", ttl=DAY, remember=Declined)
    def t(self: Any, x: int) -> str:
        if self.request.retries:
            return "done"
        self.retry(exc=Declined(), countdown=0, throw=throw)
        raise Declined

    assert run_here(t, 1, task_id="a").state == "RETRY"
    assert run_here(t, 1, task_id="a", retries=1).value == "done"


def test_what_the_body_itself_tries_no_more_is_an_end(app: Celery) -> None:
    """``self.retry()`` raises the error that it is given, when no attempt is left."""

    @app.task(shared=False, name="t", bind=True)
    @idempotent(key="x", ttl=DAY, remember=Declined)
    def t(self: Any, x: int) -> None:
        raise self.retry(exc=Declined(), max_retries=1, countdown=0)

    assert run_here(t, 1, task_id="a").state == "RETRY"
    assert type(run_here(t, 1, task_id="a", retries=1).value) is Declined
    assert type(run_here(t, 1, task_id="b").value) is FailedBefore


def test_an_attempt_that_could_not_be_published_is_not_remembered(app: Celery, monkeypatch: Any) -> None:
    """It is an end, but the broker's: attempts were left."""

    def refuse(*_: Any) -> None:
        raise PublishFailed("the queue does not exist")

    @app.task(shared=False, name="t", acks_late=False)
    @idempotent(key="x", ttl=DAY, remember=Declined)
    @retry(on=Declined, attempts=2)
    def t(x: int) -> str:
        if patterns.current_call().id == "a":
            raise Declined
        return "done"

    with monkeypatch.context() as away:
        away.setattr(_republish, "_send", refuse)
        outcome = run_here(t, 1, task_id="a")
    assert (outcome.state, type(outcome.value)) == ("FAILURE", Declined)
    assert run_here(t, 1, task_id="b").value == "done"


def test_the_attempt_that_failed_is_not_run_again(app: Celery) -> None:
    """Delivered once more, since its worker was killed before it was acknowledged: a failure, and no second letter."""
    task, runs = failing(app, Declined("x"))
    run_here(task, 1, task_id="a")
    again = run_here(task, 1, task_id="a", redelivered=True)
    assert (again.state, type(again.value), again.value.message) == ("FAILURE", FailedBefore, "x")
    assert (runs, len(published(app, "dead"))) == ([1], 1)


def test_an_earlier_attempt_is_let_go(app: Celery) -> None:
    """One that was handed over is no failure, whatever the last one ended with."""

    @app.task(shared=False, name="t")
    @idempotent(key="x", ttl=DAY, remember=Declined)
    @retry(on=Declined, attempts=2)
    def t(x: int) -> None:
        raise Declined

    run_here(t, 1, task_id="a")
    run_here(t, 1, task_id="a", retries=1)
    assert run_here(t, 1, task_id="a", redelivered=True).state == "IGNORED"


def test_a_duplicate_that_waited_gets_it_too(app: Celery) -> None:
    """The other delivery of the same task as well."""
    inside = []

    def work(x: int) -> None:
        inside.append(run_here(task, 1, task_id="b").state)
        inside.append(run_here(task, 1, task_id="a", redelivered=True).state)
        raise Declined

    task = keyed(app, work, remember=Declined)
    run_here(task, 1, task_id="a")
    copies = [(message["headers"]["id"], message["headers"]) for message in published(app)]
    outcomes = [run_here(task, 1, task_id=name, headers=headers) for name, headers in copies]
    assert inside == ["IGNORED", "IGNORED"]
    assert [type(one.value) for one in outcomes] == [FailedBefore, FailedBefore]
    assert letters(app) == ["Declined"]


def test_the_letter_stands_before_the_failure_is_recorded(app: Celery, store: Switch, monkeypatch: Any) -> None:
    """A letter that cannot be written sends the message back, and its next delivery runs."""

    def refuse(*_: Any, **__: Any) -> None:
        raise PublishFailed("away", transient=True)

    task, runs = failing(app, Declined(), Declined())
    with monkeypatch.context() as away:
        away.setattr(_dead_letter, "publish_letter", refuse)
        assert run_here(task, 1, task_id="a").state == "REJECTED"
    assert "complete" not in store.steps
    assert type(run_here(task, 1, task_id="a", redelivered=True).value) is Declined
    assert (runs, letters(app)) == ([1, 1], ["Declined"])


def test_a_failure_whose_letter_was_not_begun_is_not_remembered(app: Celery, store: Switch, monkeypatch: Any) -> None:
    """A time limit struck in between: that is what the run has failed with, and no replay would forget the other one."""

    def struck(_: Any, proceed: Any, call: Any) -> Any:
        try:
            return proceed(call)
        except Declined:
            raise SoftTimeLimitExceeded(1) from None

    monkeypatch.setattr(dead_letter, "around", struck)
    task, runs = failing(app, Declined("no"))
    assert type(run_here(task, 1).value) is SoftTimeLimitExceeded
    assert [record.state for record in store.records()] == ["free"]
    assert (run_here(task, 1).value, runs) == ("run 2", [1, 1])


def test_replaying_its_letter_forgets_it(app: Celery) -> None:
    """It says: try again. What comes of it is what later duplicates get: the next failure, and then the result."""
    task, runs = failing(app, Declined("first"), Declined("second"))
    run_here(task, 1)
    outcome = replayed(app)(task)
    assert (type(outcome.value), str(outcome.value)) == (Declined, "second")
    assert run_here(task, 1).value.message == "second"
    assert letters(app) == ["Declined"]
    assert replayed(app)(task).value == "run 3"
    assert run_here(task, 1).value == "run 3"
    assert (runs, letters(app)) == ([1, 1, 1], [])


def test_a_replay_that_is_delivered_twice_runs_once(app: Celery) -> None:
    """It forgets the failure of its letter, and not its own, nor what anybody has recorded since."""
    task, runs = failing(app, Declined("first"), Declined("second"))
    run_here(task, 1)
    deliver = replayed(app)
    assert type(deliver(task).value) is Declined
    assert deliver(task).value.message == "second"
    replayed(app)(task)
    assert deliver(task).value == "run 3"
    assert len(runs) == 3


def test_a_replay_may_bring_other_arguments(app: Celery) -> None:
    """A corrected one: the key belongs to no call any more."""
    task, _ = failing(app, Declined())
    run_here(task, 1, note="wrong")
    shelf = dead_letters(app, "dead")
    shelf.replay_all(correct={"note": "right"})
    (message,) = published(app)
    outcome = run_here(task, 1, note="right", task_id=message["headers"]["id"], headers=message["headers"])
    assert outcome.value == "run 2"
    assert run_here(task, 1, note="right").value == "run 2"


def test_a_letter_that_somebody_moved_back_by_hand_is_run_too(app: Celery) -> None:
    """Without a replay of ours: the message itself says whose failure it was."""
    task, _ = failing(app, Declined())
    run_here(task, 1, task_id="a")
    headers = published(app, "dead")[0]["headers"]
    assert run_here(task, 1, task_id="a", headers=headers).value == "run 2"


def test_a_message_that_was_moved_back_and_delivered_twice_runs_once(app: Celery) -> None:
    """It forgets the failure that it was buried with, and not the one that it ended with then."""
    task, runs = failing(app, Declined("first"), Declined("second"))
    run_here(task, 1, task_id="a")
    headers = published(app, "dead")[0]["headers"]
    assert str(run_here(task, 1, task_id="a", headers=headers).value) == "second"
    assert run_here(task, 1, task_id="a", headers=headers, redelivered=True).value.message == "second"
    assert len(runs) == 2


@pytest.mark.parametrize("name", [7, None, "", ["a"], "\udc80"])
def test_a_message_that_names_no_failure_forgets_no_result(app: Celery, name: Any) -> None:
    """A header may be written by hand: it is a duplicate like any other, and nothing that was done is run again."""
    task, runs = failing(app)
    assert [run_here(task, 1, headers={HEADER: {"failure": name}}).value for _ in range(2)] == ["run 1", "run 1"]
    assert runs == [1]


def test_the_letter_of_an_earlier_failure_does_not_forget_a_later_one(app: Celery, store: Switch) -> None:
    """Another task has failed since, which has a letter of its own; so a letter that comes back from a file is a duplicate."""
    task, runs = failing(app, Declined("first"), Declined("second"))
    run_here(task, 1, task_id="a")
    headers = published(app, "dead")[0]["headers"]
    store.clock += DAY.total_seconds() + 1
    run_here(task, 1, task_id="b")
    assert run_here(task, 1, task_id="a", headers=headers).value.message == "second"
    assert len(runs) == 2


def test_the_letter_of_a_run_that_was_killed_forgets_what_the_next_delivery_recorded(
    app: Celery, store: Switch
) -> None:
    """Both left the letter of one death, of which the first is shown and replayed: it stands for both."""

    class Killed(WorkerTerminate): ...

    task, _ = failing(app, Declined("first"), Declined("second"))
    killed, record = [True], store.complete

    def complete(*args: Any, **kwargs: Any) -> Any:
        if killed:
            raise killed.pop() and Killed
        return record(*args, **kwargs)

    store.complete = complete  # type: ignore[method-assign]
    with pytest.raises(Killed):
        run_here(task, 1, task_id="a")
    store.clock += 31
    assert str(run_here(task, 1, task_id="a", redelivered=True).value) == "second"
    assert len(published(app, "dead")) == 2
    assert replayed(app)(task).value == "run 3"
    assert letters(app) == []


def test_the_replay_of_another_letter_is_a_duplicate(app: Celery) -> None:
    """It was buried before the failure that is remembered, which it says nothing about."""
    task, runs = failing(app, ValueError(), Declined())
    run_here(task, 1)
    run_here(task, 1)
    assert type(replayed(app)(task).value) is FailedBefore
    assert (len(runs), letters(app)) == (2, ["Declined"])


class Plain:
    """A store of the user's own, with nothing but the protocol's steps."""

    def __init__(self) -> None:
        kept = MemoryStore()
        self.claim, self.renew, self.complete, self.release = kept.claim, kept.renew, kept.complete, kept.release
        self.count_start, self.excuse_start, self.forget_starts = (
            kept.count_start,
            kept.excuse_start,
            kept.forget_starts,
        )


def test_a_store_that_cannot_forget_remembers_on(database: str) -> None:
    """Until ``ttl`` is over a replay gets the failure, too."""
    app = Celery("plain", broker=database, backend="cache+memory://", set_as_current=False)
    patterns.use_patterns(app)
    plain = Plain()
    assert isinstance(plain, Store)
    patterns.use_store(app, plain)
    task, _ = failing(app, Declined())
    run_here(task, 1)
    assert type(replayed(app)(task).value) is FailedBefore
    app.close()


def test_a_store_that_is_away_at_a_replay_makes_it_wait(app: Celery, store: Switch, monkeypatch: Any) -> None:
    """As at each other claim: no attempt is used, and it forgets when it comes back."""
    task, _ = failing(app, Declined())
    run_here(task, 1)
    deliver = replayed(app)
    with monkeypatch.context() as away:
        away.setattr(store, "forget", lambda *_, **__: store.claim(store.down.add("claim")))
        assert deliver(task).state == "IGNORED"
    store.down.clear()
    (copy,) = published(app)
    assert run_here(task, 1, task_id=copy["headers"]["id"], headers=copy["headers"]).value == "run 2"


def test_a_run_that_lost_its_key_is_not_remembered(app: Celery, store: Switch) -> None:
    """The record that another run has made by then stands; that run's failure, too, is what this message ends with."""
    turns: list[str] = []

    def work(x: int) -> None:
        turns.append("turn")
        if len(turns) == 1:
            store.clock += 31
            run_here(task, 1, task_id="heir")
            raise Declined("zombie")
        raise Declined("heir")

    task = keyed(app, work, remember=Declined)
    run_here(task, 1, task_id="zombie")
    assert run_here(task, 1).value.message == "heir"


def test_a_run_that_lost_its_key_ends_as_the_other_one(app: Celery, store: Switch) -> None:
    """It has a result, the other one a failure that is remembered: the work failed, and one letter says so."""
    turns: list[str] = []

    def work(x: int) -> str:
        turns.append("turn")
        if len(turns) == 1:
            store.clock += 31
            run_here(task, 1, task_id="heir")
            return "zombie"
        raise Declined("heir")

    task = keyed(app, work, remember=Declined)
    outcome = run_here(task, 1, task_id="zombie")
    assert (outcome.state, type(outcome.value)) == ("FAILURE", FailedBefore)
    assert letters(app) == ["Declined"]


def test_a_store_that_is_away_when_it_fails(app: Celery, store: Switch, caplog: Any) -> None:
    """It is tried until the lease is over; then the failure is this message's alone, with the loudest event."""

    def work(x: int) -> None:
        store.down = {"complete"}
        raise Declined

    task = keyed(app, work, remember=Declined, lease=timedelta(seconds=1))
    outcome = run_here(task, 1)
    assert (outcome.state, type(outcome.value)) == ("FAILURE", Declined)
    assert [record.levelname for record in caplog.records if "claim_not_recorded" in str(record.msg)] == ["CRITICAL"]
    assert store.steps.count("complete") > 2
    assert letters(app) == ["Declined"]
    store.down = set()
    store.clock += 31
    assert type(run_here(task, 1).value) is Declined


def test_it_costs_no_round_trip_more(app: Celery, store: Switch) -> None:
    """The record takes the place of the release."""
    task, _ = failing(app, Declined())
    run_here(task, 1)
    run_here(task, 1)
    assert store.steps == ["claim", "complete", "claim"]


def test_in_eager_mode_nothing_is_remembered(app: Celery, store: Switch) -> None:
    """Nothing is claimed there."""
    task, runs = failing(app, Declined())
    task.apply((1,))
    assert task.apply((1,)).get() == "run 2"
    assert (runs, store.steps) == ([1, 1], [])


def test_without_letters_it_is_remembered_all_the_same(app: Celery) -> None:
    """``dead_letter`` is another pattern."""

    @app.task(shared=False, name="t")
    @idempotent(key="x", ttl=DAY, remember=Declined)
    def t(x: int) -> None:
        raise Declined

    assert [type(run_here(t, 1).value) for _ in range(2)] == [Declined, FailedBefore]


@pytest.mark.parametrize("error", [FailedBefore("other", "e", "m"), AlreadyFailed("other")])
def test_what_another_task_failed_with_before_is_a_failure_like_any_other(app: Celery, error: Any) -> None:
    """A body that waited for that task, and let it pass, leaves a letter of its own."""
    task, _ = failing(app, error)
    run_here(task, 1)
    assert letters(app) == [type(error).__name__]


def test_the_error_survives_pickle() -> None:
    """And so it arrives in the worker's main process, and from a result backend."""
    error = FailedBefore("shop.charge", "shop.CardDeclined", "no funds")
    again = pickle.loads(pickle.dumps(error))
    assert (again.task, again.error, again.message) == ("shop.charge", "shop.CardDeclined", "no funds")
    assert str(FailedBefore("t", "builtins.ValueError", "")).endswith("not run again: builtins.ValueError")
    assert str(again) == (
        "shop.charge: the key's work failed before, and was not run again: shop.CardDeclined: no funds"
    )


def test_of_a_long_text_the_beginning_is_kept() -> None:
    """And whatever a text holds, or raises, can be kept."""

    class Hostile(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert failure_in(encoded("0a", Declined("x" * 5000))) == (f"{__name__}.Declined", "x" * 2000)
    assert failure_in(encoded("0a", Declined("\udc80 ☂"))) == (f"{__name__}.Declined", "\udc80 ☂")
    assert "cannot be shown" in str(failure_in(encoded("0a", Hostile())))
    assert failure_in(b'"!"') is None


def test_a_record_of_a_kind_that_is_not_known_is_no_result(app: Celery, store: Switch) -> None:
    """Who does not know what a later release has recorded fails, and neither runs the body nor returns anything."""
    task, runs = failing(app)
    run_here(task, 1)
    ((key, record),) = store._records.items()
    store._records[key] = replace(record, result=b'?["later"]')
    outcome = run_here(task, 1)
    assert (outcome.state, isinstance(outcome.value, ValueError), runs) == ("FAILURE", True, [1])


@pytest.mark.parametrize("wrong", [0, 1, 1023, -1, True, "1 MiB", 2048.0])
def test_a_limit_is_a_number_of_bytes(wrong: Any) -> None:
    """At least 1,024, so that what stands for nothing is always kept; anything else is refused when the pattern is built."""
    with pytest.raises(ConfigurationError) as caught:
        idempotent(key="x", ttl=DAY, max_result_bytes=wrong)
    assert str(caught.value) == f"expected max_result_bytes to be at least 1024, or None for no limit, got {wrong!r}"


@pytest.mark.parametrize(
    ("limit", "size", "kept"), [(1024, 1024, True), (1024, 1025, False), (None, 2_000_000, True), ({}, 1_048_576, True)]
)
def test_a_result_is_kept_up_to_its_limit(app: Celery, caplog: Any, limit: Any, size: int, kept: bool) -> None:
    """In bytes of JSON. The first caller gets a larger one, too; the work is done, and a duplicate is told why."""
    options = {} if limit == {} else {"max_result_bytes": limit}
    result = "é" * ((size - 2) // 2) + "x" * (size % 2)  # two bytes each, and the quotes

    def work(x: int) -> str:
        return result

    task = keyed(app, work, **options)
    assert run_here(task, 1).value == result
    told = [event.fields for event in events(caplog) if event.name == "result_not_kept"]
    duplicate = run_here(task, 1).value
    if kept:
        assert (duplicate, told) == (result, [])
    else:
        assert type(duplicate) is ResultNotKept
        assert str(duplicate) == (
            "work: the key's work is done, but its result was not kept: it could not be stored as JSON, or was larger "
            "than max_result_bytes"
        )
        (one,) = told
        assert (one["bytes"], one["max_result_bytes"], one["result_type"]) == (size, limit, "str")
        assert one["reason"] == "it is larger than max_result_bytes"


def test_by_default_a_mebibyte_is_kept(app: Celery) -> None:
    """And not a byte more."""

    def work(x: int) -> str:
        return "x" * (1_048_576 - 2 + x)

    task = keyed(app, work)
    run_here(task, 0), run_here(task, 1)
    assert len(run_here(task, 0).value) == 1_048_574
    assert type(run_here(task, 1).value) is ResultNotKept


@pytest.mark.parametrize("result", [None, False, 0, "", [], {}])
def test_what_stands_for_nothing_is_kept(app: Celery, result: Any) -> None:
    """Whatever the limit."""
    runs = []

    def work(x: int) -> Any:
        runs.append(x)
        return result

    task = keyed(app, work, max_result_bytes=1024)
    assert [run_here(task, 1).value for _ in range(2)] == [result, result]
    assert runs == [1]


def test_why_a_result_is_no_json_is_told_too(app: Celery, caplog: Any) -> None:
    """By the same event, at the same level."""

    def work(x: int) -> Any:
        return {1, 2}

    run_here(keyed(app, work), 1)
    (one,) = [record for record in caplog.records if isinstance(record.msg, Event) and "kept" in record.msg.name]
    assert (one.levelname, one.msg.fields["reason"]) == ("WARNING", "it cannot be stored as JSON")
    assert "bytes" not in one.msg.fields


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_on_a_worker(shop: Floor) -> None:
    """Two of three calls fail without a run, and one letter stands, whose replay does the work."""
    shop.worker()
    task = shop.task("declined")
    with pytest.raises(PermissionError, match="o-1 was declined"):
        task.delay("o-1").get(timeout=20)
    for _ in range(2):
        with pytest.raises(FailedBefore) as caught:
            task.delay("o-1").get(timeout=20)
        assert (caught.value.error, caught.value.message) == ("builtins.PermissionError", "o-1 was declined")
    assert [letter.error for letter in shop.letters()] == ["builtins.PermissionError"]
    shop.traces.set("mended")
    shelf = dead_letters(shop.app, shop.dead)
    assert shelf.replay(shop.letters()[0].id).get(timeout=20) == "mended o-1"
    assert task.delay("o-1").get(timeout=20) == "mended o-1"
    assert shop.traces.count("declined") == 2


@pytest.mark.parametrize("point", ["complete.before", "complete.after"])
def test_killed_around_its_record(shop: Floor, point: str) -> None:
    """One letter is listed, and the body is not run again once the failure is recorded; its replay is."""
    sent = _run_with_crash(shop, point, "child", lambda: shop.task("declined").delay("o-1"))
    with pytest.raises(Exception, match="o-1 was declined"):
        sent.get(timeout=150)
    shop.wait(lambda: len(shop.letters()) == 1, 30, "one letter")
    assert shop.traces.count("declined") == (1 if point == "complete.after" else 2)
    shop.traces.set("mended")
    shelf = dead_letters(shop.app, shop.dead)
    assert [shelf.replay(one).get(timeout=60) for one in list(shelf)] == ["mended o-1"]
    assert shop.letters() == []
