"""CP4: names in the settings that stand for nothing: misspelt, of a later release, or of what the app does not have."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import celery
import kombu
from celery import Task
from celery.app.defaults import _OLD_SETTING_KEYS, _TO_NEW_KEY, _TO_OLD_KEY, SETTING_KEYS

from .._finding import Rule, Sign, rule

if TYPE_CHECKING:
    from .._case import Case

#: How alike two names are of which one is the other misspelt.
_ALIKE = 0.86
#: How alike the parts of two names of tasks are.
_SLIP = 0.75
_DIGITS = re.compile(r"\d+")
#: What is almost the name of another setting.
_MEANT = {
    "task_rate_limit": "task_default_rate_limit",
    "task_default_time_limit": "task_time_limit",
    "task_default_soft_time_limit": "task_soft_time_limit",
}
#: What ``Celery(…)`` takes; whatever else is said to it becomes a setting.
_OF_CELERY = ("backend", "broker", "include", "namespace", "task_cls", "config_source")
#: How the settings of Celery 3 begin.
_OLD_PREFIXES = ("CELERY_", "CELERYD_", "CELERYBEAT_", "BROKER_")
#: By their names only: to read one of a base class would bind that to some app for good.
_OF_TASKS = frozenset(dir(Task))
_TASK_OPTIONS = sorted(name for name, value in vars(Task).items() if not name.startswith("_") and not callable(value))
#: Settings, options of tasks and of Redis' transport, by the release of Celery, or of kombu, that brought them.
_NEW_SETTINGS = {
    **dict.fromkeys(
        (
            "control_queue_durable",
            "control_queue_exclusive",
            "event_queue_durable",
            "event_queue_exclusive",
            "task_create_missing_queue_exchange_type",
            "task_create_missing_queue_type",
            "worker_disable_prefetch",
            "worker_eta_task_limit",
        ),
        (5, 6),
    ),
    **dict.fromkeys(
        (
            "beat_enable_remote_control",
            "beat_remote_control_max_tick_age",
            "broker_pool_acquire_timeout",
            "database_engine_callback",
            "result_chord_expires",
            "result_failure_expires",
            "task_acks_on_failure",
            "task_acks_on_timeout",
            "task_repr_maxlevels",
            "task_retry_on_worker_lost",
            "worker_log_datefmt",
            "worker_pool_start_method",
            "worker_task_log_datefmt",
        ),
        (5, 7),
    ),
}
_NEW_TASK_OPTIONS = dict.fromkeys(("acks_on_failure", "acks_on_timeout", "retry_on_worker_lost"), (5, 7))
_NEW_REDIS_OPTIONS = dict.fromkeys(("unacked_restore_interval", "unacked_restore_throttle"), (5, 6))


@rule(
    "CP408",
    "warning",
    "A setting that Celery does not know",
    "It does nothing, and what it was to change is at its default.",
    upstream="mozilla/sumo#198",
)
def misspelt(case: Case) -> Iterator[Sign]:
    """A name that is almost one of Celery's."""
    own = list(_own_settings(case))
    old_only = not any(name in SETTING_KEYS for _, name in own)
    for shown, name in own:
        if (
            name in SETTING_KEYS
            or shown in _OLD_SETTING_KEYS
            or name.upper() in _OLD_SETTING_KEYS
            or name in _NEW_SETTINGS
        ):
            continue
        meant = _meant(case, shown, name, old_only=old_only)
        if meant is not None and meant not in {one for one, _ in own}:
            yield Sign(shown, f"{shown} is no setting of Celery's", f"Write {meant}, if that was meant.")
    for task in case.tasks:
        for name in sorted(vars(type(task.task)).keys() - _OF_TASKS - _NEW_TASK_OPTIONS.keys()):
            like = _option_like(name)
            if like is not None:
                yield Sign(task.name, f"{name} is no option of a task's", f"Write {like}, if that was meant.")
    options = _transport_options(case)
    for name in case.transport_options if options else ():
        known = difflib.get_close_matches(name, options, 1, _ALIKE)
        if name not in options and known:
            yield Sign(
                f'broker_transport_options["{name}"]',
                f"{name} is no option of the transport {case.transport}",
                f"Write {known[0]}, if that was meant.",
            )


