"""CP4: the app's settings and its servers' own, beside what the tasks need."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Iterator
from datetime import timedelta
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from celery.app.defaults import _OLD_SETTING_KEYS, SETTING_KEYS

from ..._republish import STRICT
from .._finding import Rule, Sign, rule

if TYPE_CHECKING:
    from .._case import Case
    from .._tasks import TaskFacts

#: How alike two names are of which one is the other misspelt.
_ALIKE = 0.86
#: What kombu's JSON refuses, and what strict JSON refuses beside it.
_NO_JSON: tuple[type, ...] = (set, frozenset, timedelta, PurePath, complex, bytearray)
_UNIONS = (typing.Union, types.UnionType)
#: How the settings of Celery 3 begin.
_OLD_PREFIXES = ("CELERY_", "CELERYD_", "CELERYBEAT_", "BROKER_")
_NO_STRICT: tuple[type, ...] = (tuple,)


@rule(
    "CP403",
    "warning",
    "Messages that may be lost as they are sent",
    "Where the broker does not take a message, full or cut off, .delay() returns as if it did, and the task is gone.",
    upstream="celery/celery#5410",
)
def unconfirmed(case: Case) -> Iterator[Sign]:
    """Tasks promise that nothing is lost, and RabbitMQ is not asked to confirm what is sent."""
    promised = [task for task in case.tasks if task.promises]
    if case.transport == "amqp" and promised and not case.transport_options.get("confirm_publish"):
        yield Sign(
            case.spelled("broker_transport_options"),
            f"{promised[0].name} wears {promised[0].promises}, and confirm_publish is off",
            case.option_line("confirm_publish", True),
        )


@rule(
    "CP404",
    "error",
    "Delays on a quorum queue behind a direct exchange",
    "A worker holds what waits without taking more: one task that waits stops all others until its time has come.",
    upstream="ITISFoundation/osparc-simcore#8638",
)
def blocks_on_delay(case: Case) -> Iterator[Sign]:
    """Celery can delay messages in RabbitMQ itself only behind a topic exchange."""
    if case.transport != "amqp":
        return
    for task in case.tasks:
        queue = case.queue_of(task.queue)
        if queue is None or not task.longest_wait or not case.is_quorum(queue):
            continue
        if queue.exchange is None or queue.exchange.type == "direct":
            yield Sign(
                task.name,
                f"its queue {queue.name} is a quorum queue behind a direct exchange, and its attempts wait",
                'Declare the queue with Exchange("tasks", type="topic"), or set '
                f"{case.line('task_default_exchange_type', repr('topic'))}.",
            )


@rule(
    "CP405",
    "error",
    "An async def that nobody awaits",
    "The task is SUCCESS, and its body never ran; where its result is stored, it fails because that is no value.",
    upstream="celery/kombu#1350",
)
def never_awaited(case: Case) -> Iterator[Sign]:
    """Celery calls a task's function and does not run what it returns."""
    for task in case.tasks:
        if inspect.iscoroutinefunction(task.task.run) and not task.is_called_otherwise:
            yield Sign(task.name, "it is an async def", "Make it a def, and call asyncio.run() in its body.")


@rule(
    "CP406",
    "error",
    "An argument that cannot be sent",
    "Each .delay() with such a value raises, before anything is sent.",
    upstream="celery/kombu#177",
)
def cannot_be_sent(case: Case) -> Iterator[Sign]:
    """An annotation names a type that JSON cannot carry."""
    for task in case.tasks:
        serializer = task.task.serializer
        if serializer not in ("json", STRICT) or getattr(task.task, "pydantic", False) or task.is_called_otherwise:
            continue
        for name, kind in _annotations(task):
            if _is_unsafe(kind, strict=serializer == STRICT):
                said = kind.__name__ if type(kind) is type else str(kind).replace("typing.", "")
                which = "strict JSON" if serializer == STRICT else "JSON"
                yield Sign(
                    task.name,
                    f"its argument {name} is annotated as {said}, which {which} cannot carry",
                    "Take a list, a dict or a str, and make what you need of it in the body.",
                )


