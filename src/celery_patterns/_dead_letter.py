"""The pattern ``dead_letter``: what finally fails is kept, with the reason, where it can be looked at and replayed."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from billiard.exceptions import SoftTimeLimitExceeded
from celery.exceptions import Ignore, Reject, Retry
from celery.signals import task_failure, task_internal_error
from celery.utils.dispatch import Signal

from ._bury import letter_message, publish_letter, written
from ._equipment import equipment_of
from ._events import emit
from ._keys import digest
from ._message import KEPT, run_name
from ._plan import REQUEUED, Layer, Pattern
from ._queues import LONGEST_NAME, dead_queue
from .exceptions import ConfigurationError, PublishFailed, StoreUnavailable, TooManyCrashes

if TYPE_CHECKING:
    from ._call import Call, Proceed

__all__ = ["MAX_CRASHES", "STARTS_TTL", "dead_letter", "starts_key", "task_dead_lettered"]

#: Sent after a letter was confirmed, in the process that wrote it: ``sender`` is the task, or None where the message names
#: none that is known; ``letter`` is the letter.
task_dead_lettered = Signal(name="task_dead_lettered", providing_args={"letter"})

_ALSO = frozenset({"revoked", "expired"})

_QUEUE_TYPES = ("classic", "quorum")

#: How many starts of a message may come to no end, unless its task says otherwise.
MAX_CRASHES = 3

#: Seconds before a message goes back whose letter the broker refuses for good.
REFUSED_PAUSE = 5.0

#: How long the starts of a message without a key are remembered.
STARTS_TTL = timedelta(days=7)


@dataclass(frozen=True, init=False)
class dead_letter(Pattern):  # noqa: N801 - used as a call, like every pattern
    """Keep what finally fails.

    It promises that when a task ends for good with an exception, or has taken its worker down ``max_crashes`` times,
    an equal message stands in a durable queue on the app's own broker, with where it came from and why it died, before the
    original is acknowledged. Then the task is FAILURE as ever: chords, errbacks and result backends see it. A task that
    wears it is acknowledged late and goes back to its queue when its worker is lost, unless the task says otherwise.

    So it is with each other end that Celery knows: a hard time limit, a lost worker that is not to be waited for,
    ``Reject(requeue=False)``, a result that cannot be encoded, a message that is damaged. A worker that has such a task also
    keeps messages that name no task of its own, or none at all, in the name of their queue with ``.dead`` behind it.

    It does not promise one copy: a worker killed between the letter and the acknowledgement writes the same letter
    again, under the same id, and reading shows one. What was revoked or has expired leaves a line in the log and no letter,
    unless ``also`` asks for one. What fails only because its key's work failed before leaves none: that failure has one.

    Args:
        queue: The dead-letter queue; by default the name of the task's queue with ``.dead`` behind it. It is taken as it
            is found, and made, durable, when there is none. A name that would be longer than 255 bytes is cut, with a
            digest of the whole behind it; :func:`dead_letters` finds it by either.
        max_crashes: How many starts may come to no end before the message is buried without being run again; 3 by
            default, counted in the claim for a task with a key and in the store otherwise, so that a worker refuses to
            start without a store. Without a key, what comes back is always run at least once. None: never.
        also: Ends that are nobody's fault and leave a letter too: ``"revoked"``, ``"expired"``, or both; none by default.
        queue_type: What is made on RabbitMQ when there is no queue yet: ``"classic"``, the default, or ``"quorum"``, a
            replicated queue whose limit of deliveries is switched off, so that looking at letters loses none. Whether a
            policy of the broker's limits them all the same cannot be seen, which a warning says when the queue is made.
            A broker that is not known to leave the limit off gets a classic queue, and the same warning. A list of Redis
            has no type.

    Raises:
        ConfigurationError: When an argument is wrong.
    """

    layer: ClassVar[Layer] = Layer.BURY

    queue: str | None
    max_crashes: int | None
    also: frozenset[str]
    queue_type: Literal["classic", "quorum"]

    def __init__(
        self,
        queue: str | None = None,
        *,
        max_crashes: int | None = MAX_CRASHES,
        also: Collection[str] = (),
        queue_type: Literal["classic", "quorum"] = "classic",
    ) -> None:
        if queue is not None and (not isinstance(queue, str) or not 0 < len(queue.encode()) <= LONGEST_NAME):
            raise ConfigurationError(
                f'expected queue to be a name of at most 255 bytes, for example dead_letter("orders.dead"), got {queue!r}'
            )
        if max_crashes is not None and (type(max_crashes) is not int or max_crashes < 1):
            raise ConfigurationError(
                f"expected max_crashes to be at least 1, or None for no limit, got {max_crashes!r}"
            )
        if isinstance(also, str) or not set(also) <= _ALSO:
            raise ConfigurationError(f'expected also to hold "revoked", "expired", or both, got {also!r}')
        if queue_type not in _QUEUE_TYPES:
            raise ConfigurationError(f'expected queue_type to be "classic" or "quorum", got {queue_type!r}')
        object.__setattr__(self, "queue_type", queue_type)
        object.__setattr__(self, "also", frozenset(also))
        object.__setattr__(self, "queue", queue)
        object.__setattr__(self, "max_crashes", max_crashes)

    def around(self, proceed: Proceed, call: Call) -> Any:
        if call.eager:
            return proceed(call)
        try:
            limit = call.terms.crash_limit
            if limit is not None and not call.terms.keyed and call.redelivered:
                _count_start(call, limit)
            return proceed(call)
        except (Retry, Ignore, Reject):
            raise
        except Exception as error:
            if call.repeats:  # its letter was written by the run that failed
                call.keep()
                raise
            try:
                self._bury(call, error)
            except SoftTimeLimitExceeded as over:
                emit(logging.CRITICAL, "dead_letter_not_published", call, error=over, requeued=call.late)
                if call.late:
                    raise _back_to_its_queue() from None
            raise

    def _bury(self, call: Call, error: Exception) -> None:
        queue = self.queue
        try:
            letter = written(call, error)
            queue = queue or dead_queue(letter.queue)
            publish_letter(call.app, queue, letter_message(call, letter))
        except SoftTimeLimitExceeded:
            raise
        except Exception as trouble:  # noqa: BLE001 - whatever stopped it, the message must not be lost
            emit(logging.CRITICAL, "dead_letter_not_published", call, error=trouble, queue=queue, requeued=call.late)
            if not call.late:
                return  # acknowledged long ago: the failure and this line are all that can be left of it
            if not (isinstance(trouble, PublishFailed) and trouble.transient):
                time.sleep(REFUSED_PAUSE)  # what is refused for good must not make the body run in a hot loop
            raise _back_to_its_queue() from None
        call.keep()
        with suppress(SoftTimeLimitExceeded):  # the letter stands, and the failure is what the caller is to hear of
            emit(logging.ERROR, "dead_lettered", call, error=error, queue=queue, reason=letter.reason, letter=letter.id)
            task_dead_lettered.send(sender=call.instance, letter=letter)


def _tell_main(sender: Any = None, einfo: Any = None, **_: Any) -> None:
    """Celery hands ``einfo`` to the main process, which writes a letter for each failure that comes without this mark."""
    _mark(einfo, getattr(sender, "request", None))


def _tell_main_of_error(request: Any = None, exception: Any = None, **_: Any) -> None:
    """After an error that was not contained Celery makes the ``einfo`` anew, of the same exception."""
    _mark(exception, request)


def _mark(told: Any, request: Any) -> None:
    if told is None or request is None:
        return
    notes = request.get("delivery_info")
    if notes and notes.get(KEPT):
        setattr(told, KEPT, run_name(request))  # an exception may be raised again, by another run


task_failure.connect(_tell_main, weak=False)
task_internal_error.connect(_tell_main_of_error, weak=False)


def _back_to_its_queue() -> Reject:
    # A string, never the user's exception: a Reject whose reason does not unpickle ends the worker.
    return Reject("the dead letter could not be published; the message goes back to its queue", requeue=True)


def starts_key(task: str, run_id: str, attempt: int) -> str:
    """What stands for one attempt of a task without a key where its starts are counted."""
    return digest(task, run_id, str(attempt))


def _count_start(call: Call, limit: int) -> None:
    """Count the starts of a message that came back; a first delivery costs nothing."""
    store = equipment_of(call.app).store
    key = starts_key(call.task, call.run_id, call.attempt)
    try:
        starts = store.count_start(key, secrets.token_hex(8), ttl=STARTS_TTL)
    except StoreUnavailable as error:
        emit(logging.WARNING, "start_not_counted", call, error=error, reason=str(error))
        return
    # The first delivery is assumed to have been a start. It may have been none, in a worker that was killed before it came
    # to this message, so a message that comes back is always run once.
    crashed = starts > max(limit, 2)
    # Each end sets the count back; but what could not be buried is buried the next time, and not run.
    call.settlements.append(lambda outcome: None if crashed and outcome == REQUEUED else _forget_starts(call, key))
    if crashed:
        raise TooManyCrashes(
            f"{call.task} was started {max(limit, 2)} times and never came to an end; it was not run again"
        )


def _forget_starts(call: Call, key: str) -> None:
    try:
        equipment_of(call.app).store.forget_starts(key)
    except StoreUnavailable as error:
        emit(logging.WARNING, "starts_not_forgotten", call, error=error, reason=str(error))
