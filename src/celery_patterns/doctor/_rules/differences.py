"""CP205, CP206, CP211 and CP212: in what workers differ, from each other and from this app."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .._finding import Rule, Sign, rule, some
from .._tasks import TaskFacts
from .._workers import Worker

if TYPE_CHECKING:
    from .._case import Case

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
#: Those whose values JSON carries as they are, and that are no secrets.
_TOLD = ("task_acks_late", "task_default_queue", "task_protocol", "task_reject_on_worker_lost")


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
            said = "; ".join(f"{version}: {some(names)}" for version, names in sorted(found.items()))
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
            said = "; ".join(f"{f'{value}: ' if shown else ''}{some(names)}" for value, names in sorted(found.items()))
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


@rule(
    "CP211",
    "error",
    "A worker runs a task with other patterns",
    "It has older code, or newer: what it runs is claimed, tried again and kept as that says, or not at all.",
    upstream="celery/celery#6893",
)
def worn_otherwise(case: Case) -> Iterator[Sign]:
    """A worker says of a task that it wears other patterns than here, or none."""
    for worker, task, theirs in _told_of(case):
        ours = _kinds(task.wears)
        if ours != _kinds(theirs):
            yield Sign(
                worker.name,
                f"{task.name} wears {_worn(ours)} here, and {_worn(_kinds(theirs))} there",
                "Restart it, so that it has this code; if it was, its files are older, or newer, than these.",
            )


@rule(
    "CP212",
    "warning",
    "A worker has another edition of a task",
    "It runs the lines, and counts and waits by the numbers, that it was started with.",
    upstream="celery/celery#3519",
)
def of_another_edition(case: Case) -> Iterator[Sign]:
    """A worker says of a task with patterns that its code, its arguments or its patterns' values are not those of here."""
    for worker, task, theirs in _told_of(case):
        (ours, _, edition), (kinds, _, other) = task.wears.partition(" "), theirs.partition(" ")
        # Only of one Python are they comparable.
        if ours == kinds and edition.partition("/")[0] == other.partition("/")[0] and edition != other:
            yield Sign(
                worker.name,
                f"{task.name} has other code there, or other values in its patterns, than here",
                "Restart it, so that it has this code; if it was, its files are older, or newer, than these.",
            )


def _told_of(case: Case) -> Iterator[tuple[Worker, TaskFacts, str]]:
    """Each task that a worker knows, and what it says of its patterns there."""
    for worker in case.hearers:
        for task in case.tasks if worker.tasks is not None else ():
            if task.name in (worker.tasks or ()):
                yield worker, task, worker.wears.get(task.name, "")


def _kinds(plan: str) -> str:
    return plan.partition(" ")[0]


def _worn(plan: str) -> str:
    return plan.replace("+", ", ") or "nothing"


def _grouped(pairs: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for value, worker in pairs:
        if value is not None:
            found[value].append(worker.name)
    return found


def _plain(value: Any) -> str:
    return repr(list(value) if isinstance(value, tuple | set | frozenset) else value)


RULES: tuple[Rule, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
