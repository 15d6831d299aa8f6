"""Settings that are of a wrong kind: a text where a number belongs, a list that is none."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery.app.defaults import NAMESPACES, flatten
from celery.utils.time import rate
from kombu.entity import Queue

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["malformed"]

_OPTIONS: dict[str, Any] = dict(flatten(NAMESPACES))
_LISTS = ("accept_content", "result_accept_content")
#: Options of a broker's transport that are numbers, of seconds or of messages.
_NUMBERS = (
    "visibility_timeout",
    "unacked_restore_interval",
    "unacked_restore_throttle",
    "socket_timeout",
    "socket_connect_timeout",
    "health_check_interval",
    "max_retries",
    "confirm_timeout",
    "read_timeout",
    "write_timeout",
)
#: Numbers that nothing converts: a text ends with an error.
_NEVER_TEXT = frozenset(
    {
        *("broker_connection_timeout", "broker_pool_limit", "redis_max_connections", "worker_max_tasks_per_child"),
        *("worker_max_memory_per_child", "worker_prefetch_multiplier", "worker_concurrency"),
        *("task_time_limit", "task_soft_time_limit"),
    }
)
#: What an entry of ``beat_schedule`` may hold; other schedulers than Celery's own may know more.
_ENTRY = ("task", "schedule", "args", "kwargs", "options", "relative")
_ENTRYS_OWN = frozenset({*_ENTRY, "name", "app", "last_run_at", "total_run_count"})
_LIMITS = ("time_limit", "soft_time_limit")
_TASKS_NUMBERS = (*_LIMITS, "default_retry_delay", "max_retries")


def malformed(app: Celery) -> Iterator[tuple[str, str, str]]:
    """Each with where it stands, what it is, and what was expected."""
    conf = app.conf
    for layer in conf.maps[:-1]:
        for name in list(layer):
            key = str(name).removeprefix(getattr(conf, "prefix", None) or "").lower()
            if key in _OPTIONS:
                yield from _setting(str(name), key, conf[key])
    yield from _transport(conf.broker_transport_options)
    try:
        app.timezone  # noqa: B018 - it looks the name up
    except Exception:  # noqa: BLE001 - of whatever package keeps the zones
        yield "timezone", f"{conf.timezone!r} is the name of no zone", '"UTC" or "Europe/Berlin", for example'
    yield from _schedule(conf.beat_schedule, strict="celery.beat" in str(conf.beat_scheduler))
    yield from _tasks(app)


def _transport(options: Any) -> Iterator[tuple[str, str, str]]:
    for name in _NUMBERS if isinstance(options, Mapping) else ():
        if isinstance(options.get(name), str | timedelta):
            yield f'broker_transport_options["{name}"]', f"it is {_of(options[name])}", "a number"


def _tasks(app: Celery) -> Iterator[tuple[str, str, str]]:
    for name, task in sorted(app.tasks.items()):
        for option in _TASKS_NUMBERS if not name.startswith("celery.") else ():
            value = getattr(task, option, None)
            wrong = isinstance(value, str | timedelta) and (option in _LIMITS or not _is_number(value))
            if wrong and value != app.conf.get(f"task_{option}"):
                yield name, f"its {option} is {_of(value)}", "a number"
        try:
            rate(getattr(task, "rate_limit", None))
        except Exception:  # noqa: BLE001 - whatever Celery makes of it, a worker that starts makes the same
            yield name, "its rate_limit is none that Celery can read", 'a number of runs a second, or "10/m"'


def _setting(shown: str, key: str, value: Any) -> Iterator[tuple[str, str, str]]:
    kind, default = _OPTIONS[key].type, _OPTIONS[key].default
    if key == "task_queues":
        yield from _queues(shown, value)
    elif key in _LISTS and isinstance(value, str):
        yield shown, f"it is {_of(value)}, of which each letter is taken for one", f"a list: [{value!r}]"
    elif key in _LISTS and not isinstance(value, Collection) and not (value is None and default is None):
        yield shown, f"it is {_of(value)}", 'a list: ["json"]'
    elif key in ("broker_url", "beat_schedule"):
        return
    elif kind == "dict" and not isinstance(value, Mapping) and not (value is None and default is None):
        if key != "task_routes":
            yield shown, f"it is {_of(value)}", "a dict"
    elif kind == "bool" and isinstance(value, str) and value:
        yield shown, f"it is {_of(value)}, which is true whatever it says", "True or False"
    elif kind in ("int", "float") and isinstance(value, str) and (key in _NEVER_TEXT or not _is_number(value)):
        yield (
            shown,
            f"it is {_of(value)}",
            "a number; what comes from the environment is a text, int(…) makes a number of it",
        )


def _queues(shown: str, value: Any) -> Iterator[tuple[str, str, str]]:
    expected = 'a list of queues: [Queue("emails")]'
    if isinstance(value, Collection) and not isinstance(value, str | Mapping):
        wrong = [one for one in value if not isinstance(one, Queue)]
        if wrong:
            yield shown, f"{_of(wrong[0])} stands in it", expected
    elif value is not None and not isinstance(value, Mapping):
        yield shown, f"it is {_of(value)}", expected


def _is_number(value: object) -> bool:
    """Whether a text is one: most settings make it of that themselves."""
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True


def _schedule(found: Any, *, strict: bool) -> Iterator[tuple[str, str, str]]:
    if not isinstance(found, Mapping):
        if found:
            yield "beat_schedule", f"it is {_of(found)}", "a dict of entries by name"
        return
    for name, entry in found.items():
        where = f'beat_schedule["{name}"]'
        if not isinstance(entry, Mapping):
            if not hasattr(entry, "is_due"):
                yield where, f"it is {_of(entry)}", 'a dict: {"task": …, "schedule": …}'
            continue
        yield from ((where, what, expected) for what, expected in _entry(entry, strict=strict))


def _entry(entry: Mapping[Any, Any], *, strict: bool) -> Iterator[tuple[str, str]]:
    strange = [str(word) for word in entry if word not in _ENTRYS_OWN]
    if strange and strict:
        yield f"it has {strange[0]!r}", f"one of {', '.join(_ENTRY)}"
    if not isinstance(entry.get("task"), str):
        yield f"its task is {_of(entry.get('task'))}", "the task's name, a text"
    schedule = entry.get("schedule")
    if schedule is None or isinstance(schedule, str):
        yield f"its schedule is {_of(schedule)}", "a number of seconds, a timedelta or a crontab"
    if isinstance(entry.get("args") or (), str) or not isinstance(entry.get("args") or (), Iterable):
        yield f"its args is {_of(entry['args'])}", "a tuple, which of one is written (1,), or a list"
    for word in ("kwargs", "options"):
        if not isinstance(entry.get(word) or {}, Mapping):
            yield f"its {word} is {_of(entry[word])}", "a dict"


def _of(value: Any) -> str:
    """A value as it is told: a setting may hold a secret, a number does not."""
    if isinstance(value, str):
        return "a text"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    return f"a {type(value).__name__}"