@cache
def _option_like(name: str) -> str | None:
    """The option of a task's that was meant; asked for each task, most of which have the same names."""
    like = [] if name.startswith("_") else difflib.get_close_matches(name, _TASK_OPTIONS, 1, _ALIKE)
    return like[0] if like else None


@rule(
    "CP409",
    "warning",
    "A schedule that names no task",
    "Beat sends it on time, each time, and the worker throws it away.",
    upstream="celery/celery#3446",
)
def scheduled_unknown(case: Case) -> Iterator[Sign]:
    """An entry of ``beat_schedule`` has the name of a task that the app does not have."""
    for entry in case.schedule:
        if entry.task not in case.app.tasks:
            meant = case.alike(entry.task)
            cure = f"Write {meant!r}, if that was meant." if meant else "Import the module of the task in `include`."
            more = " Ignore this where it is another service's task."
            yield Sign(f'beat_schedule["{entry.name}"]', f"the app has no task {entry.task!r}", cure + more)


@rule(
    "CP410",
    "error",
    "A schedule whose arguments do not fit",
    "Each run ends with a TypeError.",
    upstream="celery/django-celery-beat#152",
)
def scheduled_misfit(case: Case) -> Iterator[Sign]:
    """An entry of ``beat_schedule`` has arguments that its task does not take."""
    malformed = {place for place, _, _ in case.malformed}  # which has a rule of its own
    for entry in case.schedule:
        task = case.app.tasks.get(entry.task)
        if (
            task is None
            or f'beat_schedule["{entry.name}"]' in malformed
            or not getattr(task, "typing", False)
            or not hasattr(task, "__header__")
        ):
            continue
        try:
            task.__header__(*entry.args, **entry.kwargs)
        except TypeError as error:
            said = str(error).partition("()")[2].strip() or str(error)
            yield Sign(f'beat_schedule["{entry.name}"]', f"{entry.task}() {said}", "Correct its args or kwargs.")


@rule(
    "CP411",
    "error",
    "A route to a queue that is not there",
    "Each .delay() of the task raises QueueNotFound.",
    upstream="celery/celery#6692",
)
def no_such_queue(case: Case) -> Iterator[Sign]:
    """``task_create_missing_queues`` is off, and ``task_queues`` has no queue of the name."""
    if case.conf.task_create_missing_queues:
        return
    known = sorted(map(str, case.app.amqp.queues))
    for task in case.tasks:
        asked = task.missing_queue
        if asked is not None:
            yield Sign(
                task.name,
                f"it is routed to the queue {asked}, and task_queues has {', '.join(known) or 'none'}",
                f"Add Queue({asked!r}) to task_queues, or correct task_routes.",
            )


@rule(
    "CP416",
    "warning",
    "A setting that comes with a later release",
    "This release takes it without a word, and does as if it were not there.",
    upstream="celery/celery#4374",
)
def not_there_yet(case: Case) -> Iterator[Sign]:
    """A setting, or an option of a task or of the broker, that the installed Celery or kombu does not have yet."""
    for shown, name in _own_settings(case):
        is_asked = case.conf.get(name) not in (None, False)  # else it is as that release is
        if is_asked and _is_newer(_NEW_SETTINGS.get(name), celery.VERSION):
            yield _too_new(shown, shown, "Celery", celery.__version__, _NEW_SETTINGS[name])
    for task in case.tasks:
        for name, since in _NEW_TASK_OPTIONS.items():
            if _is_newer(since, celery.VERSION) and getattr(task.task, name, None) is not None:
                yield _too_new(task.name, f"{name}={getattr(task.task, name)!r}", "Celery", celery.__version__, since)
    for name, since in _NEW_REDIS_OPTIONS.items():
        if case.transport == "redis" and name in case.transport_options and _is_newer(since, kombu.VERSION):
            where = f'{case.spelled("broker_transport_options")}["{name}"]'
            yield _too_new(where, name, "kombu", kombu.__version__, since)


