"""The pattern ``retry``: what is tried again, when, how often, and what travels to the next attempt."""

from __future__ import annotations

import collections
import json
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import pydantic
import pytest
import tenacity
from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery
from celery.exceptions import Ignore, MaxRetriesExceededError, Reject
from kombu import Exchange, Queue
from kombu.utils.encoding import bytes_to_str

import celery_patterns as patterns
from celery_patterns import retry
from celery_patterns._message import HEADER
from celery_patterns._retry import DEFAULT_WAIT
from celery_patterns.exceptions import AttemptTooLate, OutOfMemory, UnsafeValue

from .here import Outcome, run_here

NONE = tenacity.wait_none()


@pytest.fixture
def app(database: str) -> Any:
    made = Celery("retry", broker=database, backend="cache+memory://", set_as_current=False)
    patterns.use_patterns(made)
    patterns.use_strict_json(made)
    yield made
    made.close()


def published(app: Celery, queue: str = "celery") -> list[dict[str, Any]]:
    """The messages that stand in the queue, oldest first."""
    with app.connection_for_read() as connection:
        raw = connection.default_channel.client.lrange(queue, 0, -1)
    return [json.loads(bytes_to_str(message)) for message in reversed(raw)]


def body_of(message: dict[str, Any]) -> Any:
    import base64

    return json.loads(base64.b64decode(message["body"]))


def raising(app: Celery, error: Any, **options: Any) -> Any:
    @app.task(shared=False, name=f"t{len(app._tasks)}", bind=True)
    @retry(**{"wait": NONE, "attempts": 3, **options})
    def task(self: Any, *args: Any, **kwargs: Any) -> None:
        raise error() if callable(error) else error

    return task


class Named(ConnectionError): ...


class Model(pydantic.BaseModel):
    x: int


def validation_error() -> Exception:
    try:
        Model(x="no")  # type: ignore[arg-type]
    except pydantic.ValidationError as error:
        return error
    raise AssertionError


CASES = [
    (ConnectionError, ConnectionError, True),
    (ConnectionError, Named, True),
    ((KeyError, OSError), Named, True),
    (ConnectionError, ValueError, False),
    (Exception, ValueError, True),
    (Exception, SoftTimeLimitExceeded, False),
    (SoftTimeLimitExceeded, SoftTimeLimitExceeded, True),
    ((Exception, SoftTimeLimitExceeded), SoftTimeLimitExceeded, True),
    (Exception, validation_error, False),
    (ValueError, validation_error, False),
    (pydantic.ValidationError, validation_error, True),
    (Exception, lambda: UnsafeValue("a", "b"), False),
    (UnsafeValue, lambda: UnsafeValue("a", "b"), True),
    (lambda error: "later" in str(error), lambda: ValueError("later"), True),
    (lambda error: "later" in str(error), lambda: ValueError("never"), False),
    (tenacity.retry_if_exception_type(OSError), Named, True),
    (tenacity.retry_if_exception_type(), SoftTimeLimitExceeded, False),
    (tenacity.retry_if_not_exception_type(OSError), Named, False),
    (tenacity.retry_if_exception_message(match="later"), lambda: ValueError("later"), True),
    (tenacity.retry_if_exception(lambda error: True) & tenacity.retry_if_exception_type(OSError), KeyError, False),
]


@pytest.mark.parametrize(("on", "error", "again"), CASES, ids=[str(index) for index in range(len(CASES))])
def test_what_is_tried_again(app: Celery, on: Any, error: Any, again: bool) -> None:
    """Types, predicates and tenacity's own; soft limits, validation and our own errors only when named."""
    outcome = run_here(raising(app, error, on=on), 1)
    assert outcome.state == ("RETRY" if again else "FAILURE")
    assert len(published(app)) == again


@pytest.mark.parametrize("signal", [Ignore(), Reject("no", requeue=False)])
def test_control_flow_passes_untouched(app: Celery, signal: Exception) -> None:
    """``Ignore`` and ``Reject`` are Celery's own words, and are not retried by ``on=Exception``."""
    outcome = run_here(raising(app, signal, on=Exception), 1)
    assert outcome.state in ("IGNORED", "REJECTED")
    assert published(app) == []


