"""What a call is looked at for before Celery sends it, and what it carries for its patterns."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from celery._state import get_current_task

from ._call import MARK
from ._message import HEADER
from ._received import as_sent
from ._republish import STRICT
from .exceptions import ConfigurationError

if TYPE_CHECKING:
    from celery.app.task import Task

    from ._plan import Plan

__all__ = ["prepared", "with_key"]

#: What a call's arguments nearly always are.
_LISTED = frozenset({tuple, list, type(None)})
_NAMED = frozenset({dict, type(None)})


def prepared(
    task: Task, plan: Plan | None, args: Any, kwargs: Any, task_id: str | None, options: dict[str, Any]
) -> dict[str, Any]:
    """The options with which Celery sends this call; refused is here what the worker could only bury.

    Raises:
        InvalidKey: When no key can be made from the arguments.
        ConfigurationError: When the call's own key is none.
        TypeError: When arguments are given one by one, as ``delay`` takes them.
    """
    if type(args) not in _LISTED or type(kwargs) not in _NAMED:
        _expect_arguments(task, args, kwargs)
    around = get_current_task()  # asked for once: most calls come from outside of any task
    handed_on = around is not None and _is_handed_on(around, options)
    if around is not None:
        options = _without_header_around(around, task_id, options)
    if "idempotency_key" in options:
        options = with_key(task, plan, options)
    if plan is not None and plan.checks and not handed_on and "retries" not in options:
        _check(task, plan, args, kwargs, options)
    if plan is not None and plan.timed:
        options = _carrying(options, sent=time.time())
    if handed_on and task.serializer == STRICT:
        options.setdefault("serializer", "json")
    return options


def _expect_arguments(task: Task, args: Any, kwargs: Any) -> None:
    named = kwargs is None or isinstance(kwargs, Mapping)
    if not named or not isinstance(args, Iterable | None) or isinstance(args, str | bytes):
        got = f"a {type(args).__name__} and a {type(kwargs).__name__}"
        raise TypeError(
            f"{task.name}.apply_async() takes args as a list or a tuple and kwargs as a dict, and got {got}; delay(…) takes "
            "the arguments as they are"
        )


def with_key(task: Task, plan: Plan | None, options: dict[str, Any]) -> dict[str, Any]:
    """The options without an ``idempotency_key``, which is in the headers then.

    Raises:
        ConfigurationError: When the key is no str, or the task claims none.
    """
    if "idempotency_key" not in options:
        return options
    others = {name: value for name, value in options.items() if name != "idempotency_key"}
    key = options["idempotency_key"]
    if plan is None or not plan.terms.keyed:
        raise ConfigurationError(f"{task.name} is sent with an idempotency_key but wears no idempotent(); expected one")
    if not isinstance(key, str) or not key:
        got = "an empty one" if key == "" else f"a {type(key).__name__}"
        raise ConfigurationError(f"{task.name}: expected idempotency_key to be a str that is not empty, got {got}")
    return _carrying(others, key=key)


def _carrying(options: dict[str, Any], **ours: Any) -> dict[str, Any]:
    """The options with more in the header of ours."""
    headers = options.get("headers")
    if not headers:
        return {**options, "headers": {HEADER: ours}}
    carried = headers.get(HEADER) or {}
    if not isinstance(carried, dict):
        raise ConfigurationError(
            f'expected the header {HEADER} to be a mapping, for example {{"key": "import-17"}}, got a '
            f"{type(carried).__name__}"
        )
    return {**options, "headers": {**headers, HEADER: {**carried, **ours}}}


def _without_header_around(around: Task, task_id: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """The options without what the patterns carry for the task that runs around this line, if that is another one.

    A body that hands its headers on to other calls means those of its own making.
    """
    headers = options.get("headers")
    if around.request.id == task_id:  # a retry that Celery makes keeps the id, and what is carried
        return options
    if not headers or HEADER not in headers or headers[HEADER] != (around.request.headers or {}).get(HEADER):
        return options
    return {**options, "headers": {name: value for name, value in headers.items() if name != HEADER}}


def _is_handed_on(around: Task, options: dict[str, Any]) -> bool:
    """Whether Celery calls, with the result of work that is done: a link, a chain's next step, or a chord's callback.

    To refuse that now would make the work a failure. Where the running task wears nothing, its body cannot be told from its
    end: with a link, a next step or a chord, the body's own calls are taken for them, too.
    """
    request = around.request
    if options.get("parent_id") or around.name.startswith("celery."):
        return True
    if MARK in request.__dict__:
        return request.__dict__[MARK] is None  # the body is over, and so are the patterns
    return bool(request.chord or request.chain or request.callbacks)


def _check(task: Task, plan: Plan, args: Any, kwargs: Any, options: dict[str, Any]) -> None:
    if not isinstance(args or (), list | tuple) or not isinstance(kwargs or {}, Mapping):
        return  # apply_async("o-1", 3): Celery says what is wrong with it
    headers = options.get("headers")
    carried = headers.get(HEADER) if headers else None
    given = carried.get("key") if isinstance(carried, dict) else None
    args, kwargs = as_sent(task, args, kwargs)
    for check in plan.checks:
        check(task.name, plan.terms.bound, tuple(args or ()), kwargs or {}, given)
