"""CP201 to CP204, CP207 to CP210, CP213: the workers that listen now, beside what the app expects of them."""

from __future__ import annotations

import ast
import shlex
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...letters import letters_among
from .._finding import Rule, Sign, UnknownError, rule, some
from .._tasks import TaskFacts, seconds
from .._values import sends
from .._workers import Worker

if TYPE_CHECKING:
    from .._case import Case
    from .._module import Module

#: Pools that cannot stop what they run.
_WITHOUT_HARD = {"thread", "solo"}
_WITHOUT_SOFT = {"thread", "solo", "gevent", "eventlet"}
#: A task that may take so long is a long one, in seconds, and so many messages are more than one worker's share.
_LONG = 60.0
#: Seconds by which clocks may differ.
_SKEW = 5.0


@rule(
    "CP201",
    "error",
    "No worker answers",
    "Tasks are sent and wait in their queues; whoever waits for a result waits without an end.",
    upstream="wooey/Wooey#47",
)
def nobody(case: Case) -> Iterator[Sign]:
    """None runs, or none is connected to this broker."""
    if case.workers or case.mixed or case.refused or case.malformed:  # none starts: CP423, CP421 and CP419 say why
        return
    listening = [name for name, queue in case.queues_there.items() if queue.consumers]
    if listening:
        raise UnknownError(
            f"the workers: somebody listens to {some(listening)} and does not answer; a solo pool that runs a task cannot"
        )
    main = case.app.main
    name = main if main and main != "__main__" else "proj"
    letters = letters_among(case.app, {*case.app.amqp.queues.consume_from})
    line, why = f"celery -A {name} worker -l INFO", ""
    if letters:
        line += f" -X {shlex.quote(','.join(sorted(letters)))}"
        why = f" Without -X it would consume {min(letters)}, and refuse to start."
    yield Sign(
        "workers",
        "the broker answers, and no worker of this app does",
        f"Start one, with the same -A: {line}.{why} If one runs, compare its broker with this app's, "
        "which its first lines show as `transport`; one with a solo pool does not answer while it runs a task.",
    )


@rule(
    "CP202",
    "error",
    "A queue has no consumer",
    "Tasks that are sent there wait for ever.",
    upstream="celery/celery#2103",
)
def unheard(case: Case) -> Iterator[Sign]:
    """Tasks are routed, or sent by a call's own ``queue=``, to a queue that no worker listens to."""
    heard = _heard(case)
    if not case.workers or heard is None:
        return
    listen = f"the workers listen to {f'{some(sorted(heard))} only' if heard else 'none'}"
    for queue, tasks in sorted(case.queues.items()):
        there = case.queues_there.get(queue)
        if queue not in heard and not (there and there.consumers):
            yield Sign(
                f"queue {queue}",
                f"{some(tasks)} {_goes(tasks)} to the queue {queue}, and {listen}",
                f"Start a worker with -Q {queue}, or route the task to one of theirs.",
            )
    others = {queue for worker in case.answered if isinstance(worker, Worker) for queue in worker.queues or ()}
    for queue, module, call in _named_in_calls(case):
        if queue not in heard | others | case.queues.keys() and not module.is_excused(call, "CP202"):
            yield Sign(
                module.place(call),
                f"it sends to the queue {queue}, and {listen}",
                f"Start a worker with -Q {queue}, or name one of theirs.",
            )


def _named_in_calls(case: Case) -> Iterator[tuple[str, Module, ast.Call]]:
    """``apply_async(queue="…")``, where the source was read."""
    for module in case.modules if not isinstance(case.modules, str) else ():
        for call in module.calls:
            named = [getattr(word.value, "value", None) for word in call.keywords if word.arg == "queue"]
            if named and isinstance(named[0], str) and sends(case, module, call):
                yield named[0], module, call


@rule(
    "CP203",
    "hint",
    "A worker listens to a queue that no task goes to",
    "It idles there; more often than not the name is misspelt on one side.",
    upstream="celery/celery#3980",
)
def idle(case: Case) -> Iterator[Sign]:
    """A worker's queue is none of those that the app's tasks, its settings and its schedule name."""
    if not case.tasks or any(queue not in (_heard(case) or ()) for queue in case.queues):
        return  # where a queue has no consumer, this is the other side of the same mistake
    known = {*case.queues, *map(str, case.app.amqp.queues), str(case.conf.task_default_queue)}
    for worker in case.workers:
        # One that knows all of the app's tasks is its own, and another app's may know one that both share.
        own = worker in case.hearers or (worker.tasks is not None and case.by_name.keys() <= worker.tasks)
        for queue in sorted((worker.queues or frozenset()) - known) if own else ():
            yield Sign(
                f"queue {queue}",
                f"{worker.name} listens to the queue {_quoted(queue)}, and none of the app's tasks is routed there",
                f"Correct its -Q, or ignore this where .apply_async(queue={queue!r}) is what sends there.",
            )


def _quoted(queue: str) -> str:
    """Blanks are a part of the name, and none sees them."""
    return queue if queue == queue.strip() else repr(queue)


@rule(
    "CP204",
    "error",
    "A worker does not know a task of its queue",
    "It throws such a task away, with a line in its log, and the task's result never comes.",
    upstream="celery/celery#6893",
)
def unknown_task(case: Case) -> Iterator[Sign]:
    """A worker takes the queue's messages and has not imported the task."""
    for worker in case.workers:
        if worker.tasks is None or worker.queues is None:
            continue
        lacks = [task for task in case.tasks if task.queue in worker.queues and task.name not in worker.tasks]
        if lacks:
            queues, names = [task.queue or "" for task in lacks], [task.name for task in lacks]
            yield Sign(
                worker.name,
                f"it listens to {some(queues)}, and does not know {some(names)}",
                "Restart it, so that it has this code; if it has, add the module to `include` of the app, or to "
                "autodiscover_tasks().",
            )


