"""The request of a task that wears patterns, in the worker's main process."""

from __future__ import annotations

from typing import Any

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.exceptions import Ignore, InvalidTaskError, Reject, Retry, TaskRevokedError
from celery.worker import request
from kombu.exceptions import EncodeError

from .._equipment import EQUIPMENT, equipment_of
from .._message import KEPT, OWNER, new_owner, run_name
from .._plan import Plan
from ..exceptions import OutOfMemory
from ._lost_key import free_lost_key

__all__ = ["BEGUN", "Request"]

#: What is written on a message whose run was begun: what is raised with it from then on is no flaw of the message's.
BEGUN = "celery_patterns_begun"

Ending = tuple[str, BaseException, str]

#: Ends whose letter this process writes, and then gives the key back: of most, nobody else was left to do so.
_LEFT = frozenset({"rejected", "time_limit", "worker_lost"})


class Request(request.Request):  # type: ignore[misc]
    """A request that is acknowledged after its end was recorded.

    The child writes the letter of what it raised itself; this one those of all other ends.

    What every message passes is as short as can be, since it is paid by each task that succeeds: what only some ends need
    is looked up there.
    """

    #: Those that wait for their start, where this is one of them.
    _awaited: set[Any] | None = None
    #: How the message ended, when that is for this process to record.
    _ending: Ending | None = None
    _recorded = False
    #: Called off while it ran: that it then ends is no news.
    _stopped = False
    #: Called off, and its run has come to an end: not every signal ends one.
    _over = False
    #: A child is lost, and Celery has still to say whether that is the end.
    _undecided = False
    _acknowledge_then = False
    #: Its letter was written by the child.
    _kept = False

    def __init__(self, message: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(message, *args, **kwargs)
        plan = getattr(self._task, "plan", None)
        if not isinstance(plan, Plan):
            return
        if plan.terms.keyed:
            # Of this delivery, and of no message: a child that is lost held its key in this name.
            self.delivery_info[OWNER] = new_owner(self.id)
        elif plan.counted and not self._delivery_info["redelivered"]:  # which was counted already
            equipment = self._app.__dict__.get(EQUIPMENT)
            if equipment is not None and equipment.recorder is not None:
                self._awaited = unstarted = equipment.recorder.unstarted
                unstarted.add(self)  # one step, as that which takes it out: each message takes both

    @property
    def _recorder(self) -> Any:
        return equipment_of(self._app).recorder

    @property
    def _pattern(self) -> Any:
        """The ``dead_letter`` of its task, in a worker that has a recorder."""
        plan = getattr(self._task, "plan", None)
        return plan.buries if isinstance(plan, Plan) and self._recorder is not None else None

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Celery's door for a start."""
        setattr(self._message, BEGUN, True)
        if self._awaited is not None:
            self._awaited.discard(self)
        super().on_accepted(pid, time_accepted)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """Celery's door for every failure, a child's own and its loss."""
        _spare(self.task, exc_info)
        if not return_ok and isinstance(_error_of(exc_info), Terminated):
            self._over = True  # its child has gone
            if self.acknowledged:
                free_lost_key(self)
        self._kept = return_ok and self._is_kept(exc_info)
        self._ending = self._ending or self._ending_of(exc_info, from_child=return_ok)
        self._undecided = self._ending is not None and self._ending[0] == "worker_lost"
        if self._undecided:
            self.__dict__["send_event"] = self._on_event  # until it is decided: others need not pass it
        try:
            return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)
        except Exception:
            # Celery tells the result backend first, which may be away: the message would stay here for ever.
            if self._ending is not None and not self._undecided and not self.acknowledged:
                self._record()
            raise
        finally:
            self._undecided = False
            self.__dict__.pop("send_event", None)
            if self._acknowledge_then:
                self.acknowledge()
            self._record_acknowledged()

    def _on_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's name
        """Celery's door for what it tells: here, after the acknowledgement, that a lost child is not the end.

        It had stored its result before, or the task's ``retry_on_worker_lost`` has sent it again.
        """
        if type in ("task-succeeded", "task-retried"):
            self._ending = None
        self.__class__.send_event(self, type, **fields)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Celery's door for time limits; the hard one comes by :meth:`on_failure` too, and first."""
        if not soft and self._ending is None and self._pattern is not None:
            self._ending = ("time_limit", TimeLimitExceeded(timeout), "")
        try:
            super().on_timeout(soft, timeout)
        finally:
            self._record_acknowledged()

    def revoked(self) -> bool:
        """Celery's door for tasks that are not to run any more."""
        plan = getattr(self._task, "plan", None)
        buries: Any = plan.buries if isinstance(plan, Plan) else None
        if buries is not None and buries.also and self._ending is None:
            self._ending = self._called_off("expired" if self.expires and self.maybe_expire() else "revoked")
            revoked = bool(super().revoked())
            if not revoked:
                self._ending = None
        else:
            revoked = bool(super().revoked())
        if revoked and self._awaited is not None:
            self._awaited.discard(self)
        return revoked

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Celery's door for tasks that are called off while they run."""
        before = self._stopped, self._ending
        if self.time_start:
            self._stopped = True
            self._ending = self._ending or self._called_off("revoked")
        try:
            super().terminate(pool, signal)
        except NotImplementedError:  # a pool that cannot: it goes on
            self._stopped, self._ending = before
            raise
        finally:
            self._record_acknowledged()

    def cancel(self, pool: Any, signal: Any = None, *args: Any, **kwargs: Any) -> None:
        """Celery's door for tasks that it stops because their messages will come back."""
        self._stopped = True
        super().cancel(pool, signal, *args, **kwargs)

    def _called_off(self, reason: str) -> Ending | None:
        if self._pattern is None or reason not in self._pattern.also:
            return None
        return reason, TaskRevokedError(reason), ""

    def acknowledge(self) -> None:
        """Acknowledge, once the letter stands."""
        if self._ending is None or self.acknowledged:
            super().acknowledge()
        else:
            self._record()

    def reject(self, requeue: bool = False) -> None:
        """Reject; what is not to come back is acknowledged instead once its letter stands."""
        if not requeue and self._kept:
            # Rejected, it would be buried once more by a queue of RabbitMQ's that buries.
            self.acknowledge()
            return
        if not requeue and self._ending is None and self.eta and not (self.time_start or self.acknowledged):
            self._refuse_eta()
        if requeue or self._ending is None or self.acknowledged:
            if not self._recorded:
                super().reject(requeue)
        else:
            self._record()

    def _refuse_eta(self) -> None:
        """Before it starts, Celery rejects only what is to wait for a moment that is none."""
        if self._pattern is not None:
            self._ending = ("malformed", InvalidTaskError("its eta is no time that the worker can wait for"), "")
        if self._awaited is not None:
            self._awaited.discard(self)

    def _ending_of(self, exc_info: Any, *, from_child: bool) -> Ending | None:
        error = _error_of(exc_info)
        if self._pattern is None or isinstance(error, Retry | Ignore):
            return None
        if isinstance(error, Reject) and error.requeue and not self.acknowledged:
            return None  # what was acknowledged before it ran cannot go back
        reason = _reason(error)
        if from_child and self._kept:
            return None
        if isinstance(error, Terminated):
            return None if self._stopped else self._called_off("revoked")
        if self._stopped and isinstance(error, SystemExit | KeyboardInterrupt):
            return None
        return reason, error, str(exc_info.traceback or "")

    def _is_kept(self, exc_info: Any) -> bool:
        """Whether this run's letter or its next attempt stands."""
        if self.delivery_info.get(KEPT):  # the pool has no processes of its own
            return True
        name = run_name(self.request_dict)
        return any(getattr(told, KEPT, None) == name for told in (exc_info, _error_of(exc_info)))

    def _record(self) -> None:
        if self._undecided:
            self._acknowledge_then = True
        if self._undecided or self._recorded:
            return
        self._recorded = True
        assert self._ending is not None
        reason, error, trace = self._ending
        self._recorder.record(
            self.message,
            reason,
            error,
            task=self.task,
            done=self._done,
            back=self._give_back,
            trace=trace,
        )

    def _done(self) -> None:
        # The durable copy, then the key, then the acknowledgement.
        if self._over or (self._ending is not None and self._ending[0] in _LEFT):
            free_lost_key(self)
        super().acknowledge()

    def _give_back(self) -> None:
        if self._ending is not None and self._ending[0] == "rejected":
            free_lost_key(self, failed=False)
        super().reject(requeue=True)

    def _record_acknowledged(self) -> None:
        """What was acknowledged before it ran has nothing to wait for its letter."""
        if self._ending is not None and not self.task.acks_late:
            self._record()


def _error_of(exc_info: Any) -> Any:
    error = exc_info.exception
    return error.exc if isinstance(error, ExceptionWithTraceback) else error


def _spare(task: Any, exc_info: Any) -> None:
    """A ``MemoryError`` of a hook's ends the worker, as that of a body would; see :class:`OutOfMemory`."""
    if isinstance(_error_of(exc_info), MemoryError):
        exc_info.type = OutOfMemory
        exc_info.exception = OutOfMemory(f"{task.name} ran out of memory; the worker was spared")


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeLimitExceeded):
        return "time_limit"
    if isinstance(error, WorkerLostError | SystemExit | KeyboardInterrupt):
        return "worker_lost"
    if isinstance(error, Reject):
        return "rejected"
    return "result_not_encodable" if isinstance(error, EncodeError) else "failed"
