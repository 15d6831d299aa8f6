"""Equipping an app: each line adopts one thing, and ``equip`` is their sum."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery._state import connect_on_app_finalize
from celery.app.task import Task
from celery.signals import setup_logging
from celery.utils.imports import symbol_by_name

from . import _strict_json
from ._equipment import equipment_of
from ._fit import expect_app
from ._logged import configure_logging
from ._plan import WORN, Pattern
from ._republish import STRICT
from ._task import CHECK, PatternTask
from .exceptions import ConfigurationError
from .stores import open_store

if TYPE_CHECKING:
    from celery import Celery

    from .typing import Store

__all__ = ["equip", "misfit", "use_patterns", "use_store", "use_strict_json", "use_structlog"]


def equip(app: Celery, *, store: str | Store) -> None:
    """Give the app everything: base task, store, strict JSON, structured logs.

    It is the sum of :func:`use_patterns`, :func:`use_store`, :func:`use_strict_json` and :func:`use_structlog`, each of
    which can be called alone. Call it where the app is made, before its tasks are used.

    Args:
        app: Your Celery app. Its broker, its result backend, its tasks and its routes stay as they are.
        store: Where keys are claimed: a ``redis://``, ``rediss://`` or ``unix://`` URL, or a store.

    Raises:
        ConfigurationError: When the app's tasks were made already, or the store's URL is none of these.
    """
    expect_app(app, "equip()")
    use_patterns(app)
    use_store(app, store)
    use_strict_json(app)
    use_structlog(app)


def use_patterns(app: Celery) -> None:
    """Let the app's tasks wear patterns: puts ``PatternTask`` in front of the app's own Task class.

    A task class of yours, or Django's, stays in the class. Tasks that wear nothing stay plain.

    Args:
        app: Your Celery app, before any of its tasks was used.

    Raises:
        ConfigurationError: When the app's Task class was used already, so that tasks without patterns may exist.
    """
    expect_app(app, "use_patterns()")
    if "Task" in app.__dict__:
        if issubclass(app.Task, PatternTask):
            return
        raise ConfigurationError(
            "use_patterns(app) came too late: a task of this app was made already; expected it, or equip(app), right "
            "after the line that makes the app",
        )
    base = symbol_by_name(app.task_cls)
    if not issubclass(base, PatternTask):
        app.task_cls = PatternTask if base is Task else type("PatternTask", (PatternTask, base), {"abstract": True})
    app.steps["worker"].add(CHECK)  # a task that is made later, and fits not, is seen by nobody before


def use_store(app: Celery, store: str | Store) -> None:
    """Tell the app where keys are claimed.

    Args:
        app: Your Celery app.
        store: A ``redis://``, ``rediss://`` or ``unix://`` URL, or a store. Nothing is connected before the first claim.

    Raises:
        ConfigurationError: When it is neither.
    """
    expect_app(app, "use_store()")
    equipment_of(app).store = open_store(store)


def use_strict_json(app: Celery) -> None:
    """Refuse at ``.delay()`` what would not arrive as it was sent.

    Tasks are sent as ``application/json`` in Celery's own form, so that workers without this library read them.

    Args:
        app: Your Celery app. Its ``task_serializer`` is set; a task's own ``serializer`` stays.

    Raises:
        ConfigurationError: When the app was finalized already.
    """
    expect_app(app, "use_strict_json()")
    if app.finalized:
        raise ConfigurationError(
            "use_strict_json(app) came too late: this app's tasks have read their serializer already; expected it, or "
            "equip(app), right after the line that makes the app",
        )
    _strict_json.register()

    def configure(sender: Celery, **_: Any) -> None:
        sender.conf.task_serializer = STRICT

    def finalize(sender: Celery, **_: Any) -> None:
        _strict_json.adopt(sender)

    # The settings may be read later than this line, and would then win over it.
    if app.configured:
        configure(app)
    app.on_after_configure.connect(configure, weak=False, dispatch_uid="celery_patterns")
    app.on_after_finalize.connect(finalize, weak=False, dispatch_uid="celery_patterns.strict_json")


def use_structlog(app: Celery) -> None:
    """Let workers log one JSON object a line, through structlog.

    It applies when a worker in this process sets up its logging, and replaces Celery's own handlers then, for the whole
    process; nothing is configured in a process that only sends tasks.

    Args:
        app: Your Celery app.
    """
    expect_app(app, "use_structlog()")

    def configure(loglevel: int | None = None, logfile: Any = None, **_: Any) -> None:
        configure_logging(logging.INFO if loglevel is None else loglevel, logfile)

    setup_logging.connect(configure, weak=False, dispatch_uid=f"celery_patterns.{id(app)}")


def _look_for_misfits(app: Celery) -> None:
    # Lazy tasks are made after this callback, so the look itself waits for the signal. Held strongly: the receiver is
    # nobody else's.
    app.on_after_finalize.connect(_refuse_misfits, weak=False, dispatch_uid="celery_patterns")


def _refuse_misfits(sender: Celery, **_: Any) -> None:
    """Find tasks whose patterns would quietly not work, and let them neither be sent nor run."""
    for task in list(sender.tasks.values()):
        message = misfit(sender, task)
        if message is None:
            continue
        _poison(task, message)
        sender.steps["worker"].add(CHECK)
        logging.getLogger("celery_patterns").critical(message)


def misfit(app: Celery, task: Any) -> str | None:
    """Why a task's patterns would quietly not work; None where they do, or it wears none."""
    if isinstance(task, PatternTask):
        if task.plan is None or app.conf.task_protocol != 1:
            return None
        return (
            f"{task.name} wears patterns, but its app sends tasks with task_protocol=1, which has no headers to carry what "
            "they remember; take task_protocol=1 away"
        )
    function: Any = getattr(task.run, "__func__", task.run)
    listed = getattr(task, "patterns", ())
    worn = [value for value in listed if isinstance(value, Pattern)] if isinstance(listed, tuple | list) else []
    if not [*worn, *getattr(function, WORN, ())]:
        return None
    return (
        f"{task.name} wears patterns but its class is not a PatternTask, so they would be silently absent; call "
        'equip(app, store="redis://…") or use_patterns(app) behind the last line that makes the app, before its tasks; '
        "where that is done, let the task's class inherit from app.Task or PatternTask"
    )


def _poison(task: Any, message: str) -> None:
    # A signal's receiver cannot refuse: what it raises is logged and forgotten. So the task itself refuses.
    def refuse(*_: Any, **__: Any) -> Any:
        raise ConfigurationError(message)

    task.run = task.apply_async = task.apply = refuse
    task.patterns_refused = message


connect_on_app_finalize(_look_for_misfits)
