"""Waiting for the outcome of the first few replays."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

from celery.backends.base import DisabledBackend

from ..exceptions import ConfigurationError

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["expect_backend", "unhappy"]

_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)
_DEAD = frozenset({"FAILURE", "REVOKED"})


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


def unhappy(app: Celery, canaries: dict[str, str], patience: timedelta) -> str | None:
    """Wait for the canaries, each until it is done for good.

    Args:
        app: Its result backend tells.
        canaries: The replays' task ids, and their letters' ids.
        patience: How long all of them may take.

    Returns:
        What became of those that did not succeed; None when all did.
    """
    waiting = dict(canaries)
    deadline, looks = time.monotonic() + patience.total_seconds(), 0
    while waiting:
        try:
            states = {task_id: str(app.AsyncResult(task_id).state) for task_id in waiting}
        except Exception as error:  # noqa: BLE001 - each backend has errors of its own
            return f"the result backend did not tell what became of the canaries: {type(error).__name__}"
        dead = [waiting[task_id] for task_id, state in states.items() if state in _DEAD]
        if dead:
            return f"{len(dead)} of {len(canaries)} canaries died again: letter {', '.join(dead)}"
        waiting = {task_id: letter for task_id, letter in waiting.items() if states[task_id] != "SUCCESS"}
        if waiting and time.monotonic() > deadline:
            ids = ", ".join(waiting.values())
            return f"{len(waiting)} of {len(canaries)} canaries came to no end within {patience}: letter {ids}"
        time.sleep(_PAUSES[min(looks, len(_PAUSES) - 1)] if waiting else 0)
        looks += 1
    return None
