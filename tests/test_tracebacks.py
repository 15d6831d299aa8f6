"""What a failure tells of where it happened: the user's own frames, without those of the patterns around them."""

from __future__ import annotations

import asyncio
import pickle
from datetime import timedelta
from typing import Any

import pytest
import tenacity
from celery import Celery, Task
from celery.exceptions import Ignore, Reject

import celery_patterns as patterns
from celery_patterns import dead_letter, dead_letters, idempotent, logged, retry
from celery_patterns.exceptions import PatternsError
from celery_patterns.stores import MemoryStore

from .here import run_here


@pytest.fixture
def app(database: str) -> Any:
    made = Celery("tracebacks", broker=database, backend=database, set_as_current=False)
    patterns.use_patterns(made)
    patterns.use_store(made, MemoryStore())
    yield made
    made.close()


def worn(**options: Any) -> tuple[Any, ...]:
    return (
        logged("order"),
        dead_letter("tracebacks.dead"),
        idempotent(**{"key": "order", **options}, ttl=timedelta(hours=1)),
        retry(on=ConnectionError, attempts=2, wait=tenacity.wait_none()),
    )


def frames(text: str) -> list[str]:
    """The functions of a traceback, from the outside to the inside."""
    return [line.rpartition(" in ")[2] for line in text.splitlines() if line.startswith('  File "')]


class Strange(Exception):
    """A class may have any method of any name."""

    def with_traceback(self, trace: Any) -> Any:
        raise AssertionError("called")


ERRORS = {
    "value": lambda: ValueError("no"),
    "connection": lambda: ConnectionError("away"),
    "ignore": Ignore,
    "aborted": asyncio.CancelledError,
    "memory": MemoryError,
    "reject": lambda: Reject("no", requeue=False),
    "strange": Strange,
}


def returns(order: str, kind: str) -> str:
    return kind


def fails(kind: str) -> None:
    error = ERRORS[kind]()
    raise error


def body(order: str, kind: str) -> None:
    fails(kind)


@pytest.mark.parametrize("kind", ["value", "ignore", "reject", "strange"])
def test_a_failure_shows_the_body(app: Celery, kind: str) -> None:
    """Celery's frame, the wrapper's, and from there on what the user wrote."""
    task = app.task(body, shared=False, name="body", patterns=worn())
    assert frames(run_here(task, "o", kind).told.traceback) == ["trace_task", "run", "body", "fails"]


def test_a_failure_costs_the_pool_what_it_costs_without_patterns(app: Celery) -> None:
    """The pool sends each frame's code to the main process; the patterns add one small one."""
    plain = app.task(body, shared=False, name="plain", base=Task)
    wears = app.task(body, shared=False, name="wears", patterns=worn())
    lengths = [len(pickle.dumps(run_here(task, "o", "value").told)) for task in (plain, wears)]
    assert lengths[1] < lengths[0] + 4_000


def test_a_retry_shows_what_it_is_for(app: Celery) -> None:
    """The error that asked for it, whose frames are the body's; the retry itself has no place in the user's code."""
    task = app.task(body, shared=False, name="body", patterns=worn())
    told = run_here(task, "o", "connection", queue="tracebacks").told.traceback
    error, _, asked = told.partition("The above exception was the direct cause")
    assert frames(error)[-2:] == ["body", "fails"]
    assert frames(asked) == ["trace_task", "run"]


def test_the_letter_shows_the_body(app: Celery) -> None:
    """Nothing but the user's own frames, in the little room that there is."""
    task = app.task(body, shared=False, name="body", patterns=worn())
    run_here(task, "o", "value")
    (letter,) = dead_letters(app, "tracebacks.dead")
    assert frames(letter.traceback) == ["body", "fails"]


def test_what_is_not_the_bodys_is_shown_whole(app: Celery) -> None:
    """A key function of the user's is called by a pattern: where it stands is what the traceback is for."""

    def key(order: str, kind: str) -> str:
        raise LookupError(order)

    task = app.task(body, shared=False, name="body", patterns=worn(key=key))
    shown = frames(run_here(task, "o", "value").told.traceback)
    assert {"key", "_asked"} < set(shown)
    (letter,) = dead_letters(app, "tracebacks.dead")
    assert {"key", "_asked"} < set(frames(letter.traceback))


@pytest.mark.parametrize("kind", ["aborted", "memory", "other arguments", "failed before"])
def test_an_error_of_the_librarys_own_costs_no_more(app: Celery, kind: str) -> None:
    """Where it was raised is in the text; what led there is the same for all."""
    task = app.task(body, shared=False, name="body", patterns=worn(key="order"))
    other = app.task(returns, shared=False, name="returns", patterns=worn())
    if kind == "other arguments":
        run_here(other, "o", "one")
        told = run_here(other, "o", "two").told
    elif kind == "failed before":
        run_here(task, "o", "value", task_id="same")
        told = run_here(task, "o", "value", task_id="same", redelivered=True).told
    else:
        told = run_here(task, "o", kind).told
    plain = run_here(app.task(body, shared=False, name="plain", base=Task), "o", "value").told
    assert isinstance(told.exception, PatternsError)
    assert len(pickle.dumps(told)) < len(pickle.dumps(plain)) + 12_000
    assert len(frames(told.traceback)) >= 3
