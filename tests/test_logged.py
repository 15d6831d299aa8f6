"""The pattern ``logged``: one closing event an attempt, JSON lines, and no argument that was not named."""

from __future__ import annotations

import asyncio
import functools
import io
import json
import logging
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import structlog
from celery import Celery
from celery.exceptions import Ignore, Reject
from tenacity import wait_none

import celery_patterns as patterns
from celery_patterns import dead_letter, idempotent, logged, retry
from celery_patterns._events import Event, FileLines, StreamLines
from celery_patterns._logged import RESERVED, configure_logging
from celery_patterns._message import HEADER
from celery_patterns.exceptions import ConfigurationError
from celery_patterns.stores import MemoryStore

from .harness import Floor
from .here import run_here

SECRET = "hunter2"


@pytest.fixture
def app(database: str) -> Any:
    made = Celery("logged", broker=database, backend="cache+memory://", set_as_current=False)
    patterns.use_patterns(made)
    patterns.use_store(made, MemoryStore())
    yield made
    made.close()


@pytest.fixture
def lines() -> Any:
    """What ``use_structlog`` writes, as parsed lines; the logging of the test run is put back."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    stream = io.StringIO()
    configure_logging(logging.INFO, stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:], level = before
    root.setLevel(level)
    structlog.reset_defaults()


def events(caplog: Any) -> list[Event]:
    return [record.msg for record in caplog.records if isinstance(record.msg, Event)]


@pytest.mark.parametrize(
    ("raises", "name", "level"),
    [
        (None, "task_succeeded", "INFO"),
        (OSError(SECRET), "task_retried", "INFO"),
        (ValueError(SECRET), "task_failed", "ERROR"),
        (Ignore(), "task_ignored", "INFO"),
        (Reject("no", requeue=False), "task_rejected", "WARNING"),
    ],
)
def test_one_closing_event_for_each_end(app: Celery, caplog: Any, raises: Any, name: str, level: str) -> None:
    """Outcome, attempt, duration and queue wait; the named argument, and never another, nor an error's text."""
    caplog.set_level("INFO", "celery_patterns")

    @app.task(shared=False, name="t")
    @retry(on=OSError, attempts=3, wait=wait_none())
    @logged("order")
    def t(order: str, password: str, more: int = 5) -> str:
        if raises:
            raise raises
        return password

    run_here(t, "o-1", password=SECRET, retries=1, headers={HEADER: {"sent": time.time() - 2}})
    closing = [event for event in events(caplog) if event.name.startswith("task_")]
    assert [event.name for event in closing] == [name]
    fields = closing[0].fields
    assert (fields["task"], fields["attempt"], fields["attempts"], fields["order"]) == ("t", 2, 3, "o-1")
    assert 0 <= fields["duration"] < 1
    assert 2 <= fields["queue_wait"] < 4
    assert "password" not in fields
    assert [r.levelname for r in caplog.records if isinstance(r.msg, Event) and r.msg.name == name] == [level]
    assert SECRET not in " ".join(str(event) for event in events(caplog))
    if isinstance(raises, OSError | ValueError):
        assert fields["error.type"] in ("OSError", "ValueError")


def test_a_countdown_is_not_queue_wait(app: Celery, caplog: Any) -> None:
    """A task that waited for its time waited for nothing."""
    caplog.set_level("INFO", "celery_patterns")

    @app.task(shared=False, name="t")
    @logged()
    def t() -> None: ...

    eta = datetime.now(timezone.utc) - timedelta(seconds=1)
    run_here(t, headers={"eta": eta.isoformat(), HEADER: {"sent": time.time() - 600}})
    run_here(t)
    first, second = events(caplog)
    assert 1 <= first.fields["queue_wait"] < 3
    assert "queue_wait" not in second.fields


def test_a_sender_stamps_the_message(app: Celery) -> None:
    """``.delay()`` of a logged task says when it was sent; another task's message stays as it was."""
    from .test_retry import published

    @app.task(shared=False, name="t")
    @logged()
    def t() -> None: ...

    @app.task(shared=False, name="plain")
    def plain() -> None: ...

    t.delay()
    plain.delay()
    first, second = published(app)
    assert abs(first["headers"][HEADER]["sent"] - time.time()) < 5
    assert HEADER not in second["headers"]