@rule(
    "CP422",
    "warning",
    "A route that fits no task",
    "The task that was meant goes to the default queue.",
    upstream="celery/celery#4418",
)
def routed_unknown(case: Case) -> Iterator[Sign]:
    """``task_routes`` names a task that the app does not have; one that it has is called almost so, or so in its module."""
    routes = case.conf.task_routes
    tables = routes if isinstance(routes, list | tuple) else [routes]
    for name in (name for table in tables if isinstance(table, Mapping) for name in table):
        if not isinstance(name, str) or name in case.app.tasks or any(sign in name for sign in "*?["):
            continue
        meant = [one for one in case.by_name if one.rpartition(".")[2] == name]  # without its module
        meant += [one for one in difflib.get_close_matches(name, list(case.by_name), 3, _ALIKE) if _is_slip(name, one)]
        if meant:
            where = f'{case.spelled("task_routes")}["{name}"]'
            cure = f"Write {meant[0]!r}, if that was meant. Ignore this where it is another service's task."
            yield Sign(where, f"the app has no task {name!r}", cure)


def _is_slip(name: str, other: str) -> bool:
    """Whether one is the other misspelt, and not its neighbour: ``charge_v2``, ``export_csv``."""
    pairs = zip(name.rsplit(".", 1), other.rsplit(".", 1), strict=False)
    if _DIGITS.sub("", name) == _DIGITS.sub("", other):
        return False
    return all(difflib.SequenceMatcher(None, *pair).ratio() >= _SLIP for pair in pairs)


def _meant(case: Case, shown: str, name: str, *, old_only: bool) -> str | None:
    """The setting that was meant, as the app would write it."""
    if shown.isupper() and name == shown:  # without a namespace, as Celery 3 had them
        bare = name.removeprefix("CELERY_").lower()
        if bare in SETTING_KEYS and old_only and bare in _TO_OLD_KEY:
            return str(_TO_OLD_KEY[bare])
        if bare in SETTING_KEYS:
            return f"{bare}, or give config_from_object() namespace='CELERY'"
        found = difflib.get_close_matches(name, sorted(_OLD_SETTING_KEYS), 1, _ALIKE)
        return None if not found else found[0] if old_only else _TO_NEW_KEY[found[0]]
    if name in _MEANT:
        return case.spelled(_MEANT[name])
    found = difflib.get_close_matches(name, sorted(SETTING_KEYS), 1, _ALIKE)
    if found:
        return case.spelled(found[0])
    found = difflib.get_close_matches(name, _OF_CELERY, 1, _ALIKE)
    if found:
        return f"{found[0]}=, as an argument of Celery(…)"
    if name in _transport_options(case) and name not in case.transport_options:
        return f'broker_transport_options["{name}"]'
    ends = [known for known in sorted(SETTING_KEYS) if known.endswith(f"_{name}")]
    is_whole = "_" in name or name == "concurrency"
    is_set = any(known == one for known in ends for _, one in _own_settings(case))
    return case.spelled(ends[0]) if len(ends) == 1 and is_whole and not is_set else None


def _is_newer(since: tuple[int, int] | None, installed: Sequence[Any]) -> bool:
    return since is not None and tuple(installed[:2]) < since


def _too_new(where: str, what: str, package: str, installed: str, since: tuple[int, int]) -> Sign:
    release = ".".join(map(str, since))
    return Sign(
        where,
        f"{what} needs {package} {release}, and {installed} is installed",
        f"Install {package} {release} or later, or take it away.",
    )


def _own_settings(case: Case) -> Iterator[tuple[str, str]]:
    """Those that the app was given, as they are written and as Celery names them."""
    prefix = getattr(case.conf, "prefix", None) or ""
    for layer in case.conf.maps[:-1]:
        for key in list(layer):
            name = str(key)
            if prefix and name.startswith(prefix):
                yield name, name.removeprefix(prefix).lower()
            elif not prefix and (name.islower() or name.startswith(_OLD_PREFIXES)):
                yield name, name


def _transport_options(case: Case) -> list[str]:
    if case.transport != "redis":
        return []
    from kombu.transport.redis import Channel  # noqa: PLC0415 - of the broker that is used

    return sorted(Channel.from_transport_options)


RULES: tuple[Rule, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
