"""Waiting for the outcome of the first few replays."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from celery.backends.base import DisabledBackend

from ..exceptions import BackendUnavailable, ConfigurationError
from ._undisturbed import pause

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Trouble", "expect_backend", "forget", "unhappy"]

_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)
_DEAD = frozenset({"FAILURE", "REVOKED"})
#: Seconds before letters are looked for where results say nothing; then twice as many, and so on.
_LOOK = 2.0
#: Seconds that the others still have once one has died again, so that most of the truth is told.
_OTHERS = 3.0


@dataclass(frozen=True)
class Trouble:
    """What became of canaries that did not succeed.

    Attributes:
        text: For people.
        died: The task ids of those that died again.
    """

    text: str
    died: tuple[str, ...] = ()


def expect_backend(app: Celery) -> None:
    """Refuse an app on which nobody can see an outcome.

    Raises:
        ConfigurationError: Naming the cure.
    """
    cure = 'expected an app with a shared result backend, for example backend="redis://…", or a replay without canary'
    if isinstance(app.backend, DisabledBackend):
        raise ConfigurationError(f"a canary's outcome comes from the result backend, and this app has none; {cure}")
    if app.backend.as_uri().startswith("rpc"):
        raise ConfigurationError(f"rpc:// gives a result to its sender only, who is not this process; {cure}")


def forget(app: Celery, task_id: str) -> None:
    """Forget the outcome that an earlier run of this task id had.

    Raises:
        BackendUnavailable: When the result backend did not answer.
    """
    try:
        app.AsyncResult(task_id).forget()
    except NotImplementedError:
        return
    except Exception as error:
        raise BackendUnavailable(f"{_silent(app, error)}; no canary is sent without it") from error


def _silent(app: Celery, error: Exception) -> str:
    return f"the result backend at {app.backend.as_uri()} did not answer: {type(error).__name__}"


def unhappy(
    app: Celery,
    canaries: Mapping[str, str],
    patience: timedelta,
    buried: Callable[[Collection[str]], Collection[str]],
) -> Trouble | None:
    """Wait for the canaries, each until it is done for good.

    Args:
        app: Its result backend tells.
        canaries: The replays' task ids, and the queues they were sent to.
        patience: How long all of them may take.
        buried: Which of some have left a letter again: of a message that no worker can run, no result tells.

    Returns:
        What became of those that did not succeed; None when all did.
    """
    waiting, died = list(canaries), list[str]()
    deadline, looks = time.monotonic() + patience.total_seconds(), 0
    next_look, gap = time.monotonic() + _LOOK, _LOOK
    while waiting:
        try:
            states = {task_id: str(app.AsyncResult(task_id).state) for task_id in waiting}
        except Exception as error:  # noqa: BLE001 - each backend has errors of its own
            if died:
                break
            return Trouble(f"{_silent(app, error)}, so that nobody knows what became of {_counted(canaries)}")
        dead = tuple(task_id for task_id in waiting if states[task_id] in _DEAD)
        silent = [task_id for task_id in waiting if states[task_id] == "PENDING"]
        if not dead and silent and time.monotonic() > min(next_look, deadline):
            dead, gap = tuple(buried(silent)), gap * 2  # it reads the whole queue
            next_look = time.monotonic() + gap
        if dead and not died:
            deadline = min(deadline, time.monotonic() + _OTHERS)
        died.extend(dead)
        waiting = [task_id for task_id in waiting if states[task_id] != "SUCCESS" and task_id not in dead]
        if waiting and time.monotonic() > deadline:
            break
        pause(_PAUSES[min(looks, len(_PAUSES) - 1)] if waiting else 0)
        looks += 1
    if died:
        return Trouble(f"{len(died)} of {_counted(canaries)} died again{_unknown(waiting)}", tuple(died))
    return Trouble(_late(canaries, waiting, patience)) if waiting else None


def _unknown(waiting: list[str]) -> str:
    return f" (of {len(waiting)} it is not known yet)" if waiting else ""


def _late(canaries: Mapping[str, str], waiting: list[str], patience: timedelta) -> str:
    queues = ", ".join(dict.fromkeys(canaries[task_id] for task_id in waiting))
    ids = ", ".join(waiting)
    return (
        f"{len(waiting)} of {_counted(canaries)} did not finish within {patience.total_seconds():g} s: task {ids}; "
        f"what did not finish waits in {queues} or runs, and may still succeed"
    )


def _counted(canaries: Collection[str]) -> str:
    return f"{len(canaries)} canar{'y' if len(canaries) == 1 else 'ies'}"