def test_attempts_count_the_first_and_the_last_error_arrives_as_itself(app: Celery) -> None:
    """``attempts=3`` is three runs; the third one's error is the task's."""
    task = raising(app, Named, on=OSError)
    assert [run_here(task, retries=n).state for n in range(3)] == ["RETRY", "RETRY", "FAILURE"]
    assert isinstance(run_here(task, retries=2).value, Named)
    assert len(published(app)) == 2


def test_the_next_attempt_is_the_same_message(app: Celery) -> None:
    """Id, arguments as received, links, chord, headers and limits go with it; the broker's notes do not."""

    @app.task(shared=False, name="spoils")
    @retry(on=OSError, wait=tenacity.wait_fixed(7))
    def spoils(basket: list[str], **more: Any) -> None:
        basket.append("spoiled")
        more["also"].clear()
        raise OSError

    link = app.signature("after")
    run_here(
        spoils,
        ["egg"],
        also={"deep": [1]},
        task_id="id-1",
        headers={
            "custom": "kept",
            "x-death": [1],
            "x-delivery-count": 4,
            "x-first-death-queue": "q",
            "root_id": "root",
            "parent_id": "mother",
            "group": "g-1",
            "group_index": 2,
            "timelimit": [9, 8],
            "callbacks": [link],
            "chord": {"task": "c"},
        },
    )
    (message,) = published(app)
    args, kwargs, embed = body_of(message)
    headers = message["headers"]
    assert (args, kwargs) == ([["egg"]], {"also": {"deep": [1]}})
    assert embed["callbacks"][0]["task"] == "after"
    assert embed["chord"] == {"task": "c"}
    assert {
        name: headers[name] for name in ("id", "retries", "custom", "root_id", "parent_id", "group", "group_index")
    } == {
        "id": "id-1",
        "retries": 1,
        "custom": "kept",
        "root_id": "root",
        "parent_id": "mother",
        "group": "g-1",
        "group_index": 2,
    }
    assert headers["timelimit"] == [9, 8]
    assert not [name for name in headers if name.startswith("x-")]
    assert headers["eta"]


def test_history_and_first_start_travel(app: Celery) -> None:
    """The header remembers when the first attempt started, what was waited, the first and the last seven errors, and counts."""
    task = raising(app, Named("a secret"), on=OSError, attempts=50, wait=tenacity.wait_fixed(3))
    carried: dict[str, Any] = {}
    for attempt in range(14):
        run_here(task, retries=attempt, headers={HEADER: carried} if carried else {})
        carried = published(app)[-1]["headers"][HEADER]
        if attempt == 0:
            first = carried["started"]
    assert carried["started"] == first
    assert carried["waited"] == 14 * 3
    assert [one["attempt"] for one in carried["history"]] == [1, *range(8, 15)]
    assert list(carried["errors"].values()) == [14]
    assert "secret" not in json.dumps(carried)
    assert len(json.dumps(carried)) < 4096


def test_no_attempt_starts_after_within(app: Celery) -> None:
    """Neither is one scheduled that would, nor is one run that was delivered too late."""
    task = raising(app, Named, on=OSError, attempts=9, within=timedelta(seconds=60), wait=tenacity.wait_fixed(30))
    now = time.time()
    assert run_here(task, headers={HEADER: {"started": now - 20}}, retries=1).state == "RETRY"
    last = run_here(task, headers={HEADER: {"started": now - 40}}, retries=1)
    assert (last.state, type(last.value)) == ("FAILURE", Named)
    late = run_here(task, headers={HEADER: {"started": now - 61, "history": [{"error": "x.Named"}]}}, retries=1)
    assert isinstance(late.value, AttemptTooLate)
    assert "failed with x.Named" in str(late.value)


