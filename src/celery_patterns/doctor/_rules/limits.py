"""CP3: for each task numbers that must stand in an order, from its patterns, its limits and the app's settings."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery.exceptions import SoftTimeLimitExceeded

from .._finding import Rule, Sign, rule
from .._tasks import TaskFacts, seconds

if TYPE_CHECKING:
    from .._case import Case

#: For how long RabbitMQ waits for an acknowledgement, in seconds, unless its ``consumer_timeout`` says otherwise.
_CONSUMER_TIMEOUT = 1800.0


@rule(
    "CP301",
    "error",
    "A task may run longer than the visibility timeout",
    "Redis gives its message out again while it runs: it runs twice at once, and again after each further timeout.",
    upstream="celery/celery#5935",
)
def outruns_visibility(case: Case) -> Iterator[Sign]:
    """Its hard time limit is longer than the time after which Redis takes an unacknowledged message for lost."""
    timeout = case.visibility_timeout
    if timeout is None:
        return
    for task in case.tasks:
        # A key absorbs the copy, which waits and returns the result.
        if task.late and task.keyed is None and task.hard_limit is not None and task.hard_limit >= timeout:
            yield Sign(
                task.name,
                f"it is acknowledged late and may run for {seconds(task.hard_limit)} ({task.limit_line('time_limit')}), and "
                f"{case.visibility_line}",
                case.longer_visibility(task.hard_limit),
            )


@rule(
    "CP302",
    "hint",
    "A task without a time limit, on a broker with a visibility timeout",
    "A run that takes longer than the visibility timeout is run again beside the first.",
    upstream="pretix/pretix#2058",
)
def endless_run(case: Case) -> Iterator[Sign]:
    """It is acknowledged late, and nothing says how long it may run."""
    timeout = case.visibility_timeout
    endless = [task for task in case.tasks if task.late and task.keyed is None and task.hard_limit is None]
    if timeout is not None and endless:
        yield Sign(
            endless[0].name,
            f"{_many(endless)} acknowledged late and {'has' if len(endless) == 1 else 'have'} no time limit, and "
            f"{case.visibility_line}",
            f"Set a limit below it: {case.line('task_time_limit', str(max(1, int(timeout * 0.8))))}.",
        )


@rule(
    "CP303",
    "error",
    "A wait longer than the visibility timeout",
    "Redis gives the waiting message out again at each timeout, to this worker or another: the attempt runs once for each.",
    upstream="celery/kombu#337",
)
def outwaits_visibility(case: Case) -> Iterator[Sign]:
    """A retry waits, unacknowledged in a worker, for longer than Redis waits for an acknowledgement."""
    timeout = case.visibility_timeout
    if timeout is None:
        return
    for task in case.tasks:
        if task.longest_wait is not None and task.longest_wait >= timeout:
            yield Sign(
                task.name,
                f"its next attempt may wait for {seconds(task.longest_wait)}, and {case.visibility_line}",
                case.longer_visibility(task.longest_wait) + " Or let it wait less.",
            )


@rule(
    "CP304",
    "warning",
    "Longer than RabbitMQ waits for an acknowledgement",
    "RabbitMQ closes the worker's channel (PRECONDITION_FAILED, 406), and all that the worker holds is delivered again.",
    upstream="celery/celery#6760",
)
def outlasts_consumer_timeout(case: Case) -> Iterator[Sign]:
    """A message stays unacknowledged for more than the server's ``consumer_timeout``, 30 minutes by default."""
    if case.transport != "amqp":
        return
    for task in case.tasks:
        runs = task.hard_limit if task.late else None
        for how, span in (("may run for", runs), ("waits up to", None if case.delays_natively else task.longest_wait)):
            timeout, said = _consumer_timeout(case.queue_of(task.queue))
            if span is not None and span >= timeout:
                longer = int(span * 1000 * 1.5)
                yield Sign(
                    task.name,
                    f"it {how} {seconds(span)} unacknowledged, and {said} {seconds(timeout)}",
                    f'Give its queue the argument "x-consumer-timeout": {longer} (in ms, RabbitMQ 3.12 or later), or cut '
                    f"the task. Where consumer_timeout = {longer} stands in rabbitmq.conf, which only administrators see, "
                    "ignore this.",
                )