def test_every_line_is_one_json_object(app: Celery, lines: Any) -> None:
    """Our events, the body's own structlog and stdlib lines, and tracebacks: each one line, with the call's fields."""

    @app.task(shared=False, name="t")
    @logged("order")
    def t(order: str) -> None:
        structlog.get_logger("mine").info("inside", price=3)
        logging.getLogger("theirs").warning("two\nlines %s", 5)
        raise ValueError("boom")

    run_here(t, "o-1", task_id="id-1")
    told = {line["event"]: line for line in lines()}
    assert told["inside"]["price"] == 3
    for event in ("inside", "two\nlines 5", "task_failed"):
        assert (told[event]["task"], told[event]["messaging.message.id"], told[event]["attempt"]) == ("t", "id-1", 1)
        assert told[event]["order"] == "o-1"
    assert told["task_failed"]["level"] == "error"
    assert datetime.fromisoformat(told["inside"]["timestamp"].replace("Z", "+00:00"))
    (celerys,) = [line for line in lines() if line["logger"] == "celery.app.trace"]
    assert "ValueError: boom" in celerys["exception"]


def test_the_callers_context_is_restored(app: Celery, lines: Any) -> None:
    """An eager task, and a nested one, leave the context around them as it was."""

    @app.task(shared=False, name="inner")
    @logged()
    def inner() -> None:
        structlog.get_logger().info("in inner")

    @app.task(shared=False, name="outer")
    @logged()
    def outer() -> None:
        inner.apply()
        structlog.get_logger().info("back in outer")

    with structlog.contextvars.bound_contextvars(request="r-1"):
        outer.apply()
        structlog.get_logger().info("outside")
    told = {line["event"]: line for line in lines()}
    assert [told[event].get("task") for event in ("in inner", "back in outer", "outside")] == ["inner", "outer", None]
    assert {told[event]["request"] for event in ("in inner", "back in outer", "outside")} == {"r-1"}


def test_a_bodys_own_threads_say_whose_they_are(app: Celery, lines: Any) -> None:
    """What the body runs by ``asyncio.to_thread`` carries the call's fields as the body does."""

    @app.task(shared=False, name="t")
    @logged("order")
    def t(order: str) -> None:
        asyncio.run(asyncio.to_thread(structlog.get_logger().info, "elsewhere"))

    run_here(t, "o-1")
    (told,) = [line for line in lines() if line["event"] == "elsewhere"]
    assert (told["task"], told["order"]) == ("t", "o-1")


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_an_argument_called_like_a_field_is_refused(app: Celery, name: str) -> None:
    """Its value would stand where the event's own does."""
    namespace: dict[str, Any] = {}
    exec(f"def t({name}): ...", namespace)
    task = app.task(shared=False, name="t")(logged(name)(namespace["t"]))
    with pytest.raises(ConfigurationError, match="every event has a field of that name"):
        task.name  # noqa: B018


@pytest.mark.parametrize("name", ["name", "error", "call", "shown", "self", "fields", "id", "queue"])
def test_any_other_name_will_do(app: Celery, caplog: Any, name: str) -> None:
    """No name of our own functions' arguments gets in the way."""
    caplog.set_level("INFO", "celery_patterns")
    namespace: dict[str, Any] = {"__name__": "here"}
    exec(f"def t({name}): return {name}", namespace)
    task = app.task(shared=False, name="t")(logged(name)(namespace["t"]))
    assert run_here(task, "o-1").value == "o-1"
    assert events(caplog)[-1].fields[name] == "o-1"


def test_wrong_arguments_fail_in_the_body_and_not_in_the_log(app: Celery) -> None:
    """A message without the named argument is the body's TypeError."""

    @app.task(shared=False, name="t")
    @logged("order")
    def t(order: str) -> None: ...

    assert isinstance(run_here(t, wrong=1).value, TypeError)


