"""Mistakes that were found by trying to break the library; each stays here by name."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

import pytest
import redis
from celery import Celery, Task, chain
from celery.app.control import Inspect
from tenacity import wait_none

import celery_patterns as patterns
from celery_patterns import _dead_letter, dead_letter, dead_letters, idempotent, logged, retry
from celery_patterns._events import Event
from celery_patterns.exceptions import BodyAborted, ConfigurationError, ResultNotKept
from celery_patterns.stores import MemoryStore, RedisStore
from celery_patterns.typing import Attempt, Claimed, Done

from .harness import Floor
from .here import run_here
from .test_retry import published

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
    connection = store._free[-1]
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
    monkeypatch.setattr(_dead_letter, "ensure_queue", _refuses)

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
    send = found._send

    def send_and_die(held: Any) -> None:
        send(held)
        run_here(t, 99)

    found._send = send_and_die  # type: ignore[method-assign]
    assert len(found.replay_all()) == 5
    assert len(found) == 5


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
    assert len(found) == 1
    assert len(found.replay_all()) == 1
    assert len(found) == 0
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


def test_the_soft_limit_counts_against_the_lease(app: Celery) -> None:
    """A soft limit over the lease is refused as a hard one is."""
    task = app.task(shared=False, name="t", soft_time_limit=1200)(idempotent(key="x", ttl=DAY)(_keyed))
    with pytest.raises(ConfigurationError, match="may run for 1200 s"):
        task.name  # noqa: B018


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
