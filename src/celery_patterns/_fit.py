"""What fits: whatever would quietly not work is refused, when the app is equipped or the task is created."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator
from types import TracebackType
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
#: How alike a name is by which ``patterns`` was meant.
_ALIKE = 0.88
#: What is said for ``base``.
_BASES = frozenset({"bases", "cls", "klass", "class_", "base_cls", "base_class", "task_cls", "task_class"})


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
    try:
        for pattern in patterns:
            pattern.check(name, signature)
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}{_taken(body, signature)}") from None
    _refuse_numbers(cls, patterns)


def _taken(body: Callable[..., Any], signature: inspect.Signature) -> str:
    """What became of an argument that is missing: a task that is bound takes its first one for itself."""
    first = next(iter(inspect.signature(body).parameters), "self")
    is_taken = first != "self" and first not in signature.parameters
    return f"; bind=True takes {first}, which stands first, for the task itself" if is_taken else ""


def refuse_strays(cls: type[Task], patterns: tuple[Pattern, ...]) -> None:
    """A pattern that was given to the task, or to a base, under a name where nobody finds it.

    Under other names a base may hold patterns for others to take, and so may a CONSTANT.
    """
    # Also what a base wears, and this task's own replaces.
    known = [*patterns, *(one for base in cls.__mro__ for one in base.__dict__.get("patterns", ()))]
    for base in cls.__mro__:
        for name, value in vars(base).items():
            if base is cls and name in _BASES and isinstance(value, type) and issubclass(value, Task):
                raise ConfigurationError(
                    f"{cls.name} has {value.__name__} as its {name}, where it does nothing; expected base={value.__name__}"
                )
            if (
                name == "patterns"
                or name.isupper()
                or name.startswith("_")
                or (base is not cls and not _is_meant(name))
            ):
                continue
            values: Any = value if type(value) in (tuple, list) else (value,)
            for one in values:
                # Not isinstance(), which would wake up what is lazy.
                if issubclass(type(one), Pattern) and one not in known:
                    raise ConfigurationError(
                        f"{cls.name} has {one.kind()}(…) as its {name}, where it does nothing; expected it in patterns=(…,)"
                    )


def _is_meant(name: str) -> bool:
    return name in _MEANT or difflib.SequenceMatcher(None, name.lower(), "patterns").ratio() >= _ALIKE


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
        ConfigurationError: When the app was given a URL in another argument's place, or a task is to be made of a class that
            is none. What else the modules raise is theirs.
    """
    if "://" in str(
        app.loader_cls
    ):  # Celery("shop", url): the second argument is the loader, the third one the backend
        raise ConfigurationError('Celery(…) was given a URL by its place; expected Celery("shop", broker=…, backend=…)')
    try:
        app.loader.import_default_modules()
        app.finalize()
    except (AttributeError, TypeError) as error:
        why = _unmade(error.__traceback__)
        if why is None:
            raise
        raise ConfigurationError(why) from error


def _unmade(trace: TracebackType | None) -> str | None:
    """Why Celery could make no task of a function, where that is its base, or that it is none."""
    while trace is not None:
        inside = trace.tb_frame.f_locals
        if trace.tb_frame.f_code.co_name == "_task_from_fun" and {"fun", "base"} <= inside.keys():
            fun, base = inside["fun"], inside["base"]
            name = getattr(fun, "__name__", "a task")
            if isinstance(fun, staticmethod | classmethod):
                return f"{name} is a {type(fun).__name__}; expected a function that stands in no class"
            if base is None or (isinstance(base, type) and issubclass(base, Task)):
                return None
            what = f"{base.__name__}, a class that is no task" if isinstance(base, type) else f"a {type(base).__name__}"
            expected = "expected a class that inherits from PatternTask, or from Celery's Task"
            return f"{name} has as its base= {what}; {expected}"
        trace = trace.tb_next
    return None