def test_a_canary_is_in_no_line(app: Celery, lines: Any) -> None:
    """A secret that is an argument, a key, a result and an error's text is in none of our events."""

    @app.task(shared=False, name="t")
    @retry(on=OSError, attempts=2, wait=wait_none())
    @idempotent(key="secret", ttl=timedelta(days=1))
    @dead_letter("logged.dead")
    @logged()
    def t(secret: str, fails: int = 0) -> str:
        if patterns.current_call().attempt <= fails:
            raise OSError(secret)
        return secret

    for fails in (0, 0, 1, 2):
        for retries in range(2):
            run_here(t, f"{SECRET}{fails}", fails, task_id=f"id-{fails}", retries=retries)
    ours = [line for line in lines() if line["logger"] == "celery_patterns"]
    assert len(ours) > 8
    assert SECRET not in json.dumps(ours)


def test_a_real_worker_writes_json_only(shop: Floor) -> None:
    """After ``use_structlog`` a worker's log is one JSON object a line, from the first line after its banner."""
    shop.environment["FLOOR_STRUCTLOG"] = "1"
    worker = shop.worker()
    shop.task("flaky_keyed").delay("o-1").get(timeout=40)
    text = worker.text()
    lines = [line for line in text.splitlines() if line.startswith("{")]
    told = [json.loads(line) for line in lines]
    begun = text.splitlines().index(next(line for line in lines if "Connected to" in line))
    after = [line for line in text.splitlines()[begun:] if line.strip() and not line.startswith("{")]
    assert after == []
    assert {"retry_scheduled"} <= {line["event"] for line in told}
    assert all("timestamp" in line and "level" in line for line in told)


def leave_ours_alone() -> None:
    """Take pytest's own handlers off the root logger, so that ours writes by the short way; pytest takes no harm."""
    root = logging.getLogger()
    root.handlers[:] = [handler for handler in root.handlers if isinstance(handler, StreamLines)]
    assert len(root.handlers) == 1


class Broken:
    """Neither str() nor repr() can show it."""

    def __repr__(self) -> str:
        raise ValueError("no")


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)
DEEP: list[Any] = functools.reduce(lambda inner, _: [inner], range(300), [])


@pytest.mark.parametrize(
    "value",
    [2**70, "\ud800", Broken(), ENDLESS, DEEP, {(1, 2): 3}, b"\xff", float("nan"), 10**5000],
    ids=["2**70", "surrogate", "broken", "endless", "deep", "tuple key", "bytes", "nan", "10**5000"],
)
def test_no_value_of_a_shown_argument_costs_the_task(app: Celery, lines: Any, value: Any) -> None:
    """What JSON has no word for is told as text, and the task is what it would have been."""

    @app.task(shared=False, name="t")
    @logged("value")
    def t(value: Any, fails: bool = False) -> str:
        structlog.get_logger("mine").info("inside", value=value)
        if fails:
            raise ValueError
        return "done"

    leave_ours_alone()
    assert t.apply((value,), throw=True).get() == "done"
    assert t.apply((value, True)).state == "FAILURE"
    told = [line["event"] for line in lines()]
    assert [event for event in told if event in ("inside", "task_succeeded", "task_failed")] == [
        "inside",
        "task_succeeded",
        "inside",
        "task_failed",
    ]