@rule(
    "CP407",
    "error",
    "Tasks that run in the caller",
    "No worker is used: a request waits for each task that it sends, and retries, limits and letters do nothing.",
    upstream="cookiecutter/cookiecutter-django#1821",
    production=True,
)
def eager(case: Case) -> Iterator[Sign]:
    """A setting that is for tests was left on."""
    if case.conf.task_always_eager:
        where = case.spelled("task_always_eager")
        yield Sign(where, "task_always_eager=True", "Take it away; set it in the tests' settings only.")


@rule(
    "CP408",
    "warning",
    "A setting that Celery does not know",
    "It does nothing, and what it was to change is at its default.",
    upstream="mozilla/sumo#198",
)
def misspelt(case: Case) -> Iterator[Sign]:
    """A name that is almost one of Celery's."""
    new, old = sorted(SETTING_KEYS), sorted(_OLD_SETTING_KEYS)
    for shown, name in _own_settings(case):
        if name in SETTING_KEYS or shown in _OLD_SETTING_KEYS or name.upper() in _OLD_SETTING_KEYS:
            continue
        is_old = shown.isupper() and name == shown
        meant = difflib.get_close_matches(name, old if is_old else new, 1, _ALIKE)
        if meant:
            right = meant[0] if is_old else case.spelled(meant[0])
            yield Sign(shown, f"{shown} is no setting of Celery's", f"Write {right}, if that was meant.")
    options = _transport_options(case)
    for name in case.transport_options if options else ():
        meant = difflib.get_close_matches(name, options, 1, _ALIKE)
        if name not in options and meant:
            yield Sign(
                f'broker_transport_options["{name}"]',
                f"{name} is no option of the transport {case.transport}",
                f"Write {meant[0]}, if that was meant.",
            )


@rule(
    "CP409",
    "warning",
    "A schedule that names no task",
    "Beat sends it on time, each time, and the worker throws it away.",
    upstream="celery/celery#3446",
)
def scheduled_unknown(case: Case) -> Iterator[Sign]:
    """An entry of ``beat_schedule`` has the name of a task that the app does not have."""
    for entry in case.schedule:
        if entry.task not in case.app.tasks:
            meant = difflib.get_close_matches(entry.task, list(case.app.tasks), 1)
            cure = f"Write {meant[0]!r}, if that was meant." if meant else "Import the module of the task in `include`."
            more = " Ignore this where it is another service's task."
            yield Sign(f'beat_schedule["{entry.name}"]', f"the app has no task {entry.task!r}", cure + more)


@rule(
    "CP410",
    "error",
    "A schedule whose arguments do not fit",
    "Each run ends with a TypeError.",
    upstream="celery/django-celery-beat#152",
)
def scheduled_misfit(case: Case) -> Iterator[Sign]:
    """An entry of ``beat_schedule`` has arguments that its task does not take."""
    for entry in case.schedule:
        task = case.app.tasks.get(entry.task)
        if task is None or not getattr(task, "typing", False) or not hasattr(task, "__header__"):
            continue
        try:
            task.__header__(*entry.args, **entry.kwargs)
        except TypeError as error:
            said = str(error).partition("()")[2].strip() or str(error)
            yield Sign(f'beat_schedule["{entry.name}"]', f"{entry.task}() {said}", "Correct its args or kwargs.")


@rule(
    "CP411",
    "error",
    "A route to a queue that is not there",
    "Each .delay() of the task raises QueueNotFound.",
    upstream="celery/celery#6692",
)
def no_such_queue(case: Case) -> Iterator[Sign]:
    """``task_create_missing_queues`` is off, and ``task_queues`` has no queue of the name."""
    if case.conf.task_create_missing_queues:
        return
    known = sorted(map(str, case.app.amqp.queues))
    for task in case.tasks:
        asked = task.missing_queue
        if asked is not None:
            yield Sign(
                task.name,
                f"it is routed to the queue {asked}, and task_queues has {', '.join(known) or 'none'}",
                f"Add Queue({asked!r}) to task_queues, or correct task_routes.",
            )


