"""What Celery does after a run whose letter or next attempt stands: it may fail, and that is no other end.

A hook that raises there would end the message a second time; with an error that cannot be unpickled it would end the worker,
and the next one that takes the message. A result backend that is away would do the same.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery.app.task import Task

from ._message import KEPT

if TYPE_CHECKING:
    from celery.app.task import Context

__all__ = ["contain_hooks", "sparing"]

logger = logging.getLogger("celery_patterns")

_HOOKS = ("on_failure", "on_retry", "after_return")
_CONTAINED = "__celery_patterns_contained__"


def contain_hooks(cls: type[Task]) -> None:
    """Let the hooks of a task fail without a consequence, once its letter or its next attempt stands.

    A hook that is no plain function is left as it is.
    """
    for name in _HOOKS:
        hook = inspect.getattr_static(cls, name)
        if inspect.isfunction(hook) and hook is not Task.__dict__[name] and not hasattr(hook, _CONTAINED):
            setattr(cls, name, _contained(name, hook if name in cls.__dict__ else _inherited(cls, name)))


def _inherited(cls: type[Task], name: str) -> Callable[..., Any]:
    """A base's hook, which is looked for when it is called: another base may stand between by then."""

    def hook(self: Task, /, *args: Any, **kwargs: Any) -> Any:
        return getattr(super(cls, self), name)(*args, **kwargs)

    return hook


def _contained(name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(hook)
    def contained(self: Task, /, *args: Any, **kwargs: Any) -> Any:
        request = _over(self)
        if request is None:
            return hook(self, *args, **kwargs)
        try:
            return hook(self, *args, **kwargs)
        except Exception:
            logger.exception("%s of %s[%s] failed", name, self.name, request.id)

    setattr(contained, _CONTAINED, True)
    return contained


def sparing(backend: Any, task: Task) -> Any:
    """The task's result backend; once its letter or its next attempt stands, one that does not raise."""
    request = _over(task)
    return backend if request is None else _Sparing(backend, task, request)


class _Sparing:
    def __init__(self, backend: Any, task: Task, request: Context) -> None:
        self._backend, self._task, self._request = backend, task, request

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def mark_as_failure(self, task_id: str, exc: BaseException, *args: Any, **kwargs: Any) -> None:
        trouble = self._trouble_with("mark_as_failure", task_id, exc, *args, **kwargs)
        if trouble is not None:
            # As Celery would: it may be this error that cannot be stored.
            self._trouble_with("mark_as_failure", task_id, trouble, *args, **kwargs)

    def mark_as_retry(self, task_id: str, exc: BaseException, *args: Any, **kwargs: Any) -> None:
        self._trouble_with("mark_as_retry", task_id, exc, *args, **kwargs)

    def _trouble_with(self, mark: str, *args: Any, **kwargs: Any) -> Exception | None:
        try:
            getattr(self._backend, mark)(*args, **kwargs)
        except Exception as error:
            logger.exception("%s of %s[%s] failed", mark, self._task.name, self._request.id)
            return error
        return None


def _over(task: Task) -> Context | None:
    stack = task.request_stack  # None in a task that has no app yet
    request = None if stack is None else stack.top
    return request if request is not None and (request.delivery_info or {}).get(KEPT) else None
