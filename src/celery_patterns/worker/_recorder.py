"""The letters of what the worker's main process saw end."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from .._bury import found, found_message, publish_letter
from .._dead_letter import STARTS_TTL, dead_letter, starts_key, task_dead_lettered
from .._equipment import equipment_of
from .._events import announce, type_name
from .._queues import dead_queue
from .._task import PatternTask
from ..exceptions import PublishFailed, StoreUnavailable

if TYPE_CHECKING:
    from celery import Celery
    from celery.worker.consumer import Consumer
    from celery.worker.request import Request
    from kombu.message import Message

    from .._letter import Letter

__all__ = ["Recorder", "wears_dead_letter"]

#: For how long the main process, which does everything else meanwhile too, waits for one confirmation.
AT_ONCE = timedelta(seconds=2)
#: For how long a letter is tried again, later, before its message goes back to its queue.
PATIENCE = 300.0
#: The longest pause between two tries, in seconds.
LAST_PAUSE = 30.0
#: Redis' own default, in seconds.
VISIBILITY = 3600.0


logger = logging.getLogger("celery_patterns")


def wears_dead_letter(task: Any) -> dead_letter | None:
    """The task's pattern, if it wears one."""
    plan = task.plan if isinstance(task, PatternTask) else None
    buries = plan.buries if plan is not None else None
    return buries if isinstance(buries, dead_letter) else None


@dataclass(frozen=True)
class _Burial:
    letter: Letter
    message: dict[str, Any]
    queue: str
    task: Any
    done: Callable[[], object]
    back: Callable[[], object]
    deadline: float


class Recorder:
    """Writes a letter before its message is acknowledged; the event loop goes on meanwhile.

    Args:
        consumer: The worker's consumer.
    """

    def __init__(self, consumer: Consumer) -> None:
        self._app: Celery = consumer.app
        self._timer = consumer.timer
        self._worker = consumer.hostname
        #: Those that are over without a start leave it by themselves.
        self._unstarted: weakref.WeakSet[Request] = weakref.WeakSet()

    def record(
        self,
        message: Message,
        reason: str,
        error: BaseException,
        *,
        task: Any,
        done: Callable[[], object],
        back: Callable[[], object],
        trace: str = "",
    ) -> None:
        """Write the letter of one message.

        Args:
            message: The message as it was delivered.
            reason: How it ended.
            error: What says so.
            task: Its task; None when it is not known.
            done: Called once the letter is confirmed.
            back: Called when it could not be; the message is to go back to its queue.
            trace: The traceback as text, where there is one.
        """
        try:
            letter = found(self._app, message, reason, error, trace=trace, worker=self._worker)
        except Exception:
            # Celery would swallow it, and the message would stay here for ever.
            logger.exception("a letter could not be made; its message goes back to its queue")
            self._timer.call_after(LAST_PAUSE, back)
            return
        pattern = wears_dead_letter(task)
        queue = (pattern.queue if pattern is not None else None) or dead_queue(letter.queue)
        burial = _Burial(
            letter,
            found_message(message, letter),
            queue,
            task,
            done,
            back,
            time.monotonic() + min(PATIENCE, self._visibility() / 2),
        )
        self._try(burial, 1.0)

    def await_start(self, request: Request) -> None:
        """Remember a request until it is started, when its starts are counted in the store."""
        task = request.task
        terms = task.plan.terms if task.plan is not None else None
        if terms is None or terms.keyed or terms.crash_limit is None or request.delivery_info.get("redelivered"):
            return
        if wears_dead_letter(task) is not None:
            self._unstarted.add(request)

    def started(self, request: Request) -> None:
        """The pool took it."""
        self._unstarted.discard(request)

    def give_back(self) -> None:
        """The worker lets go of what it has not started: being delivered once more, it has crashed nothing."""
        unstarted, self._unstarted = list(self._unstarted), weakref.WeakSet()
        for request in unstarted:
            headers = request.request_dict
            run_id = f"{request.id}/{headers.get('replaced_task_nesting') or 0}"
            key = starts_key(request.task.name, run_id, (headers.get("retries") or 0) + 1)
            try:
                equipment_of(self._app).store.excuse_start(key, ttl=STARTS_TTL)
            except StoreUnavailable as error:
                announce(logging.WARNING, "start_not_excused", {"error.type": type_name(error), "reason": str(error)})
                return

    def _visibility(self) -> float:
        options = self._app.conf.broker_transport_options or {}
        return float(options.get("visibility_timeout", VISIBILITY))

    def _try(self, burial: _Burial, pause: float) -> None:
        try:
            publish_letter(self._app, burial.queue, burial.message, patience=AT_ONCE)
        except PublishFailed as trouble:
            told = {**_facts(burial), "error.type": type_name(trouble)}
            if time.monotonic() + pause < burial.deadline:
                announce(logging.WARNING, "dead_letter_postponed", told)
                # Unacknowledged meanwhile: should the worker go, the broker gives the message to another one.
                self._timer.call_after(pause, self._try, (burial, min(pause * 2, LAST_PAUSE)))
            else:
                announce(logging.CRITICAL, "dead_letter_not_published", {**told, "requeued": True})
                burial.back()
            return
        announce(logging.ERROR, "dead_lettered", _facts(burial))
        task_dead_lettered.send(sender=burial.task, letter=burial.letter)
        burial.done()


def _facts(burial: _Burial) -> dict[str, Any]:
    letter = burial.letter
    return {
        "task": letter.task,
        "messaging.message.id": letter.task_id,
        "messaging.destination.name": letter.queue,
        "attempt": letter.attempt,
        "queue": burial.queue,
        "reason": letter.reason,
        "letter": letter.id,
        "error.type": letter.error,
    }
