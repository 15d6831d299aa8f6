"""The user's function: how it is run, and which part of a traceback is its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from billiard import current_process
from celery.exceptions import TaskPredicate, WorkerShutdown, WorkerTerminate

from .exceptions import BodyAborted, PatternsError

if TYPE_CHECKING:
    from types import TracebackType

    from ._call import Call

__all__ = ["part_of_body", "run_body", "shortened"]

_Error = TypeVar("_Error", bound=BaseException)

_POOLS = ("gevent", "eventlet", "greenlet")


def run_body(body: Callable[..., Any], takes_task: bool, call: Call) -> Any:
    """Run it with the call's arguments; what it raises is an ``Exception``, or ends the process.

    Raises:
        BodyAborted: When it raised something else.
    """
    if call.over is not None:
        raise call.over
    try:
        if takes_task:
            return body(call.instance, *call.args, **call.kwargs)
        return body(*call.args, **call.kwargs)
    except Exception:
        raise
    except BaseException as error:
        if _ends_the_process(error, eager=call.eager):
            raise
        raise BodyAborted(f"{call.task} raised {type(error).__qualname__}, which is no Exception") from error


def part_of_body(trace: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames of the patterns around the body; None where the body has no frame in it."""
    while trace is not None and trace.tb_frame.f_code is not run_body.__code__:
        trace = trace.tb_next
    return trace and trace.tb_next


def _innermost(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def shortened(error: _Error) -> _Error:
    """The error that is being handled, with the part of its traceback that somebody may want to see.

    The frames of the patterns are the same for every failure, and Celery's prefork pool sends all that there are to the main
    process: above 64 KB, the size of a pipe, its child waits in the middle, and a lost connection then costs the pool that
    child. Of an error of this library's own only its place is left. Any other that is not the body's is left whole.
    """
    whole = sys.exc_info()[2]
    part = part_of_body(whole)
    if part is None and not isinstance(error, TaskPredicate):
        part = _innermost(whole) if isinstance(error, PatternsError) else whole
    BaseException.with_traceback(error, part)  # a user's class may have a method of this name
    return error


def _ends_the_process(error: BaseException, *, eager: bool) -> bool:
    """Whether it is not the body's own: how a pool ends a task, and a worker itself."""
    if isinstance(error, SystemExit | KeyboardInterrupt):
        # A pool's child may end; the main process of the other pools runs this body among others.
        ends = eager or isinstance(error, WorkerShutdown | WorkerTerminate)
        return ends or current_process().name != "MainProcess"
    return type(error).__module__.partition(".")[0] in _POOLS
