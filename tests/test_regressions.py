"""Mistakes that were found by trying to break the library; each stays here by name."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from collections import Counter, OrderedDict
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import redis
from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery, Task, _state, chain, chord, group
from celery.app.control import Inspect
from celery.exceptions import Reject
from kombu import Exchange, Queue
from kombu.utils import json as kombu_json
from tenacity import wait_none

import celery_patterns as patterns
from celery_patterns import _bury, _dead_letter, dead_letter, dead_letters, idempotent, logged, retry
from celery_patterns._equipment import equipment_of
from celery_patterns._events import Event
from celery_patterns._keys import canonical, digest
from celery_patterns._message import HEADER
from celery_patterns._publish import Publisher
from celery_patterns.exceptions import (
    BodyAborted,
    ConfigurationError,
    InvalidKey,
    PublishFailed,
    ResultNotKept,
    StoreUnavailable,
    TooManyCrashes,
    UnsafeValue,
)
from celery_patterns.stores import MemoryStore, RedisStore
from celery_patterns.typing import Attempt, Claimed, Done

from .harness import Floor
from .here import run_here
from .servers import free_port
from .test_retry import body_of, published

DAY = timedelta(days=1)


@pytest.fixture
def app(database: str) -> Any:
    made = Celery("regressions", broker=database, backend="cache+memory://", set_as_current=False)
    patterns.use_patterns(made)
    patterns.use_store(made, MemoryStore())
    yield made
    made.close()


def letters(app: Celery) -> list[Any]:
    return list(dead_letters(app, "dead"))


def test_an_error_that_cannot_be_shown_leaves_its_letter(app: Celery) -> None:
    """``__str__`` raises: the letter is written, and the task's error stays its own."""

    class Shy(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    @app.task(shared=False, name="t")
    @dead_letter("dead")
    def t() -> None:
        raise Shy

    outcome = run_here(t)
    assert outcome.state == "FAILURE"
    assert letters(app)[0].message == "<its text cannot be shown: RuntimeError>"


def test_what_is_no_exception_is_a_failure_with_a_letter(app: Celery) -> None:
    """``asyncio.CancelledError`` out of the body: Celery knows no end for it; here it is one, and the key is free."""

    @app.task(shared=False, name="t")
    @idempotent(key="x", ttl=DAY)
    @dead_letter("dead")
    def t(x: int) -> None:
        raise asyncio.CancelledError

    assert isinstance(run_here(t, 1, task_id="a").value, BodyAborted)
    assert isinstance(run_here(t, 1, task_id="b").value, BodyAborted)
    assert len(letters(app)) == 2


def test_arguments_of_another_content_type_are_sent_again_and_buried(app: Celery) -> None:
    """A message that came in a looser content type than the task's own is retried and buried whole."""
    app.conf.accept_content = ["json", "yaml"]

    @app.task(shared=False, name="t")
    @retry(on=OSError, attempts=2, wait=wait_none())
    @dead_letter("dead")
    def t(x: Any) -> None:
        raise OSError

    odd = {1: b"bytes", "nested": {2: 3}}
    assert run_here(t, odd, headers={"properties": {"content_type": "application/x-yaml"}}).state == "RETRY"
    assert published(app)[-1]["content-type"] == "application/x-yaml"
    run_here(t, odd, retries=1, headers={"properties": {"content_type": "application/x-yaml"}})
    assert letters(app)


def test_a_result_that_strict_json_would_refuse_is_handed_on(shop: Floor) -> None:
    """A tuple returned by a finished step goes to the next one as Celery would send it, and the step is a success."""
    shop.worker()
    note, slow = shop.task("note"), shop.task("slow_keyed")
    result = chain(slow.s("o-1", result={"a": [1]}), shop.task("as_tuple").s(), note.s()).delay()
    assert result.get(timeout=20) == {"pair": [1, 2]}
    shop.task("as_tuple").apply_async((1,), link=note.s("linked"))
    shop.wait(lambda: shop.traces.count("linked") == 1 or shop.traces.count("noted") == 2, what="the link")


@pytest.mark.parametrize("member", ["as_nan", "as_nan_plain"])
def test_a_result_that_strict_json_would_refuse_reaches_a_chords_callback(shop: Floor, member: str) -> None:
    """Celery sends the callback with the members' results, which are done; the callback says nothing of a parent."""
    shop.worker()
    chord([shop.task(member).s(1), shop.task("add").s(1, 1)], shop.task("note").s("told")).delay()
    shop.wait(lambda: shop.traces.count("told"), 30, "the callback")
    assert str(shop.traces.all("told")[0]) == "[nan, 2]"


@pytest.mark.parametrize("wears", [(), (retry(on=OSError),)])
@pytest.mark.parametrize("shape", ["link", "link to a chain", "chain", "group", "chord"])
def test_what_celery_calls_with_a_result_is_not_refused(
    app: Celery, shape: str, wears: tuple[Any, ...], monkeypatch: Any
) -> None:
    """The work is done: a result that makes no key is the next one's failure, and not this one's."""

    @app.task(shared=False, name="next")
    @idempotent(key="x", ttl=DAY)
    def following(x: Any) -> None: ...

    @app.task(shared=False, name="done", patterns=wears)
    def done() -> float:
        return 0.5

    monkeypatch.setattr(_state._tls, "current_app", app)  # what embedded signatures belong to, as in a worker
    step = following.s()
    links = {"link": step, "link to a chain": chain(step, step)}
    steps = {"chain": step, "group": group(chain(step, step), step), "chord": chord([chain(step, step), step], step)}
    embedded = {"callbacks": [links[shape]]} if shape in links else {"chain": [steps[shape]]}
    assert run_here(done, headers=kombu_json.loads(kombu_json.dumps(embedded))).state == "SUCCESS"
    assert published(app)


def test_a_call_is_checked_inside_a_task_too(app: Celery) -> None:
    """A key that cannot be made is refused in the body that calls."""

    @app.task(shared=False, name="child")
    @idempotent(key="x", ttl=DAY)
    def child(x: Any) -> None: ...

    @app.task(shared=False, name="parent")
    @retry(on=OSError)
    def parent() -> None:
        child.delay(0.5)

    assert isinstance(run_here(parent).value, InvalidKey)
    assert published(app) == []


def test_a_retry_with_some_arguments_of_its_own(app: Celery) -> None:
    """What ``self.retry()`` does not name is sent as it was received, whatever the body did to it."""

    @app.task(shared=False, name="t", bind=True)
    @retry(on=OSError, attempts=3)
    def t(self: Any, items: list[str], *, note: str = "") -> None:
        items.append("mutated")
        raise self.retry(kwargs={"note": "again"}, countdown=0)

    assert run_here(t, ["a"]).state == "RETRY"
    assert body_of(published(app)[-1])[:2] == [[["a"]], {"note": "again"}]


def test_a_letter_says_nothing_that_is_not_known(app: Celery) -> None:
    """What crashed too often was not started by the delivery that buries it; and no task has sent itself."""

    @app.task(shared=False, name="t")
    @dead_letter("dead")
    def t() -> None:
        raise ValueError

    key = _dead_letter.starts_key("t", "crashed/0", 1)
    for owner in "abc":
        equipment_of(app).store.count_start(key, owner, ttl=DAY)
    run_here(t, task_id="crashed", redelivered=True)
    run_here(t, task_id="retried", retries=1, headers={"parent_id": "retried"})
    run_here(t, task_id="sent", headers={"parent_id": "parent"})
    crashed, retried, sent = letters(app)
    assert (crashed.reason, crashed.first_started, crashed.parent_id) == ("crashed", None, None)
    assert (retried.parent_id, sent.parent_id) == (None, "parent")
    assert sent.first_started is not None


def test_remote_control_speaks(shop: Floor) -> None:
    """``inspect`` and its answers do not go through the strict encoder."""
    worker = shop.worker()
    inspect = Inspect(app=shop.app, timeout=3)
    for ask in (inspect.stats, inspect.registered, inspect.active, inspect.conf):
        assert shop.wait(ask, 20, f"an answer to {ask.__name__}")
    assert "Control command error" not in worker.text()


def test_an_interrupted_step_does_not_answer_the_next(database: str, monkeypatch: Any) -> None:
    """A time limit between question and answer: the next step gets its own answer, on a connection of its own."""
    store = RedisStore(database)
    me = Attempt("a/0", 0, "me")
    held = store.claim("k1", me, "fp", lease=DAY, ttl=DAY)
    assert isinstance(held, Claimed)
    connection = store._server._free[-1]
    send = connection.send_packed_command

    def interrupted(*words: Any) -> None:
        send(*words)
        raise KeyboardInterrupt

    monkeypatch.setattr(connection, "send_packed_command", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.complete("k1", me, "fp", held.fence, b'"result of k1"', ttl=DAY)
    assert isinstance(store.claim("k2", me, "fp", lease=DAY, ttl=DAY), Claimed)
    assert store.claim("k1", Attempt("b/0", 0, "you"), "fp", lease=DAY, ttl=DAY) == Done(b'"result of k1"')


def test_a_message_that_never_ran_is_not_buried(app: Celery) -> None:
    """``max_crashes=1``: what comes back unstarted is run, and only then counts."""
    runs = []

    @app.task(shared=False, name="t")
    @dead_letter("dead", max_crashes=1)
    def t() -> None:
        runs.append(1)

    run_here(t, redelivered=True)
    assert runs == [1]
    assert letters(app) == []


def test_a_queue_that_refuses_for_good_makes_no_hot_loop(app: Celery, monkeypatch: Any) -> None:
    """The message goes back after a pause, and its starts are not forgotten."""
    monkeypatch.setattr(_dead_letter, "REFUSED_PAUSE", 0.5)
    monkeypatch.setattr(_bury, "ensure_queue", _refuses)

    @app.task(shared=False, name="t")
    @dead_letter("dead")
    def t() -> None:
        raise ValueError

    begun = time.monotonic()
    outcome = run_here(t)
    assert (outcome.state, outcome.value.requeue) == ("REJECTED", True)
    assert time.monotonic() - begun >= 0.5


def _refuses(*_: Any) -> None:
    raise ConfigurationError("for good")


def test_logged_shows_the_argument_it_names(app: Celery, caplog: Any) -> None:
    """Keyword-only and positional-only parameters are not taken for one another."""
    caplog.set_level("INFO", "celery_patterns")

    @app.task(shared=False, name="kwonly")
    @logged("order_id")
    def kwonly(*args: Any, order_id: str | None = None) -> None: ...

    @app.task(shared=False, name="posonly", typing=False)
    @logged("a")
    def posonly(a: int, /, **kw: Any) -> None: ...

    run_here(kwonly, "SECRET")
    run_here(posonly, 1, a="SECRET")
    shown = [record.msg.fields for record in caplog.records if isinstance(record.msg, Event)]
    assert (shown[0]["order_id"], shown[1]["a"]) == (None, 1)


def test_an_integer_of_thousands_of_digits(app: Celery) -> None:
    """As a result it is not kept, and the body never runs again; as an argument it is an answer."""
    runs = []

    @app.task(shared=False, name="t")
    @idempotent(key="x", ttl=DAY)
    def t(x: int) -> int:
        runs.append(x)
        return 10**5000

    run_here(t, 1)
    assert isinstance(run_here(t, 1).value, ResultNotKept)
    assert runs == [1]


def test_replay_all_takes_what_stands_there_now(app: Celery) -> None:
    """Letters that are written meanwhile are left for the next time."""

    @app.task(shared=False, name="t")
    @dead_letter("dead")
    def t(x: int) -> None:
        raise ValueError

    for n in range(5):
        run_here(t, n)
    found = dead_letters(app, "dead")
    assert found.replay_all(on_each=lambda *_: run_here(t, 99)).sent == 5
    assert found.count() == 5


def test_letters_behind_a_global_key_prefix(database: str) -> None:
    """``global_keyprefix`` on a Redis broker: letters are seen, and replayed."""
    app = Celery("prefixed", broker=database, backend="cache+memory://", set_as_current=False)
    patterns.use_patterns(app)
    patterns.use_store(app, MemoryStore())
    app.conf.broker_transport_options = {"global_keyprefix": "pp_"}

    @app.task(shared=False, name="t")
    @dead_letter("dead")
    def t(x: int) -> None:
        raise ValueError

    run_here(t, 1)
    found = dead_letters(app, "dead")
    assert found.count() == 1
    assert found.replay_all().sent == 1
    assert found.count() == 0
    assert redis.Redis.from_url(database).llen("pp_celery") == 1


def test_junk_in_a_dead_letter_list_is_passed_over(app: Celery, database: str) -> None:
    """One entry that nobody can read does not hide the others."""

    @app.task(shared=False, name="t")
    @dead_letter("dead")
    def t() -> None:
        raise ValueError

    run_here(t)
    redis.Redis.from_url(database).lpush("dead", "junk", "{}", "[1]")
    assert len(letters(app)) == 1


def test_patterns_listed_on_a_plain_base_are_refused(app: Celery) -> None:
    """``patterns=`` on a task whose class cannot wear them is not silently absent."""
    task = app.task(shared=False, name="t", base=Task, patterns=(logged(),))(_body)
    app.finalize()
    with pytest.raises(ConfigurationError, match="not a PatternTask"):
        task.delay()


def _body() -> None: ...


def test_a_task_id_of_ones_own_can_be_sent_again_after_a_failure(app: Celery) -> None:
    """Somebody who chooses the id, and sends it again when the bug is fixed, is served."""
    runs = []

    @app.task(shared=False, name="t")
    @idempotent(key="x", ttl=DAY)
    def t(x: int) -> str:
        runs.append(x)
        if len(runs) == 1:
            raise ValueError
        return "done"

    assert run_here(t, 1, task_id="order-1").state == "FAILURE"
    assert run_here(t, 1, task_id="order-1").value == "done"


def _keyed(x: int) -> None: ...


def test_annotations_are_the_users_word(database: str) -> None:
    """``task_annotations`` may say that a task is acknowledged early."""
    app = Celery("annotated", broker=database, set_as_current=False)
    patterns.use_patterns(app)
    app.conf.task_annotations = {"t": {"acks_late": False}}
    task = app.task(shared=False, name="t")(dead_letter()(_body))
    assert not task.acks_late


def test_a_log_file_is_written(tmp_path: Any) -> None:
    """``celery worker --logfile`` gets the JSON lines."""
    import logging

    from celery_patterns._logged import configure_logging

    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    try:
        configure_logging(logging.INFO, str(tmp_path / "worker.log"))
        logging.getLogger("mine").info("hello")
    finally:
        root.handlers[:], level = before
        root.setLevel(level)
    assert '"event":"hello"' in (tmp_path / "worker.log").read_text()


def test_one_task_id_for_other_work_is_another_death(app: Celery) -> None:
    """An id may be chosen, and used again: each death is listed, and replayed."""

    @app.task(shared=False, name="report")
    @dead_letter("dead")
    def report(day: str) -> None:
        raise ValueError

    run_here(report, "monday", task_id="daily")
    run_here(report, "tuesday", task_id="daily")
    run_here(report, "tuesday", task_id="daily")
    assert len(letters(app)) == 2
    assert dead_letters(app, "dead").replay_all().sent == 2
    assert sorted(body_of(message)[0] for message in published(app)) == [["monday"], ["tuesday"]]


@pytest.mark.parametrize("keyed", [False, True], ids=["without a key", "with a key"])
def test_a_body_that_requeues_itself_did_not_crash(app: Celery, keyed: bool) -> None:
    """``Reject(requeue=True)`` is an end like any other: the starts are counted from it anew."""

    @app.task(shared=False, name="t", patterns=(idempotent(key="x", ttl=DAY),) if keyed else ())
    @dead_letter("dead", max_crashes=2)
    def t(x: int) -> None:
        raise Reject("later", requeue=True)

    for delivery in range(6):
        outcome = run_here(t, 1, task_id="a", redelivered=delivery > 0)
        assert (outcome.state, outcome.value.requeue) == ("REJECTED", True)
    assert letters(app) == []


def test_a_message_that_waited_and_was_killed_takes_its_key_over(app: Celery) -> None:
    """What it waited before it ran is not held against the wait for its own dead run."""
    store = equipment_of(app).store

    @app.task(shared=False, name="t")
    @idempotent(key="x", ttl=DAY, lease=timedelta(seconds=1), wait_within=timedelta(seconds=2))
    def t(x: int) -> str:
        return "done"

    long_ago = {HEADER: {"waiting": time.time() - 100, "looks": 3}}
    pattern = t.plan.patterns[0]
    dead = Attempt("a/0", 0, "the killed run")
    key = f"t:{pattern.key_of('t', {'x': 1}, (1,), {})}"
    store.claim(key, dead, pattern.fingerprint({"x": 1}), lease=timedelta(seconds=1), ttl=DAY)
    waits = run_here(t, 1, task_id="a", redelivered=True, headers={"headers": long_ago})
    assert waits.state == "IGNORED"
    (copy,) = published(app)
    assert copy["headers"][HEADER]["waiting"] > time.time() - 10
    time.sleep(1.1)
    assert run_here(t, 1, task_id="a", headers={"headers": copy["headers"]}).value == "done"


def test_a_claim_whose_answer_was_lost_is_no_start(app: Celery, monkeypatch: Any) -> None:
    """A store that froze heard it all the same: the next look has the key, and nothing crashed."""
    store = equipment_of(app).store
    runs: list[int] = []

    @app.task(shared=False, name="t")
    @idempotent(key="x", ttl=DAY)
    @dead_letter("dead")
    def t(x: int) -> str:
        runs.append(x)
        return "done"

    heard = type(store).claim

    def deaf(*args: Any, **kwargs: Any) -> Any:
        heard(*args, **kwargs)
        raise StoreUnavailable("no answer came")

    def gone(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("nobody there")

    headers: dict[str, Any] = {}
    for away in (deaf, gone, deaf, deaf, gone, gone):
        monkeypatch.setattr(type(store), "claim", away)
        assert run_here(t, 1, task_id="a", headers={"headers": headers}).state == "IGNORED"
        headers = {HEADER: published(app)[-1]["headers"][HEADER]}
    monkeypatch.setattr(type(store), "claim", heard)
    assert run_here(t, 1, task_id="a", headers={"headers": headers}).value == "done"
    assert runs == [1]


@pytest.mark.parametrize(
    "strikes", ["task_succeeded", "task_retried", "task_failed", "retry_scheduled", "dead_lettered"]
)
def test_a_soft_limit_while_a_line_is_written(app: Celery, caplog: Any, monkeypatch: Any, strikes: str) -> None:
    """The log is full and the limit strikes: how the attempt ended stays, with the one copy that stands for it."""

    @app.task(shared=False, name="t")
    @logged()
    @retry(on=OSError, attempts=2, wait=wait_none())
    @dead_letter("dead")
    def t(how: str) -> str:
        if how in ("task_retried", "retry_scheduled"):
            raise OSError
        if how in ("task_failed", "dead_lettered"):
            raise ValueError
        return "done"

    logger = logging.getLogger("celery_patterns")
    caplog.set_level("INFO", "celery_patterns")
    struck = []

    def handle(record: logging.LogRecord) -> None:
        if record.msg.name == strikes:
            struck.append(strikes)
            raise SoftTimeLimitExceeded

    monkeypatch.setattr(logger, "handle", handle)
    outcome = run_here(t, strikes)
    states = {"task_succeeded": "SUCCESS", "task_retried": "RETRY", "retry_scheduled": "RETRY"}
    assert struck == [strikes]
    assert outcome.state == states.get(strikes, "FAILURE")
    assert len(published(app)) == (outcome.state == "RETRY")
    assert len(letters(app)) == (outcome.state == "FAILURE")


def test_what_a_sender_hides_stays_hidden(app: Celery) -> None:
    """``argsrepr`` goes with every later attempt; for arguments that ``self.retry`` changed, too."""

    @app.task(shared=False, name="t", bind=True)
    @retry(on=OSError, attempts=3, wait=wait_none())
    def t(self: Any, card: str, change: bool = False) -> None:
        if change:
            raise self.retry(args=("4222-SECRET",))
        raise OSError

    hidden = {"argsrepr": "('****',)", "kwargsrepr": "{}"}
    run_here(t, "4111-SECRET", headers=hidden)
    run_here(t, "4111-SECRET", True, headers=hidden)
    for message in published(app):
        assert message["headers"]["argsrepr"] == "('****',)"
    run_here(t, "plain", True, headers={"argsrepr": "('plain', True)"})
    assert published(app)[-1]["headers"]["argsrepr"] == "('4222-SECRET',)"


@pytest.mark.parametrize("given", ["the error", "its class"])
@pytest.mark.parametrize("on", [OSError, Exception])
def test_max_retries_of_a_call_lowers_the_attempts(app: Celery, on: Any, given: str) -> None:
    """``self.retry(max_retries=1)``: the second attempt is the last, whatever the policy would try again."""
    runs: list[int] = []

    @app.task(shared=False, name="t", bind=True)
    @retry(on=on, attempts=5, wait=wait_none())
    def t(self: Any) -> None:
        runs.append(1)
        try:
            raise OSError
        except OSError as error:
            exc: Any = error if given == "the error" else OSError
            raise self.retry(exc=exc, max_retries=1, countdown=0) from error

    assert run_here(t, retries=1).state == "FAILURE"
    if given == "the error":  # Celery cannot store a class as what it is retried for
        assert run_here(t).state == "RETRY"
        assert t.apply().state == "FAILURE"
        assert len(runs) == 4


def test_a_pickled_message_keeps_its_types_on_redis(app: Celery) -> None:
    """No content type is told there: what JSON would change goes on as what else is accepted."""
    app.conf.accept_content = ["json", "pickle"]

    @app.task(shared=False, name="t")
    @retry(on=OSError, attempts=3, wait=wait_none())
    def t(pair: Any, numbers: Any) -> None:
        raise OSError

    run_here(t, (1, 2), {1: "a"})
    run_here(t, [1, 2], {"1": "a"})
    odd, plain = published(app)
    assert odd["content-type"] == "application/x-python-serialize"
    assert plain["content-type"] == "application/json"


def test_a_childs_key_is_not_its_parents(app: Celery) -> None:
    """A body that hands its headers on, for a tenant or a trace, makes other calls, with keys of their own."""

    @app.task(shared=False, name="child")
    @idempotent(key="order", ttl=DAY)
    def child(order: str) -> None: ...

    @app.task(shared=False, name="parent", bind=True)
    @idempotent(key="order", ttl=DAY)
    def parent(self: Any, order: str) -> None:
        for name in ("o-1", "o-2"):
            child.apply_async((name,), headers=self.request.headers)
        child.apply_async(("o-3",), headers=self.request.headers, idempotency_key="own")

    run_here(parent, "o", headers={"headers": {"tenant": "t", HEADER: {"key": "import-17", "sent": 1.0}}})
    carried = [message["headers"] for message in published(app)]
    assert [one["tenant"] for one in carried] == ["t"] * 3
    assert [(one.get(HEADER) or {}).get("key") for one in carried] == [None, None, "own"]


def test_apply_takes_a_key_of_its_own(app: Celery) -> None:
    """Here as in a worker: the same key, from the same option."""

    @app.task(shared=False, name="t")
    @idempotent(key="x", ttl=DAY)
    def t(x: int) -> str:
        return patterns.current_claim().key

    here = t.s(1).set(idempotency_key="mine").apply().get()
    assert here == run_here(t, 1, headers={"headers": {HEADER: {"key": "mine"}}}).value
    assert here != t.s(1).apply().get()


def test_eager_attempts_get_the_arguments_as_they_came(app: Celery) -> None:
    """What an attempt does to its list is not seen by the next one; an object of the caller's own is the same one."""
    seen: list[Any] = []

    class Session: ...

    @app.task(shared=False, name="t")
    @retry(on=OSError, attempts=3, wait=wait_none())
    def t(basket: list[str], session: Any) -> None:
        seen.append((list(basket), session))
        basket.append("spoiled")
        raise OSError

    session = Session()
    t.apply(([], session))
    assert seen == [([], session)] * 3

    @app.task(shared=False, name="changes", bind=True)
    @retry(on=OSError, attempts=3, wait=wait_none())
    def changes(self: Any, x: int) -> None:
        seen.append(x)
        if x == 1:
            raise self.retry(args=(2,), countdown=0)
        raise OSError

    changes.apply((1,))
    assert seen[3:] == [1, 2, 2]


@pytest.mark.parametrize("value", [{"__type__": "decimal", "__value__": "1"}, {"__type__": "x", "__value__": 1}])
def test_kombus_marks_are_refused_in_map(app: Celery, value: Any) -> None:
    """The arguments of ``map`` are a user's, though Celery sends them."""
    patterns.use_strict_json(app)

    @app.task(shared=False, name="t")
    def t(x: Any) -> None: ...

    with pytest.raises(UnsafeValue, match="__type__"):
        t.map([value]).apply_async()
    assert published(app) == []


def test_headers_of_ones_own_are_replayed(app: Celery) -> None:
    """``x-tenant`` is the sender's; ``x-death`` is the broker's note."""

    @app.task(shared=False, name="t")
    @dead_letter("dead")
    def t() -> None:
        raise ValueError

    run_here(t, headers={"headers": {"x-tenant": "t1", "x-death": [{"count": 1}]}})
    dead_letters(app, "dead").replay_all()
    (message,) = published(app)
    assert message["headers"]["x-tenant"] == "t1"
    assert "x-death" not in message["headers"]


@pytest.mark.parametrize(
    "value",
    [OrderedDict(a=1), Counter("aab"), {1: 2}, float("inf"), datetime(2026, 1, 1, tzinfo=ZoneInfo("Europe/Berlin"))],
    ids=["OrderedDict", "Counter", "int keys", "infinite", "zone"],
)
def test_a_result_that_a_backend_keeps_is_kept(app: Celery, value: Any) -> None:
    """What Celery's own backend would store, a duplicate gets as that would give it back."""

    @app.task(shared=False, name="t")
    @idempotent(key="x", ttl=DAY)
    def t(x: int) -> Any:
        return value

    run_here(t, 1, task_id="a")
    assert run_here(t, 1, task_id="b").value == kombu_json.loads(kombu_json.dumps(value))


def test_letters_in_lists_of_priorities_without_zero(database: str) -> None:
    """A letter has no priority, and kombu's list for that need not be the queue's plain name."""
    app = Celery("steps", broker=database, backend="cache+memory://", set_as_current=False)
    app.conf.broker_transport_options = {"priority_steps": [3, 6, 9]}
    patterns.use_patterns(app)
    patterns.use_store(app, MemoryStore())

    @app.task(shared=False, name="t")
    @dead_letter("dead")
    def t() -> None:
        raise ValueError

    run_here(t)
    assert len(letters(app)) == 1
    assert dead_letters(app, "dead").replay_all().sent == 1
    assert letters(app) == []
    app.close()


def test_a_replay_by_an_app_that_knows_no_queues(database: str) -> None:
    """An operator's bare app on Redis: the message goes to the queue it came from, whatever exchange it came by."""
    app = Celery("topic", broker=database, backend="cache+memory://", set_as_current=False)
    app.conf.task_queues = [Queue("pay", Exchange("ex", type="topic"), routing_key="pay.#")]
    patterns.use_patterns(app)
    patterns.use_store(app, MemoryStore())

    @app.task(shared=False, name="t")
    @dead_letter("dead")
    def t() -> None:
        raise ValueError

    came = {"exchange": "ex", "routing_key": "pay.card", "priority": 0, "redelivered": False}
    run_here(t, headers={"delivery_info": came})
    bare = Celery("bare", broker=database, set_as_current=False)
    (failure,) = dead_letters(bare, "dead").replay_all().failures
    assert "no queue is known to take" in failure.error
    assert len(letters(bare)) == 1
    with app.connection_for_write() as connection:
        app.amqp.queues["pay"](connection.default_channel).declare()  # as a worker does
    dead_letters(bare, "dead").replay_all()
    assert len(published(bare, "pay")) == 1
    assert letters(bare) == []
    app.close()
    bare.close()


def test_threads_that_publish_give_up_together(app: Celery) -> None:
    """They take turns on one connection, and the patience of one is that of all."""
    publisher = Publisher(Celery("nowhere", broker=f"redis://127.0.0.1:{free_port()}/0", set_as_current=False))
    took: list[float] = []

    def publish() -> None:
        begun = time.monotonic()
        with pytest.raises(PublishFailed) as refused:
            publisher.publish(lambda _: None, patience=timedelta(seconds=1))
        assert refused.value.transient
        took.append(time.monotonic() - begun)

    threads = [threading.Thread(target=publish) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(took) == 5
    assert max(took) < 2.5


@pytest.mark.parametrize("beside", [True, False])
def test_a_worker_does_not_consume_its_own_letters(shop: Floor, beside: bool) -> None:
    """It would run what failed again and again: it does not start, and says which queue; also where it consumes no other."""
    worker = shop.worker(ready=False, FLOOR_CONSUME=f"{shop.queue},{shop.dead}" if beside else shop.dead)
    shop.wait(lambda: not worker.alive(), 30, "the worker's end")
    assert f"this worker consumes {shop.dead}" in worker.text()


@pytest.mark.parametrize("deep", [100, 260, 310, 5000])
def test_what_is_sent_can_be_handed_to_a_child(app: Celery, deep: int) -> None:
    """A worker pickles arguments for its child and ends where that gives up; ``.delay()`` refuses long before."""
    patterns.use_strict_json(app)

    @app.task(shared=False, name="t")
    def t(x: Any) -> None: ...

    value: Any = []
    for _ in range(deep):
        value = [value]
    if deep < 300:
        t.delay(value)
        pickle.dumps(body_of(published(app)[0]))
    else:
        with pytest.raises(UnsafeValue, match="nested too deeply"):
            t.delay(value)


def test_an_argument_that_takes_no_copy(app: Celery) -> None:
    """It was unpickled, so it is here: the body runs, and its failure is a letter."""
    app.conf.accept_content = ["json", "pickle"]
    runs: list[Any] = []

    @app.task(shared=False, name="t", serializer="pickle")
    @dead_letter("dead")
    def t(handle: Any) -> None:
        runs.append(handle)
        raise ValueError

    assert isinstance(run_here(t, Handle()).value, ValueError)
    assert len(runs) == len(letters(app)) == 1


class Handle:
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("a Handle is not copied")


@pytest.mark.parametrize("odd", ["text", [1], {"a": 1}, None, float("-inf"), 10**400])
@pytest.mark.parametrize("name", ["sent", "started", "waited", "waiting", "looks", "history", "replay", "asked_by"])
def test_a_header_written_by_hand(app: Celery, name: str, odd: Any) -> None:
    """Whatever stands in it, the task runs, is tried again, and leaves its letter."""

    @app.task(shared=False, name="t")
    @logged()
    @retry(on=OSError, attempts=2, wait=wait_none(), within=timedelta(hours=1))
    @idempotent(key="x", ttl=DAY)
    @dead_letter("dead")
    def t(x: int) -> None:
        raise OSError

    headers = {"headers": {HEADER: {name: odd}}}
    assert run_here(t, 1, task_id="a", headers=headers).state == "RETRY"
    assert isinstance(run_here(t, 1, task_id="a", retries=1, headers=headers).value, OSError)
    assert len(letters(app)) == 1


def test_a_body_that_raises_generator_exit(app: Celery) -> None:
    """Another one that is no Exception: a failure with its letter."""

    @app.task(shared=False, name="t")
    @dead_letter("dead")
    def t() -> None:
        raise GeneratorExit

    assert isinstance(run_here(t).value, BodyAborted)
    assert len(letters(app)) == 1


def test_equal_decimals_are_one_key() -> None:
    """9.9 and 9.90 are one amount; 9.9 and 99 are two."""

    def form(text: str) -> str:
        return canonical(Decimal(text), where="x", floats=False)

    for equal in (("9.9", "9.90"), ("100", "1E+2"), ("0", "-0.00"), ("-0.10", "-0.1")):
        assert form(equal[0]) == form(equal[1])
    different = ["9.9", "99", "0.99", "-9.9", "1", "10", "0", "Infinity", "-Infinity"]
    assert len({form(text) for text in different}) == len(different)


def test_without_retry_the_inherited_budget_is_gone_too(app: Celery) -> None:
    """A task that inherits from one with ``retry(attempts=2)`` and takes it off has Celery's own limit."""

    class One(patterns.PatternTask):
        name = "one"
        patterns = (retry(on=OSError, attempts=2),)

        def run(self) -> None: ...

    class Other(One):
        name = "other"
        patterns = (patterns.without(retry),)

    one, other = app.register_task(One()), app.register_task(Other())
    assert (one.max_retries, other.max_retries) == (1, Task.max_retries)


def test_a_key_function_that_the_soft_limit_strikes(app: Celery) -> None:
    """It is the limit that failed the task, and not its key."""

    def key(x: int) -> int:
        raise SoftTimeLimitExceeded

    @app.task(shared=False, name="t")
    @idempotent(key=key, ttl=DAY)
    def t(x: int) -> None: ...

    assert isinstance(run_here(t, 1).value, SoftTimeLimitExceeded)


def test_a_retry_of_celerys_own_keeps_what_is_carried(app: Celery) -> None:
    """Out of ``before_start`` no pattern is asked; the next attempt has the key and the budget of this one."""

    class Gated(patterns.PatternTask):
        abstract = True

        def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
            raise self.retry(countdown=1)

    @app.task(shared=False, name="t", base=Gated)
    @idempotent(key="x", ttl=DAY)
    def t(x: int) -> None: ...

    carried = {"key": "mine", "started": 5.0}
    assert run_here(t, 1, headers={"headers": {HEADER: carried}}).state == "RETRY"
    assert published(app)[-1]["headers"][HEADER] == carried


@pytest.mark.parametrize("keyed", [False, True], ids=["without a key", "with a key"])
def test_what_crashed_and_cannot_be_buried_is_not_run_again(app: Celery, monkeypatch: Any, keyed: bool) -> None:
    """The broker refuses its letter: the message goes back with its starts, and is buried once that succeeds."""
    monkeypatch.setattr(_dead_letter, "REFUSED_PAUSE", 0.0)
    store = equipment_of(app).store
    runs: list[int] = []
    own = (idempotent(key="x", ttl=DAY, lease=timedelta(milliseconds=50)),) if keyed else ()

    @app.task(shared=False, name="t", patterns=own)
    @dead_letter("dead", max_crashes=2)
    def t(x: int) -> None:
        runs.append(x)

    for number in range(2):
        if keyed:
            pattern = next(one for one in t.plan.patterns if isinstance(one, idempotent))
            who = Attempt("a/0", 0, f"dead {number}")
            key, seen = f"t:{pattern.key_of('t', {'x': 1}, (1,), {})}", pattern.fingerprint({"x": 1})
            store.claim(key, who, seen, lease=timedelta(milliseconds=10), ttl=DAY)
            time.sleep(0.05)
        else:
            store.count_start(digest("t", "a/0", "1"), f"dead {number}", ttl=DAY)
    with monkeypatch.context() as refusing:
        refusing.setattr(_bury, "ensure_queue", _refuses)
        for _ in range(3):
            outcome = run_here(t, 1, task_id="a", redelivered=True)
            assert (outcome.state, outcome.value.requeue) == ("REJECTED", True)
            time.sleep(0.06)
    assert isinstance(run_here(t, 1, task_id="a", redelivered=True).value, TooManyCrashes)
    assert runs == []
    assert len(letters(app)) == 1
    run_here(t, 1, task_id="b", redelivered=True)
    assert runs == [1]


def test_two_processes_give_one_death_one_id() -> None:
    """What a pickled set or object looks like differs from process to process; its letter's id does not."""
    script = (
        "from celery_patterns._bury import _seen\n"
        "class Thing: ...\n"
        "print(_seen(({'alpha', 'beta', 'gamma'}, Thing(), 5), {}))\n"
        "one, two = Thing(), Thing()\n"
        "one.x, two.x = 1, 2\n"
        "assert _seen((one,), {}) != _seen((two,), {})"
    )
    seen = set()
    for seed in ("1", "2", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        seen.add(
            subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True).stdout
        )
    assert len(seen) == 1


@pytest.mark.parametrize("own", [20, None, 0])
def test_a_child_says_its_own_max_retries(app: Celery, own: Any) -> None:
    """Whatever the task that it inherits from wears."""

    class One(patterns.PatternTask):
        name = "one"
        patterns = (retry(on=OSError, attempts=2),)

        def run(self) -> None: ...

    class Other(One):
        name = "other"
        max_retries = own
        patterns = (patterns.without(retry),)

    app.register_task(One())
    assert app.register_task(Other()).max_retries == own


def test_a_base_classs_max_retries_come_back(app: Celery) -> None:
    """Without the retry that had set another number, a task has what its own base says."""

    class Base(patterns.PatternTask):
        abstract = True
        max_retries = 7

    class One(Base):
        name = "one"
        patterns = (retry(on=OSError, attempts=8),)

        def run(self) -> None: ...

    class Other(One):
        name = "other"
        patterns = (patterns.without(retry),)

    assert (app.register_task(One()).max_retries, app.register_task(Other()).max_retries) == (7, 7)


def test_a_chosen_id_sent_anew_has_all_its_attempts(app: Celery) -> None:
    """The work under it failed before; this is other work, to its last attempt and its own letter."""
    runs: list[int] = []

    @app.task(shared=False, name="t")
    @retry(on=ValueError, attempts=3, wait=wait_none())
    @idempotent(key="x", ttl=DAY)
    @dead_letter("dead")
    def t(x: int, seen: str = "") -> None:
        runs.append(x)
        raise ValueError

    for _ in range(2):
        headers: dict[str, Any] = {}
        for number in range(3):
            run_here(t, 1, task_id="chosen", retries=number, headers={"headers": headers})
            headers = {HEADER: published(app)[-1]["headers"][HEADER]} if number < 2 else {}
    assert len(runs) == 6


def test_threads_that_publish_slowly_are_all_served(database: str) -> None:
    """A broker that takes its time is no broker that is gone: who waits longer than the patience has a turn."""
    publisher = Publisher(Celery("slow", broker=database, set_as_current=False))
    sent: list[int] = []

    def publish(number: int) -> None:
        def send(_: Any) -> None:
            time.sleep(0.2)
            sent.append(number)

        publisher.publish(send, patience=timedelta(seconds=0.5))

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sent) == list(range(8))
    publisher.close()


def test_a_limit_of_the_body_around_an_eager_call_is_not_swallowed(app: Celery, caplog: Any, monkeypatch: Any) -> None:
    """It strikes while the inner call's line is written, and ends the outer body."""
    caplog.set_level("INFO", "celery_patterns")

    @app.task(shared=False, name="inner")
    @logged()
    def inner() -> None: ...

    @app.task(shared=False, name="outer")
    def outer() -> str:
        inner.apply(throw=True).get()
        return "ran past its limit"

    def handle(record: logging.LogRecord) -> None:
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(logging.getLogger("celery_patterns"), "handle", handle)
    assert isinstance(run_here(outer).value, SoftTimeLimitExceeded)


def test_an_eager_attempt_begins_with_its_own_budget(app: Celery) -> None:
    """What the first attempt's ``self.retry(max_retries=0)`` said is not held against the next one."""
    runs: list[int] = []

    @app.task(shared=False, name="t", bind=True)
    @retry(on=OSError, attempts=4, wait=wait_none())
    def t(self: Any, endless: Any) -> str:
        runs.append(1)
        if len(runs) == 1:
            try:
                self.retry(exc=KeyError("caught"), max_retries=0)
            except KeyError:
                raise self.retry(countdown=0) from None
        if len(runs) < 4:
            raise OSError
        return "done"

    endless: list[Any] = []
    endless.append(endless)
    assert t.apply((endless,)).get() == "done"


def test_apply_takes_celerys_arguments_by_position(app: Celery) -> None:
    """``apply(args, kwargs, link, link_error, …)`` is Celery's."""

    @app.task(shared=False, name="linked")
    def link(value: Any) -> None: ...

    @app.task(shared=False, name="t")
    @retry(on=OSError)
    def t() -> int:
        return 5

    assert t.apply((), {}, link.s()).get() == 5
    assert [message["headers"]["task"] for message in published(app)] == ["linked"]


def test_yaml_is_no_better_than_json_for_a_tuple(app: Celery) -> None:
    """Of what is accepted, that is taken which brings the arguments back."""
    app.conf.accept_content = ["json", "yaml", "pickle"]

    @app.task(shared=False, name="t")
    @retry(on=OSError, attempts=3, wait=wait_none())
    def t(pair: Any) -> None:
        raise OSError

    run_here(t, (1, 2))
    run_here(t, Shy())
    assert [one["content-type"] for one in published(app)] == ["application/x-python-serialize"] * 2


class Shy:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_a_soft_limit_while_arguments_are_copied(app: Celery) -> None:
    """It ends the task inside of its patterns: with a letter, and the body is not begun."""
    app.conf.accept_content = ["json", "pickle"]
    runs: list[Any] = []

    @app.task(shared=False, name="t", serializer="pickle")
    @dead_letter("dead")
    def t(slow: Any) -> None:
        runs.append(slow)

    assert isinstance(run_here(t, Slow()).value, SoftTimeLimitExceeded)
    assert (runs, len(letters(app))) == ([], 1)


class Slow:
    def __deepcopy__(self, memo: Any) -> Any:
        raise SoftTimeLimitExceeded


def test_hooks_are_contained_where_celery_runs_a_copy_of_the_request(app: Celery) -> None:
    """A ``__call__`` of one's own, where Celery has not optimized: its hooks see another request than the patterns did."""

    class Own(patterns.PatternTask):
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

        def on_failure(self, *_: Any) -> None:
            raise OSError("the hook fails, too")

    @app.task(shared=False, name="t", base=Own)
    @dead_letter("dead")
    def t() -> None:
        raise ValueError

    assert type(run_here(t).value) is ValueError
    assert len(letters(app)) == 1