def _consumer_timeout(queue: Any) -> tuple[float, str]:
    """For how long RabbitMQ waits, in seconds, and who says so."""
    if queue is not None and isinstance((queue.queue_arguments or {}).get("x-consumer-timeout"), int):
        return queue.queue_arguments["x-consumer-timeout"] / 1000, f"the x-consumer-timeout of {queue.name} is"
    return _CONSUMER_TIMEOUT, "RabbitMQ's consumer_timeout is by default"


@rule(
    "CP305",
    "error",
    "A killed task comes back without an end",
    "A task that takes its process down, for want of memory for instance, is delivered again at once, and again.",
    upstream="celery/celery#9082",
)
def crash_loop(case: Case) -> Iterator[Sign]:
    """It goes back to its queue when its process is lost, and nobody counts how often."""
    for task in case.tasks:
        counted = getattr(getattr(task.task, "plan", None), "terms", None)
        queue = case.queue_of(task.queue)
        if queue is not None and "x-delivery-limit" in (queue.queue_arguments or {}):
            continue  # RabbitMQ counts
        limited = counted is not None and counted.crash_limit is not None
        if task.returns_when_lost and not limited and not getattr(task.task, "retry_on_worker_lost", False):
            cure = (
                "Let it wear dead_letter(), which buries it after 3 starts that came to no end"
                if counted is None
                else "Give dead_letter() its max_crashes, 3 for instance"
            )
            yield Sign(
                task.name,
                "acks_late=True and reject_on_worker_lost=True, and no limit for crashes",
                f"{cure}; or take reject_on_worker_lost away.",
            )


@rule(
    "CP306",
    "warning",
    "Late acknowledgement that does not survive a kill",
    "When its process is killed the task is FAILURE with WorkerLostError, acknowledged, and not run again.",
    upstream="celery/celery#1628",
)
def lost_though_late(case: Case) -> Iterator[Sign]:
    """It is acknowledged late, and not put back when the process that runs it is lost."""
    for task in case.tasks:
        if task.late and not task.returns_when_lost and not getattr(task.task, "retry_on_worker_lost", False):
            yield Sign(
                task.name,
                "acks_late=True and reject_on_worker_lost=False",
                "Let it wear dead_letter(), in an app that was equipped: it puts it back and counts its crashes. Or set "
                "reject_on_worker_lost=True, which counts nothing.",
            )


@rule(
    "CP307",
    "error",
    "A promise that early acknowledgement breaks",
    "A worker that is killed loses the task that it runs: no letter, no second run.",
    upstream="hypothesis/lms#5241",
)
def early_though_promised(case: Case) -> Iterator[Sign]:
    """It wears a pattern that promises not to lose it, and says ``acks_late=False`` itself."""
    for task in case.tasks:
        if task.promises and not task.returns_when_lost:
            yield Sign(
                task.name,
                f"it wears {task.promises}, and says acks_late={task.late} and "
                f"reject_on_worker_lost={bool(task.task.reject_on_worker_lost)}",
                "Take both options away from the task: the pattern sets them.",
            )


@rule(
    "CP308",
    "error",
    "A task that times out comes back without an end",
    "At its hard limit it is put back into its queue, and runs into its limit again.",
    upstream="celery/celery#4970",
)
def timeout_loop(case: Case) -> Iterator[Sign]:
    """It is not acknowledged on a timeout, and has a hard limit."""
    for task in case.tasks:
        on_timeout = getattr(task.task, "acks_on_timeout", None)
        if on_timeout is None:
            on_timeout = task.task.acks_on_failure_or_timeout
        buried = task.buries is not None  # whose letter is its end, also at a limit
        if task.late and task.hard_limit is not None and on_timeout is False and not buried:
            yield Sign(
                task.name,
                f"{task.limit_line('time_limit')}, acks_late=True and acks_on_failure_or_timeout=False",
                "Take acks_on_failure_or_timeout away, and let it wear dead_letter(), which keeps failures and timeouts.",
            )


@rule(
    "CP309",
    "error",
    "A soft limit that never strikes",
    "The hard limit kills the process first: SoftTimeLimitExceeded is never raised, and nothing is tidied up. "
    "Celery 5.7 refuses to send it.",
    upstream="celery/celery#9125",
)
def soft_after_hard(case: Case) -> Iterator[Sign]:
    """The soft limit is not shorter than the hard one."""
    for task in case.tasks:
        if task.soft_limit is not None and task.hard_limit is not None and task.soft_limit >= task.hard_limit:
            yield Sign(
                task.name,
                f"{task.limit_line('soft_time_limit')} and {task.limit_line('time_limit')}",
                f"Let the soft one be shorter: soft_time_limit={max(1, int(task.hard_limit * 0.8))}.",
            )