def test_a_stream_that_is_closed_costs_no_task(app: Celery) -> None:
    """Logging says so in its own way, on stderr, and the task goes on."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    stream = io.StringIO()
    configure_logging(logging.INFO, stream)
    try:
        leave_ours_alone()
        stream.close()

        @app.task(shared=False, name="t")
        @logged()
        def t() -> str:
            return "done"

        assert run_here(t).value == "done"
    finally:
        root.handlers[:], level = before
        root.setLevel(level)
        structlog.reset_defaults()


def test_other_listeners_get_the_record(app: Celery, lines: Any) -> None:
    """A second handler, a filter and a record factory of the user's see every event; alone, ours writes the same line."""

    @app.task(shared=False, name="t")
    @logged()
    def t() -> None: ...

    heard: list[Any] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record)

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = logging.LogRecord(*args, **kwargs)
        heard.append(record)
        return record

    root, listener, ours = logging.getLogger(), Listener(), logging.getLogger("celery_patterns")
    leave_ours_alone()
    run_here(t)
    assert [line["event"] for line in lines() if line["logger"] == "celery_patterns"] == ["task_succeeded"]
    for holder in (root, ours):
        holder.addHandler(listener)
        run_here(t)
        holder.removeHandler(listener)
        assert [record.msg.name for record in heard if record.name == "celery_patterns"] == ["task_succeeded"]
        heard.clear()
    for filtered in (ours, root.handlers[0]):
        filtered.addFilter(lambda record: heard.append(record) or True)  # type: ignore[arg-type, func-returns-value]
        run_here(t)
        filtered.filters.clear()
        assert [record.msg.name for record in heard if record.name == "celery_patterns"] == ["task_succeeded"]
        heard.clear()
    logging.setLogRecordFactory(factory)
    try:
        run_here(t)
    finally:
        logging.setLogRecordFactory(logging.LogRecord)
    assert [record.msg.name for record in heard if record.name == "celery_patterns"] == ["task_succeeded"]
    written = [line for line in lines() if line["logger"] == "celery_patterns"]
    assert len(written) == 6
    assert {tuple(line) for line in written} == {tuple(written[0])}, (
        "the short way and the long one write the same fields"
    )
    assert {line["level"] for line in written} == {"info"}


def test_every_event_of_a_call_shows_what_is_named(app: Celery, caplog: Any) -> None:
    """Its decisions too, so that all lines of one order are found by the order; an event's own field stands first."""
    caplog.set_level("INFO", "celery_patterns")

    @app.task(shared=False, name="t")
    @retry(on=OSError, attempts=2, wait=wait_none())
    @dead_letter("logged.dead")
    @logged("order", "countdown")
    def t(order: str, countdown: str, password: str) -> None:
        raise OSError(password)

    for retries in range(2):
        run_here(t, "o-1", "mine", SECRET, retries=retries)
    told = {event.name: event.fields for event in events(caplog)}
    assert set(told) == {"retry_scheduled", "task_retried", "retries_exhausted", "dead_lettered", "task_failed"}
    assert {fields["order"] for fields in told.values()} == {"o-1"}
    assert told["retry_scheduled"]["countdown"] == 0
    assert told["task_failed"]["countdown"] == "mine"
    assert SECRET not in str(told)


@pytest.mark.parametrize("eta", ["2026-01-31T12:00:00Z", "2026-01-31T12:00:00.5+01:00", "no time at all"])
def test_an_eta_of_any_spelling_costs_no_task(app: Celery, caplog: Any, eta: str) -> None:
    """Another sender's text: read as Celery reads it, and left out when it is none."""
    caplog.set_level("INFO", "celery_patterns")

    @app.task(shared=False, name="t")
    @logged()
    def t() -> str:
        return "done"

    assert run_here(t, headers={"eta": eta, HEADER: {"sent": time.time() - 5}}).value == "done"
    (event,) = events(caplog)
    assert 5 <= event.fields["queue_wait"] < 9


def test_a_log_file_that_cannot_be_opened_for_a_while(app: Celery, tmp_path: Path) -> None:
    """Its folder goes away under the worker: tasks go on, and the lines too, once it is back."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    folder, away = tmp_path / "logs", tmp_path / "away"
    folder.mkdir()
    configure_logging(logging.INFO, str(folder / "worker.log"))
    try:
        root.handlers[:] = [handler for handler in root.handlers if isinstance(handler, FileLines)]

        @app.task(shared=False, name="t")
        @logged()
        def t(fails: bool = False) -> str:
            if fails:
                raise ValueError
            return "done"

        assert run_here(t).value == "done"
        folder.rename(away)
        for _ in range(2):
            assert run_here(t).value == "done"
            assert isinstance(run_here(t, True).value, ValueError)
        folder.mkdir()
        assert run_here(t).value == "done"
        told = [json.loads(line)["event"] for line in (folder / "worker.log").read_text().splitlines()]
        assert told.count("task_succeeded") == 1
    finally:
        root.handlers[:], level = before
        root.setLevel(level)
        structlog.reset_defaults()
