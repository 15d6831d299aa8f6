"""The letters of what the worker's main process saw end."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from .._bury import found, found_message, publish_letter
from .._dead_letter import STARTS_TTL, dead_letter, starts_key, task_dead_lettered
from .._equipment import equipment_of
from .._events import announce, type_name
from .._plan import worn
from .._publish import Publisher
from .._queues import dead_queue
from ..exceptions import PublishFailed, StoreUnavailable

if TYPE_CHECKING:
    from celery import Celery
    from celery.worker.consumer import Consumer
    from celery.worker.request import Request
    from kombu.message import Message

    from .._letter import Letter

__all__ = ["Recorder"]

#: For how long the main process, which does everything else meanwhile too, tries one letter in place: once more at most,
#: on a new connection. What its children say waits meanwhile, and Celery drops what it has not read when it is stopped.
AT_ONCE = timedelta(seconds=0.25)
#: For how long a letter is tried again, later, before its message goes back to its queue.
PATIENCE = 300.0
#: For how long a worker that ends tries what it still has.
LAST_TRY = 5.0
#: The first and the longest pause between two tries, in seconds.
FIRST_PAUSE, LAST_PAUSE = 1.0, 30.0
#: For how many messages that wait for their letters a worker takes others in their place.
MOST_HELD = 1_000
#: Redis' own default, in seconds.
VISIBILITY = 3600.0


logger = logging.getLogger("celery_patterns")


@dataclass(frozen=True, eq=False)
class _Burial:
    letter: Letter
    message: dict[str, Any]
    queue: str
    task: Any
    done: Callable[[], object]
    back: Callable[[], object]
    deadline: float
    delivery: Message

    @property
    def facts(self) -> dict[str, Any]:
        letter = self.letter
        return {
            "task": letter.task,
            "messaging.message.id": letter.task_id,
            "messaging.destination.name": letter.queue,
            "attempt": letter.attempt,
            "queue": self.queue,
            "reason": letter.reason,
            "letter": letter.id,
            "error.type": letter.error,
        }


@dataclass
class _Backlog:
    """What waits for one dead-letter queue, since that did not take the last letter that was tried."""

    burials: deque[_Burial] = field(default_factory=deque)
    pause: float = FIRST_PAUSE


class Recorder:
    """Writes a letter before its message is acknowledged; the event loop goes on meanwhile.

    A dead-letter queue that takes nothing is tried with one letter at a time, whatever their number.

    Args:
        consumer: The worker's consumer.
    """

    def __init__(self, consumer: Consumer) -> None:
        self._app: Celery = consumer.app
        self._consumer = consumer
        self._worker = consumer.hostname
        # Not the app's, which in the threads pool a task may hold for half a minute.
        self._publisher = Publisher(consumer.app)
        # In the threads pool requests end in the threads that ran them; and at a cold shutdown Celery lets go of its pool in
        # the signal's handler, on top of whatever this thread was doing, with this lock perhaps.
        self._lock = threading.RLock()
        self._backlogs: dict[str, _Backlog] = {}
        #: Which connection a pause was begun on.
        self._connection = 0
        #: Those that wait, unacknowledged, and do not count for the worker's prefetch.
        self._held: set[_Burial] = set()
        #: Requests whose start is to be counted in the store, until they start or are called off; they put themselves here.
        #: Celery has a list of them, too, and has let go of it when it stops us.
        self.unstarted: set[Request] = set()

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
            copy = found_message(message, letter)
        except Exception:
            # Celery would swallow it, and the message would stay here for ever.
            logger.exception("a letter could not be made; its message goes back to its queue")
            self._after(LAST_PAUSE, back)
            return
        pattern = worn(task, dead_letter)
        queue = (pattern.queue if pattern is not None else None) or dead_queue(letter.queue)
        deadline = time.monotonic() + min(PATIENCE, self._visibility() / 2)
        self._bury(_Burial(letter, copy, queue, task, done, back, deadline, message))

    def connected(self) -> None:
        """There is a connection: what still waits, being acknowledged long ago, is tried again."""
        for queue, backlog in tuple(self._backlogs.items()):
            self._later(queue, backlog)

    def disconnected(self) -> None:
        """The connection goes, and the broker gives out again what is not acknowledged.

        Nothing of that is buried from here any more: on Redis its late acknowledgement would be taken for that of the
        message that came back.
        """
        self._connection += 1
        with self._lock:
            for queue, backlog in tuple(self._backlogs.items()):
                backlog.burials = deque(one for one in backlog.burials if one.delivery.acknowledged)
                backlog.pause = FIRST_PAUSE
                if not backlog.burials:
                    del self._backlogs[queue]
            self._held.clear()  # the next connection has a prefetch of its own
        self._excuse_unstarted()

    def close(self) -> None:
        """The worker ends: one last try for each queue, of what nobody will give out again."""
        deadline = time.monotonic() + LAST_TRY
        while self._backlogs:
            _, backlog = self._backlogs.popitem()
            trouble: PublishFailed | None = None
            for burial in backlog.burials:
                if not burial.delivery.acknowledged:
                    continue  # comes back, and would be buried twice
                if trouble is None and time.monotonic() < deadline:
                    trouble = self._trouble_with(burial)
                else:
                    trouble = trouble or PublishFailed("the worker ends", transient=True)
                if trouble is not None:
                    self._give_up(burial, trouble)
        self._publisher.close()

    def _excuse_unstarted(self) -> None:
        """What was not started is delivered once more, and has crashed nothing."""
        unstarted, self.unstarted = tuple(self.unstarted), set()  # a copy: others start meanwhile
        deadline = time.monotonic() + LAST_TRY
        for number, request in enumerate(unstarted):
            if time.monotonic() > deadline:
                left = len(unstarted) - number
                announce(logging.WARNING, "start_not_excused", {"count": left, "reason": "the store is slow"})
                return
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

    def _bury(self, burial: _Burial) -> None:
        with self._lock:
            backlog = self._backlogs.get(burial.queue)
            if backlog is not None:
                self._hold(backlog, burial)
                return
        trouble = self._trouble_with(burial)
        if trouble is None:
            return
        with self._lock:
            known = self._backlogs.get(burial.queue)
            backlog = self._backlogs[burial.queue] = known or _Backlog()
            self._hold(backlog, burial)
        self._give_up_late(backlog, trouble)
        if known is None:
            self._later(burial.queue, backlog)

    def _hold(self, backlog: _Backlog, burial: _Burial) -> None:
        """Let it wait, and another message come in its place: as Celery does for a task whose time has not come."""
        backlog.burials.append(burial)
        qos = self._consumer.qos
        # worker_eta_task_limit, since kombu 5.6: what it cuts off an increment, a decrement would take all the same.
        limit = getattr(qos, "max_prefetch", None)
        free = len(self._held) < MOST_HELD and (limit is None or qos.value < limit)
        if free and not burial.delivery.acknowledged:
            self._held.add(burial)
            qos.increment_eventually()

    def _let_go(self, burial: _Burial) -> None:
        with self._lock:
            if burial in self._held:
                self._held.remove(burial)
                self._consumer.qos.decrement_eventually()

    def _again(self, queue: str, connection: int) -> None:
        backlog = self._backlogs.get(queue)
        if backlog is None or connection != self._connection:
            return
        try:
            # What threads add meanwhile has its turn later; a connection that is lost meanwhile takes some out.
            for _ in range(len(backlog.burials)):
                if not backlog.burials:
                    break
                burial = backlog.burials.popleft()
                trouble = self._trouble_with(burial)
                if trouble is None:
                    self._let_go(burial)
                else:
                    # To the end: a letter that is refused for itself must not stop the others.
                    backlog.burials.append(burial)
                    backlog.pause = min(backlog.pause * 2, LAST_PAUSE)
                    self._give_up_late(backlog, trouble)
                    break
        finally:
            with self._lock:
                over = not backlog.burials
                if over:
                    self._backlogs.pop(queue, None)
            if not over:
                self._later(queue, backlog)

    def _later(self, queue: str, backlog: _Backlog) -> None:
        self._after(backlog.pause, self._again, queue, self._connection)

    def _after(self, seconds: float, call: Callable[..., object], *args: Any) -> None:
        # The timer belongs to the event loop's thread.
        self._consumer.call_soon(self._consumer.timer.call_after, seconds, call, args)

    def _trouble_with(self, burial: _Burial) -> PublishFailed | None:
        """Publish a letter, and do what is to be done once it stands; or say why it does not."""
        try:
            publish_letter(self._app, burial.queue, burial.message, patience=AT_ONCE, publisher=self._publisher)
        except PublishFailed as trouble:
            return trouble
        announce(logging.ERROR, "dead_lettered", burial.facts)
        task_dead_lettered.send(sender=burial.task, letter=burial.letter)
        burial.done()
        return None

    def _give_up_late(self, backlog: _Backlog, trouble: PublishFailed) -> None:
        """Give up those whose time is over before the next try; the others wait for it, unacknowledged."""
        told = {**backlog.burials[-1].facts, "error.type": type_name(trouble)}
        next_try = time.monotonic() + backlog.pause
        for burial in [one for one in tuple(backlog.burials) if one.deadline < next_try]:
            backlog.burials.remove(burial)
            self._let_go(burial)
            self._give_up(burial, trouble)
        if backlog.burials:
            announce(logging.WARNING, "dead_letter_postponed", {**told, "waiting": len(backlog.burials)})

    def _give_up(self, burial: _Burial, trouble: PublishFailed) -> None:
        requeued = not burial.delivery.acknowledged
        told = {**burial.facts, "error.type": type_name(trouble), "requeued": requeued}
        announce(logging.CRITICAL, "dead_letter_not_published", told)
        burial.back()