@rule(
    "CP310",
    "warning",
    "Results that expire before the last attempt",
    "Whoever waits for it, a chord too, finds nothing: the parts that were done early are gone by then.",
    upstream="microbiomedata/nmdc-server#821",
)
def results_expire(case: Case) -> Iterator[Sign]:
    """All attempts with their waits may take longer than a result is kept."""
    keeps = _kept(case.conf.result_expires)
    if keeps is None or not case.keeps_results:
        return
    for task in case.tasks:
        if task.task.ignore_result or task.longest_span is None or task.longest_span < keeps:
            continue
        yield Sign(
            task.name,
            f"its attempts may take {seconds(task.longest_span)} in all, and result_expires={keeps:g}",
            f"Set {case.line('result_expires', str(int(task.longest_span * 2)))}, or let it be tried for less: within=….",
        )


@rule(
    "CP311",
    "error",
    "A key that is forgotten before the last attempt",
    "A copy of an attempt that has ended is then run again, beside the attempts that are still to come.",
    upstream="steinitzu/celery-singleton#38",
)
def key_forgotten(case: Case) -> Iterator[Sign]:
    """All attempts with their waits may take longer than the key is remembered."""
    for task in case.tasks:
        if task.keyed is None or task.longest_span is None:
            continue
        ttl = task.keyed.ttl.total_seconds()
        if task.longest_span > ttl:
            yield Sign(
                task.name,
                f"its attempts may take {seconds(task.longest_span)} in all, and its key is kept for ttl={seconds(ttl)}",
                f"Write ttl=timedelta(seconds={int(task.longest_span * 2)}) or more.",
            )


@rule(
    "CP312",
    "warning",
    "Duplicates that give up before the work can be done",
    "A duplicate of work that still runs fails with InProgress, though the work is then done.",
    upstream="steinitzu/celery-singleton#29",
)
def gives_up_waiting(case: Case) -> Iterator[Sign]:
    """``wait_within`` is shorter than a run may be."""
    for task in case.tasks:
        if task.keyed is None or task.hard_limit is None or task.keyed.when_running != "wait":
            continue
        within = task.keyed.wait_within.total_seconds()
        if within < task.hard_limit:
            yield Sign(
                task.name,
                f"a duplicate waits for wait_within={seconds(within)}, and a run may take {task.limit_line('time_limit')}",
                f"Write wait_within=timedelta(seconds={int(task.hard_limit * 2)}), or a shorter limit.",
            )


@rule(
    "CP313",
    "error",
    "A soft limit that is tried again",
    "The task is stopped at its soft limit and begun again from the start, each time into the same limit.",
    upstream="celery/celery#6873",
)
def retries_soft_limit(case: Case) -> Iterator[Sign]:
    """``autoretry_for`` names ``Exception``, which ``SoftTimeLimitExceeded`` is."""
    for task in case.tasks:
        kinds = getattr(task.task, "autoretry_for", None) or ()
        spared = getattr(task.task, "dont_autoretry_for", None) or ()
        strikes = task.soft_limit is not None and not any(issubclass(SoftTimeLimitExceeded, kind) for kind in spared)
        if strikes and any(kind in (Exception, BaseException) for kind in kinds):
            yield Sign(
                task.name,
                f"autoretry_for=(Exception,) and {task.limit_line('soft_time_limit')}",
                "Name what trying again can help, as @retry(on=(ConnectionError, TimeoutError)) does, in its place; or add "
                "dont_autoretry_for=(SoftTimeLimitExceeded,).",
            )


@rule(
    "CP314",
    "warning",
    "Retries without an end",
    "A failure that does not pass is tried for ever: such tasks gather until they are all that the workers do.",
    upstream="celery/celery#1394",
)
def endless_retries(case: Case) -> Iterator[Sign]:
    """``autoretry_for`` without a limit."""
    for task in case.tasks:
        if task.retries is None:
            yield Sign(
                task.name,
                "it has autoretry_for and max_retries=None",
                "Set max_retries, or wear retry(on=…, attempts=5) with dead_letter() behind it.",
            )


def _kept(expires: Any) -> float | None:
    if isinstance(expires, timedelta):
        return expires.total_seconds()
    return float(expires) if expires else None


def _many(tasks: list[TaskFacts]) -> str:
    return f"{tasks[0].name} is" if len(tasks) == 1 else f"{tasks[0].name} and {len(tasks) - 1} more are"


RULES: tuple[Rule, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