@pytest.mark.parametrize(
    ("wait", "seconds"),
    [
        (tenacity.wait_none(), 0),
        (tenacity.wait_fixed(0.2), 1),
        (tenacity.wait_fixed(2.0), 2),
        (tenacity.wait_fixed(timedelta(seconds=2.1)), 3),
        (tenacity.wait_incrementing(start=5, increment=5), 10),
        (tenacity.wait_exponential(multiplier=1), 2),
        (tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_fixed(9)), 9),
        (tenacity.wait_fixed(1) + tenacity.wait_fixed(2), 3),
        *([(tenacity.wait_exception(lambda error: 4), 4)] if hasattr(tenacity, "wait_exception") else []),  # since 9.1
        (lambda state: state.attempt_number * 11, 22),
        (lambda state: timedelta(minutes=1), 60),
        (lambda state: state.idle_for, 5),
        (lambda state: round(state.seconds_since_start), 100),
        (lambda state: len(str(state.outcome.exception())), 4),
        (lambda state: len(state.args), 1),
    ],
)
def test_tenacitys_waits_on_a_rebuilt_state(app: Celery, wait: Any, seconds: int) -> None:
    """Tenacity is asked as if it had kept the task in its own loop; the answer is rounded up to whole seconds."""
    carried = {"started": time.time() - 100, "waited": 5}
    run_here(
        raising(app, lambda: OSError("long"), on=OSError, wait=wait, attempts=9),
        "one",
        retries=1,
        headers={HEADER: carried},
    )
    assert published(app)[-1]["headers"][HEADER]["waited"] - 5 == seconds


@pytest.mark.parametrize(
    ("stop", "stops"),
    [
        (tenacity.stop_after_attempt(2), True),
        (tenacity.stop_after_attempt(3), False),
        (tenacity.stop_after_delay(90), True),
        (tenacity.stop_before_delay(105), True),
        (tenacity.stop_before_delay(120), False),
        (tenacity.stop_after_attempt(9) | tenacity.stop_after_delay(90), True),
        (lambda state: isinstance(state.outcome.exception(), Named), True),
    ],
)
def test_tenacitys_stops(app: Celery, stop: Any, stops: bool) -> None:
    """``stop`` is one more reason to stop, and sees the wait that would come."""
    task = raising(app, Named, on=OSError, attempts=9, wait=tenacity.wait_fixed(10), stop=stop)
    outcome = run_here(task, retries=1, headers={HEADER: {"started": time.time() - 100}})
    assert outcome.state == ("FAILURE" if stops else "RETRY")


def test_the_default_schedule() -> None:
    """Full jitter with a floor: 1 to 4 seconds, then 8, 16, 32, and never more than 300."""
    for attempt, highest in ((1, 4), (2, 8), (3, 16), (4, 32), (20, 300)):
        state = tenacity.RetryCallState(None, None, (), {})  # type: ignore[arg-type]
        state.attempt_number = attempt
        waits = [DEFAULT_WAIT(state) for _ in range(2000)]
        assert 1 <= min(waits) < 1 + highest / 10
        assert highest * 0.9 < max(waits) <= highest
        assert abs(sum(waits) / 2000 - (1 + highest) / 2) < highest / 12


@pytest.mark.parametrize("broken", ["wait", "stop", "on"])
@pytest.mark.parametrize("how", ["raises", "nonsense"])
def test_a_broken_policy_never_loses_the_task(app: Celery, caplog: Any, broken: str, how: str) -> None:
    """A policy that raises, or waits for NaN seconds, is logged; the body's own error is the task's end."""

    def policy(_: Any) -> Any:
        if how == "raises" or broken != "wait":
            raise ZeroDivisionError
        return float("nan")

    outcome = run_here(raising(app, Named, **{"on": OSError, broken: policy}))
    assert isinstance(outcome.value, Named)
    assert "retry_policy_failed" in caplog.text


def test_memory_error_is_contained(app: Celery) -> None:
    """It is retried if wanted, and in the end is an error that does not end the worker."""
    assert run_here(raising(app, MemoryError, on=MemoryError)).state == "RETRY"
    assert isinstance(run_here(raising(app, MemoryError, on=OSError)).value, OutOfMemory)


