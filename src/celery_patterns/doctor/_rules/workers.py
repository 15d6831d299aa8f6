"""CP2: the workers that listen now, beside what the app expects of them."""

from __future__ import annotations

import ast
import shlex
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ...letters import letters_among
from .._finding import Rule, Sign, UnknownError, rule
from .._tasks import TaskFacts, seconds
from .._values import sends
from .._workers import Worker

if TYPE_CHECKING:
    from .._case import Case
    from .._module import Module

#: Settings on which all that share a queue must agree.
_SHARED = (
    "accept_content",
    "broker_transport_options",
    "enable_utc",
    "result_backend",
    "result_serializer",
    "task_acks_late",
    "task_default_queue",
    "task_protocol",
    "task_reject_on_worker_lost",
    "task_serializer",
    "timezone",
)
#: What may hold a password.
_SECRET = ("result_backend", "broker_transport_options")
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
            f"the workers: somebody listens to {_some(listening)} and does not answer; a solo pool that runs a task cannot"
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
    listen = f"the workers listen to {f'{_some(sorted(heard))} only' if heard else 'none'}"
    for queue, tasks in sorted(case.queues.items()):
        there = case.queues_there.get(queue)
        if queue not in heard and not (there and there.consumers):
            yield Sign(
                f"queue {queue}",
                f"{_some(tasks)} {_goes(tasks)} to the queue {queue}, and {listen}",
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
                f"it listens to {_some(queues)}, and does not know {_some(names)}",
                "Restart it, so that it has this code; if it has, add the module to `include` of the app, or to "
                "autodiscover_tasks().",
            )


@rule(
    "CP205",
    "warning",
    "Workers have different versions",
    "A message of one may mean something else to the other: what a version adds, the older one drops.",
    upstream="celery/celery#4356",
)
def versions(case: Case) -> Iterator[Sign]:
    """Of Celery, kombu, billiard or Python."""
    for part in ("celery", "kombu", "billiard", "py"):
        found = _grouped((worker.versions.get(part), worker) for worker in case.workers)
        if len(found) > 1:
            said = "; ".join(f"{version}: {_some(names)}" for version, names in sorted(found.items()))
            yield Sign("workers", f"they run different versions of {part} ({said})", "Deploy one version to all.")


@rule(
    "CP206",
    "warning",
    "Workers have different settings",
    "Which of them a message meets decides what happens to it; on Redis the shortest visibility timeout rules all.",
    upstream="celery/celery#9349",
)
def settings(case: Case) -> Iterator[Sign]:
    """Two workers, or a worker and this app, disagree where they must agree."""
    for name in _SHARED:
        told: list[tuple[Any, str]] = [
            (repr(worker.settings[name]), worker.name)
            for worker in case.hearers
            if worker.settings is not None and name in worker.settings  # they have others with Celery 3's names
        ]
        # Both as they look once JSON has carried them.
        values = {value for value, _ in told}
        if len(values) > 1:
            found: dict[str, list[str]] = defaultdict(list)
            for value, worker in told:
                found[value].append(worker)
            shown = name not in _SECRET
            said = "; ".join(f"{f'{value}: ' if shown else ''}{_some(names)}" for value, names in sorted(found.items()))
            yield Sign("workers", f"they differ in {name} ({said})", f"Deploy one value of {name} to all.")
        elif values and name in _TOLD and _plain(case.conf[name]) not in values:
            yield Sign(
                "workers",
                f"they have {name}={next(iter(values))}, and this app has {case.conf[name]!r}",
                f"Restart them, or deploy one value of {name} to both.",
            )
    yield from _results_elsewhere(case)


def _results_elsewhere(case: Case) -> Iterator[Sign]:
    """Results that workers keep in another place of the same server than this app reads them from.

    Another server is left alone: who asks from elsewhere may know it by another name.
    """
    ours = _place(case.app.conf.table(with_defaults=True, censored=True).get("result_backend"))
    for worker in case.hearers:
        theirs = _place((worker.settings or {}).get("result_backend"))
        if ours is not None and theirs is not None and ours[0] == theirs[0] and ours[1] != theirs[1]:
            yield Sign(
                "workers",
                f"{worker.name} keeps results in {theirs[1]} of {theirs[0]}, and this app reads them in {ours[1]}",
                "Restart it, or deploy one value of result_backend to both.",
            )
            return


def _place(url: object) -> tuple[str, str] | None:
    """The server of a URL, and where in it."""
    if not isinstance(url, str) or "://" not in url or ";" in url:
        return None
    server, _, path = url.partition("://")[2].rpartition("@")[2].partition("?")[0].partition("/")
    return server, path.rstrip("/") or "0"


#: Those whose values JSON carries as they are, and that are no secrets.
_TOLD = ("task_acks_late", "task_default_queue", "task_protocol", "task_reject_on_worker_lost")


@rule(
    "CP211",
    "error",
    "A worker runs a task with other patterns",
    "It has older code, or newer: what it runs is claimed, tried again and kept as that says, or not at all.",
    upstream="celery/celery#6893",
)
def worn_otherwise(case: Case) -> Iterator[Sign]:
    """A worker says of a task that it wears other patterns than here, or none."""
    for worker in case.hearers:
        for task in case.tasks if worker.tasks is not None else ():
            ours, theirs = task.wears, worker.wears.get(task.name, "")
            if task.name in (worker.tasks or ()) and ours != theirs:
                yield Sign(
                    worker.name,
                    f"{task.name} wears {_worn(ours)} here, and {_worn(theirs)} there",
                    "Restart it, so that it has this code.",
                )


def _worn(plan: str) -> str:
    return plan.replace("+", ", ") or "nothing"


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
                f"its pool is {worker.pool}, and {_some([task.name for task in limited])} {_has(limited)} "
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
            _some(workers),
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


def _grouped(pairs: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for value, worker in pairs:
        if value is not None:
            found[value].append(worker.name)
    return found


def _some(names: list[str]) -> str:
    """The first few."""
    each = list(dict.fromkeys(names))
    return ", ".join(each[:3]) + (f" and {len(each) - 3} more" if len(each) > 3 else "")  # noqa: PLR2004 - a few


def _goes(names: list[str]) -> str:
    return "goes" if len(set(names)) == 1 else "go"


def _has(tasks: list[TaskFacts]) -> str:
    return "has" if len(tasks) == 1 else "have"


def _plain(value: Any) -> str:
    return repr(list(value) if isinstance(value, tuple | set | frozenset) else value)


RULES: tuple[Rule, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