@rule(
    "CP207",
    "error",
    "A pool that ignores hard time limits",
    "The task runs on past its limit, and a task that hangs keeps its slot until the worker is restarted.",
    upstream="celery/celery#9203",
)
def hard_limits(case: Case) -> Iterator[Sign]:
    """Only processes can be killed: threads and solo go on."""
    yield from _limits(case, _WITHOUT_HARD, "time_limit", "hard_limit", 1)


@rule(
    "CP208",
    "error",
    "A pool that ignores soft time limits",
    "SoftTimeLimitExceeded is never raised: what the body does when it catches it is never done.",
    upstream="celery/celery#1958",
)
def soft_limits(case: Case) -> Iterator[Sign]:
    """Only processes are sent the signal."""
    yield from _limits(case, _WITHOUT_SOFT, "soft_time_limit", "soft_limit", 0)


def _limits(case: Case, pools: set[str], option: str, fact: str, number: int) -> Iterator[Sign]:
    for worker in case.workers:
        if worker.pool not in pools:
            continue
        limited = [task for task in _taken_by(worker, case) if getattr(task, fact) is not None]
        own = worker.limits[number]
        if limited:
            first = limited[0]
            yield Sign(
                worker.name,
                f"its pool is {worker.pool}, and {some([task.name for task in limited])} {_has(limited)} "
                f"{first.limit_line(option)}",
                "Run it in processes (-P prefork), or take the limit away and bound what the body waits for by time-outs.",
            )
        elif own is not None:
            yield Sign(
                worker.name,
                f"its pool is {worker.pool}, and it was started with a limit of {own:g} s",
                "Run it in processes (-P prefork), or take the limit away.",
            )


@rule(
    "CP209",
    "warning",
    "A worker takes more long tasks than it can run",
    "Short tasks wait behind long ones in one worker's memory while another worker idles.",
    upstream="celery/celery#6500",
)
def prefetch(case: Case) -> Iterator[Sign]:
    """Several messages for each slot are taken, and a task may run for a minute or more."""
    if len(case.workers) < 2:  # noqa: PLR2004 - nobody else would have taken them
        return
    greedy: dict[tuple[int, int, str], list[str]] = defaultdict(list)
    for worker in case.workers:
        long = [task for task in _taken_by(worker, case) if _limit_of(task) >= _LONG]
        if long and worker.prefetch > worker.slots:
            greedy[worker.prefetch, worker.slots, max(long, key=_limit_of).name].append(worker.name)
    for (messages, slots, name), workers in greedy.items():
        yield Sign(
            some(workers),
            f"takes {messages} messages for {slots} {'slot' if slots == 1 else 'slots'}, and {name} may run for "
            f"{seconds(_limit_of(case.by_name[name]))}",
            f"Set {case.line('worker_prefetch_multiplier', '1')} and {case.line('task_acks_late', 'True')}, or give long "
            "tasks a queue and a worker of their own.",
        )


@rule(
    "CP210",
    "error",
    "A worker's clock is wrong",
    "What is to wait runs too early or too late there, and what expires is thrown away too early or not at all.",
    upstream="celery/celery#1980",
)
def clock(case: Case) -> Iterator[Sign]:
    """Its clock and this machine's differ by more than 5 seconds."""
    for worker in case.workers:
        if worker.ahead is not None and abs(worker.ahead) > _SKEW:
            how = "before" if worker.ahead > 0 else "behind"
            yield Sign(
                worker.name,
                f"its clock is {seconds(round(abs(worker.ahead)))} {how} this machine's",
                "Keep the clocks of both by NTP.",
            )


def _limit_of(task: TaskFacts) -> float:
    return task.hard_limit or task.soft_limit or 0.0


def _taken_by(worker: Worker, case: Case) -> list[TaskFacts]:
    return [task for task in case.tasks if worker.queues is None or task.queue in worker.queues]


def _heard(case: Case) -> set[str] | None:
    """The queues that workers listen to; None where one did not say."""
    if any(worker.queues is None for worker in case.workers):
        return None
    return {queue for worker in case.workers for queue in worker.queues or ()}


def _goes(names: list[str]) -> str:
    return "goes" if len(set(names)) == 1 else "go"


def _has(tasks: list[TaskFacts]) -> str:
    return "has" if len(tasks) == 1 else "have"


@rule(
    "CP213",
    "hint",
    "Dead letters that nobody has looked at",
    "What they were to do is not done.",
    upstream="reef-technologies/cookiecutter-rt-django#195",
)
def unread_letters(case: Case) -> Iterator[Sign]:
    """Letters stand in a dead-letter queue of the app's."""
    if isinstance(case.letters, str):
        raise UnknownError(case.letters)
    main = case.app.main
    see = f"celery -A {main if main and main != '__main__' else 'proj'} patterns letters stats"
    for queue, count in case.letters.items():
        if count:
            yield Sign(
                f"queue {queue}",
                f"{count:,} {'letter stands' if count == 1 else 'letters stand'} there",
                f"See of what they died: {see} -Q {shlex.quote(queue)}.",
            )


RULES: tuple[Rule, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