def test_a_body_may_ask_by_itself(app: Celery) -> None:
    """``self.retry()`` counts against the same attempts, and its message carries our header and its own."""

    @app.task(shared=False, name="asks", bind=True)
    @retry(on=OSError, attempts=3)
    def asks(self: Any, x: list[int]) -> None:
        x.append(2)
        raise self.retry(countdown=0.5, headers={"extra": "yes"})

    states = [run_here(asks, [1], retries=n, headers={"custom": "kept"}) for n in range(3)]
    assert [outcome.state for outcome in states] == ["RETRY", "RETRY", "FAILURE"]
    assert isinstance(states[-1].value, MaxRetriesExceededError)
    assert "[1" not in str(states[-1].value)
    message = published(app)[0]
    assert body_of(message)[0] == [[1]]
    assert (message["headers"]["custom"], message["headers"]["extra"]) == ("kept", "yes")
    assert message["headers"][HEADER]["history"]


def test_a_body_cannot_ask_for_more_than_the_policy_gives(app: Celery) -> None:
    """``self.retry(max_retries=50)`` is held to the pattern's attempts; fewer are honoured."""

    @app.task(shared=False, name="greedy", bind=True)
    @retry(on=OSError, attempts=3)
    def greedy(self: Any, most: int) -> None:
        raise self.retry(countdown=0, max_retries=most)

    assert [run_here(greedy, 50, retries=n).state for n in (1, 2)] == ["RETRY", "FAILURE"]
    assert [run_here(greedy, 1, retries=n).state for n in (0, 1)] == ["RETRY", "FAILURE"]


def test_a_body_may_ask_with_other_arguments(app: Celery) -> None:
    """``self.retry(args=…)`` sends what it says."""

    @app.task(shared=False, name="pages", bind=True)
    @retry(on=OSError, attempts=3)
    def pages(self: Any, page: int) -> None:
        raise self.retry(args=(page + 1,), countdown=0)

    run_here(pages, 1)
    assert body_of(published(app)[0])[0] == [2]


def test_a_body_that_asks_and_goes_on(app: Celery) -> None:
    """With ``throw=False``, or when the body catches its own ``Retry``, the attempt is published when the body is over."""

    @app.task(shared=False, name="goes_on", bind=True)
    @retry(on=OSError, attempts=3)
    def goes_on(self: Any) -> int:
        self.retry(countdown=0, throw=False)
        assert published(app) == []
        return 5

    assert run_here(goes_on).value == 5
    assert len(published(app)) == 1


def test_a_retry_without_a_message_is_passed_on(app: Celery) -> None:
    """``raise Retry()`` by hand publishes nothing in Celery, and nothing here."""
    from celery.exceptions import Retry

    assert run_here(raising(app, lambda: Retry("by hand"), on=OSError)).state == "RETRY"
    assert published(app) == []


def test_nothing_is_kept_on_the_task(app: Celery) -> None:
    """One message's budget is not another's: the task object is as it was."""
    task = raising(app, Named, on=OSError)
    before = dict(task.__dict__)
    for _ in range(5):
        run_here(task, retries=2)
    assert task.__dict__ == before
    assert run_here(task).state == "RETRY"


def test_values_that_a_looser_producer_sent_are_retried(app: Celery) -> None:
    """What arrived once can be sent again, also when ``.delay()`` would refuse it here."""
    task = raising(app, Named, on=OSError)
    assert run_here(task, float("nan")).state == "RETRY"
    assert len(published(app)) == 1


def test_thousand_failures_do_not_come_back_together(app: Celery) -> None:
    """A thousand first failures are spread over the schedule, and not in one second."""
    state = tenacity.RetryCallState(None, None, (), {})  # type: ignore[arg-type]
    state.attempt_number = 3
    from celery_patterns._republish import whole_seconds

    seconds = collections.Counter(whole_seconds(DEFAULT_WAIT(state)) for _ in range(1000))
    assert max(seconds.values()) < 2 * 1000 / 15


def test_outcome_helper_tells_results(app: Celery) -> None:
    """The helper these tests use runs Celery's own tracer."""
    task = app.task(shared=False, name="plain")(_plain)
    outcome = run_here(task, 2)
    assert isinstance(outcome, Outcome)
    assert (outcome.state, outcome.value) == ("SUCCESS", 2)


def _plain(x: int) -> int:
    return x


