"""What fits: whatever would quietly not work is refused, when the app is equipped or the task is created."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from celery import Celery
from celery.app.task import Task

from ._idempotent import idempotent
from ._plan import Pattern
from ._retry import retry
from .exceptions import ConfigurationError

__all__ = ["expect_app", "make_tasks", "refuse_misfits", "refuse_strays", "said"]

#: The names under which a base's pattern is a mistake.
_MEANT = frozenset({"pattern", "retry", "idempotent", "dead_letter", "logged"})


def said(cls: type[Task], option: str) -> Any:
    """What the task or one of its bases says itself; the app's settings, and what we set, are left out."""
    for base in cls.__mro__:
        value = base.__dict__.get(option)
        if value is not None and base is not Task and option not in base.__dict__.get("_unsaid", ()):
            return value
    return None


def _wrapped_chain(function: Any) -> Iterator[Any]:
    while function is not None:
        yield function
        function = getattr(function, "__wrapped__", None)


def refuse_misfits(
    cls: type[Task],
    body: Callable[..., Any],
    signature: inspect.Signature,
    patterns: tuple[Pattern, ...],
) -> None:
    """Everything that would quietly not work, named with its cure when the task is created."""
    name = cls.name
    refuse_strays(cls, patterns)
    if inspect.isgeneratorfunction(body):  # one that a decorator goes through is none
        raise ConfigurationError(
            f"{name} is a generator, whose body Celery would never run; expected it to return a list, without yield",
        )
    for layer in _wrapped_chain(body):
        if inspect.iscoroutinefunction(layer) or inspect.isasyncgenfunction(layer):
            raise ConfigurationError(
                f"{name} is an async def, which Celery never awaits; expected a def: call asyncio.run() in its body",
            )
        if hasattr(layer, "retry_with") and hasattr(layer, "retry"):
            raise ConfigurationError(
                f"{name} is wrapped by tenacity.retry, which sleeps in the worker's slot; expected "
                "celery_patterns.retry with the same wait and stop",
            )
    if getattr(cls, "autoretry_for", None):
        raise ConfigurationError(
            f"{name} has autoretry_for, which runs outside of its patterns and retries behind their back; expected "
            "retry(on=…) instead",
        )
    for pattern in patterns:
        pattern.check(name, signature)
    _refuse_numbers(cls, patterns)


def refuse_strays(cls: type[Task], patterns: tuple[Pattern, ...]) -> None:
    """A pattern that was given to the task, or to a base, under a name where nobody finds it.

    Under other names a base may hold patterns for others to take, and so may a CONSTANT.
    """
    # Also what a base wears, and this task's own replaces.
    known = [*patterns, *(one for base in cls.__mro__ for one in base.__dict__.get("patterns", ()))]
    for base in cls.__mro__:
        for name, value in vars(base).items():
            if name == "patterns" or name.isupper() or name.startswith("_") or (base is not cls and name not in _MEANT):
                continue
            for one in value if type(value) in (tuple, list) else (value,):
                # Not isinstance(), which would wake up what is lazy.
                if issubclass(type(one), Pattern) and one not in known:
                    raise ConfigurationError(
                        f"{cls.name} has {one.kind()}(…) as its {name}, where it does nothing; expected it in patterns=(…,)"
                    )


def _refuse_numbers(cls: type[Task], patterns: tuple[Pattern, ...]) -> None:
    """Numbers that contradict each other."""
    name, kinds = cls.name, {type(pattern): pattern for pattern in patterns}
    keyed, again = kinds.get(idempotent), kinds.get(retry)
    if isinstance(keyed, idempotent) and isinstance(again, retry) and again.within and again.within > keyed.ttl:
        raise ConfigurationError(
            f"{name} may be retried within {again.within}, but its key is remembered for ttl={keyed.ttl}; expected a "
            "ttl that is at least as long",
        )
    stated = said(cls, "max_retries")
    if isinstance(again, retry) and stated is not None and stated != again.attempts - 1:
        raise ConfigurationError(
            f"{name} says max_retries={stated} and retry(attempts={again.attempts}), which counts the first; expected "
            "attempts alone",
        )


def expect_app(app: object, where: str) -> None:
    """Refuse what is no Celery app.

    Raises:
        ConfigurationError: Naming the function that was called.
    """
    if not isinstance(app, Celery):  # a proxy of an app passes for one
        raise ConfigurationError(
            f"{where} takes your Celery app, for example app = Celery(…); got a {type(app).__name__}"
        )


def make_tasks(app: Celery) -> None:
    """Import what the app names, and make its tasks, as a worker does.

    Raises:
        ConfigurationError: When a task is to be made of a class that is none. What else the modules raise is theirs.
    """
    try:
        app.loader.import_default_modules()
        app.finalize()
    except AttributeError as error:
        made = type(error.obj)
        is_celerys = "run" in vars(made) and getattr(made, "_decorated", False)  # how it marks what it made
        if not is_celerys or issubclass(made, Task):
            raise
        raise ConfigurationError(
            f"{made.__name__} has base={made.__mro__[1].__name__}, a class that is no task; expected it to inherit from "
            "PatternTask, or from Celery's Task"
        ) from error