@rule(
    "CP412",
    "hint",
    "Results that are kept for ever",
    "The result backend grows with each task, until it is full.",
    upstream="celery/celery#7801",
)
def kept_for_ever(case: Case) -> Iterator[Sign]:
    """``result_expires`` is switched off."""
    storing = [task for task in case.tasks if not task.task.ignore_result]
    if case.keeps_results and storing and not case.conf.result_expires:
        yield Sign(
            case.spelled("result_expires"),
            f"result_expires={case.conf.result_expires!r}, and {storing[0].name} stores its results",
            f"Set {case.line('result_expires', '86400')}, or ignore_result=True where nobody reads them.",
        )


@rule(
    "CP413",
    "hint",
    "Waiting tasks fill a worker's memory",
    "A worker takes every message that waits, about 9 KB each, past its prefetch: 100,000 are 0.9 GB.",
    upstream="celery/celery#2218",
    production=True,
)
def unlimited_eta(case: Case) -> Iterator[Sign]:
    """Attempts wait in a worker, and ``worker_eta_task_limit`` is not set."""
    waiting = [task for task in case.tasks if task.longest_wait]
    if waiting and not case.delays_natively and not case.conf.get("worker_eta_task_limit"):
        yield Sign(
            case.spelled("worker_eta_task_limit"),
            f"{waiting[0].name} waits up to {waiting[0].longest_wait:g} s between attempts, and nothing limits how many do",
            f"Set {case.line('worker_eta_task_limit', '10000')} (Celery 5.6 or later).",
        )


def _annotations(task: TaskFacts) -> Iterator[tuple[str, Any]]:
    function = task.body
    if not getattr(function, "__annotations__", None):
        return
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # noqa: BLE001 - a name that only a type checker sees, or anything else an annotation may do
        return
    yield from ((name, kind) for name, kind in hints.items() if name not in ("return", "self"))


def _is_unsafe(kind: Any, *, strict: bool) -> bool:
    """Whether no value of this type can be sent; of several types in a union, each."""
    origin, parts = typing.get_origin(kind), [part for part in typing.get_args(kind) if part is not type(None)]
    if origin is typing.Annotated:
        return _is_unsafe(parts[0], strict=strict)
    if origin in _UNIONS:
        return bool(parts) and all(_is_unsafe(part, strict=strict) for part in parts)
    plain = origin or kind
    if not isinstance(plain, type):
        return False
    if dataclasses.is_dataclass(plain) or hasattr(plain, "model_dump"):
        return not hasattr(plain, "__json__")
    if issubclass(plain, Enum):
        return strict or not issubclass(plain, str | int)
    if issubclass(plain, (*_NO_JSON, *(_NO_STRICT if strict else ()))):
        return True
    return issubclass(plain, list | dict) and any(_is_unsafe(part, strict=strict) for part in parts)


def _own_settings(case: Case) -> Iterator[tuple[str, str]]:
    """Those that the app was given, as they are written and as Celery names them."""
    prefix = getattr(case.conf, "prefix", None) or ""
    for layer in case.conf.maps[:-1]:
        for key in list(layer):
            name = str(key)
            if prefix and name.startswith(prefix):
                yield name, name.removeprefix(prefix).lower()
            elif not prefix and (name.islower() or name.startswith(_OLD_PREFIXES)):
                yield name, name


def _transport_options(case: Case) -> list[str]:
    if case.transport != "redis":
        return []
    from kombu.transport.redis import Channel  # noqa: PLC0415 - of the broker that is used

    return sorted(Channel.from_transport_options)


RULES: tuple[Rule, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