@pytest.mark.parametrize(("ahead", "state"), [(timedelta(minutes=1), "RETRY"), (timedelta(hours=2), "FAILURE")])
def test_an_eta_of_the_body_is_held_against_within(app: Celery, ahead: timedelta, state: str) -> None:
    """``self.retry(eta=…)`` after ``within`` is no attempt that may start."""

    @app.task(shared=False, name="t", bind=True)
    @retry(on=OSError, attempts=3, within=timedelta(hours=1))
    def t(self: Any) -> None:
        raise self.retry(eta=datetime.now(timezone.utc) + ahead, exc=OSError("busy"))

    outcome = run_here(t)
    assert outcome.state == state
    assert len(published(app)) == (state == "RETRY")


def test_a_naive_eta_is_utc(app: Celery, monkeypatch: Any) -> None:
    """As for Celery, wherever the worker stands: one hour ahead is within two."""
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:

        @app.task(shared=False, name="t", bind=True)
        @retry(on=OSError, attempts=3, within=timedelta(hours=2))
        def t(self: Any) -> None:
            raise self.retry(
                eta=datetime.now(timezone.utc).replace(tzinfo=None) + timedelta(hours=1), exc=OSError("busy")
            )

        assert run_here(t).state == "RETRY"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("fails", [False, True])
def test_what_was_asked_for_too_late_is_dropped(app: Celery, caplog: Any, fails: bool) -> None:
    """With ``throw=False`` too: no attempt is published that may not start."""
    caplog.set_level("INFO", "celery_patterns")

    @app.task(shared=False, name="t", bind=True)
    @retry(on=OSError, attempts=3, within=timedelta(seconds=5))
    def t(self: Any) -> str:
        self.retry(countdown=9, throw=False)
        if fails:
            raise ValueError("no")
        return "done"

    assert run_here(t).state == ("FAILURE" if fails else "SUCCESS")
    assert published(app) == []
    assert [record.msg.fields["limit"] for record in caplog.records if record.name == "celery_patterns"] == ["within"]


@pytest.mark.parametrize("leaves", [Ignore(), Reject("no", requeue=False), Reject("again", requeue=True)])
def test_asking_and_then_leaving_is_one_next_attempt(app: Celery, leaves: Exception) -> None:
    """``self.retry(throw=False)`` and then ``Ignore`` is ignored; what it rejects is neither buried nor back beside it."""

    @app.task(shared=False, name="t", bind=True)
    @retry(on=OSError, attempts=3)
    def t(self: Any) -> None:
        self.retry(throw=False, countdown=0)
        raise leaves

    assert run_here(t).state == ("IGNORED" if isinstance(leaves, Ignore) else "RETRY")
    assert [message["headers"]["retries"] for message in published(app)] == [1]


def test_a_retry_goes_back_to_its_queue_and_leaves_that_as_it_was(app: Celery) -> None:
    """By the key it came by, without a declaration: a user's queue gets no binding from us."""
    exchange = Exchange("shop", type="topic")
    orders = Queue("orders", exchange, routing_key="orders.#")
    app.amqp.queues.add(orders)
    with app.connection_for_write() as connection:
        orders(connection.default_channel).declare()
        client = connection.default_channel.client
        bound = client.smembers("_kombu.binding.shop")

        @app.task(shared=False, name="t")
        @retry(on=OSError, attempts=2, wait=NONE)
        def t() -> None:
            raise OSError("busy")

        run_here(t, headers={"delivery_info": {"exchange": "shop", "routing_key": "orders.eu", "redelivered": False}})
        assert client.smembers("_kombu.binding.shop") == bound
    (message,) = published(app, "orders")
    came_by = message["properties"]["delivery_info"]
    assert (came_by["exchange"], came_by["routing_key"]) == ("shop", "orders.eu")
    assert published(app) == []


def test_a_body_may_send_its_retry_to_another_queue(app: Celery) -> None:
    """``self.retry(queue=…)``: there, made when it is missing, as in Celery."""
    app.amqp.queues.add(Queue("orders", Exchange("shop", type="topic"), routing_key="orders.#"))

    @app.task(shared=False, name="t", bind=True)
    @retry(on=OSError, attempts=2)
    def t(self: Any) -> None:
        raise self.retry(queue="elsewhere", countdown=0)

    run_here(t, headers={"delivery_info": {"exchange": "shop", "routing_key": "orders.eu", "redelivered": False}})
    assert [message["headers"]["retries"] for message in published(app, "elsewhere")] == [1]
