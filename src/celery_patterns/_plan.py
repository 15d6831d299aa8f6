"""Patterns as values, their order, and the one wrapper that runs them.

A pattern is a frozen value. Calling it on a function or a task puts it on; listing it in ``patterns = (…)`` of a base
class puts it on every subclass. Neither wraps anything: the order comes from each pattern's layer, never from the
order of lines, and one wrapper per task is made when the task is bound to its app.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from billiard.exceptions import SoftTimeLimitExceeded
from celery.app.task import Task
from celery.exceptions import Ignore, Reject, Retry, TaskPredicate
from celery.local import PromiseProxy, Proxy
from celery.utils.serialization import get_pickleable_exception
from kombu.utils.encoding import safe_repr

from ._body import run_body
from ._call import MARK, Call, Proceed, Terms
from ._edition import edition_of
from ._keys import Binder
from .exceptions import ConfigurationError, OutOfMemory

if TYPE_CHECKING:
    from celery.app.task import Context
    from typing_extensions import Self

__all__ = [
    "FAILED",
    "HANDED_OVER",
    "INNER",
    "REJECTED",
    "REQUEUED",
    "SUCCEEDED",
    "WORN",
    "Layer",
    "Pattern",
    "Plan",
    "without",
    "worn",
    "worn_by",
]

Target = TypeVar("Target", bound=Callable[..., Any])
_P = TypeVar("_P")

#: Where a decorated function keeps its patterns.
WORN = "__celery_patterns__"
#: Where a wrapper keeps the body it stands for, so that a subclass that inherits it wraps the body and not the wrapper.
INNER = "__celery_patterns_inner__"

# How an attempt ended, as its settlements are told.
SUCCEEDED = "succeeded"
HANDED_OVER = "handed over"
FAILED = "failed"
REJECTED = "rejected"
REQUEUED = "requeued"


class Layer(IntEnum):
    """Where a pattern stands; the smallest is outermost."""

    LOG = 10
    BURY = 20
    CLAIM = 30
    PUBLISH = 40
    RETRY = 50


class Pattern:
    """What every pattern is: a value that can be put on a function, a task or a base class."""

    layer: ClassVar[Layer]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: ARG004 - __init__ reads them
        """Make the value.

        Raises:
            ConfigurationError: When the name stands above a function like a decorator, without its arguments.
        """
        if args and (inspect.isfunction(args[0]) or isinstance(args[0], Task)):
            raise ConfigurationError(
                f"@{cls.kind()} stands without its arguments above {args[0].__name__}; expected @{cls.kind()}(…)"
            )
        return super().__new__(cls)

    def __call__(self, target: Target) -> Target:
        """Put the pattern on a function or on a task, and return the same object, signature and types unchanged.

        Raises:
            ConfigurationError: When the target is a class, a shared task, or a task that is not a PatternTask.
        """
        if type(target) is PromiseProxy:
            # Looking at any attribute would create the task now, before the app is configured.
            proxy: Any = target
            proxy.__then__(_put_on_task, target, self)
        elif type(target) is Proxy:
            raise ConfigurationError(
                f"{self.kind()} stands above @shared_task; expected it below, next to the function"
            )
        elif isinstance(target, type):
            raise ConfigurationError(
                f"{self.kind()} decorates the class {target.__name__}; expected the value in its patterns = (…)",
            )
        elif isinstance(target, Task):
            _put_on_task(target, self)
        else:
            if not callable(target):
                raise ConfigurationError(
                    f"{self.kind()} decorates a {type(target).__name__}; expected a function or a task"
                )
            _put_on_function(target, self)
        return target

    @classmethod
    def kind(cls) -> str:
        """The pattern's name."""
        return cls.__name__

    def check(self, task: str, signature: inspect.Signature) -> None:
        """Refuse a task that cannot wear this pattern; called when the task is created."""

    def check_call(
        self, task: str, bound: Binder, args: tuple[Any, ...], kwargs: dict[str, Any], given: str | None = None
    ) -> None:
        """Refuse a call whose arguments, or own key, do not suit this pattern; called when the task is sent."""

    def around(self, proceed: Proceed, call: Call) -> Any:
        """Run the rest of the call, ``proceed(call)``, and decide on its end."""
        raise NotImplementedError


@dataclass(frozen=True, init=False)
class without(Pattern):  # noqa: N801 - reads as a word beside the patterns it switches off
    """Switch inherited patterns off.

    Args:
        kinds: The pattern classes, for example ``without(retry, idempotent)``.

    Raises:
        ConfigurationError: When something else than a pattern class is named.
    """

    kinds: tuple[type[Pattern], ...]

    def __init__(self, *kinds: type[Pattern]) -> None:
        for kind in kinds:
            if not (isinstance(kind, type) and issubclass(kind, Pattern)) or kind is Pattern:
                raise ConfigurationError(f"without() takes pattern classes, for example without(retry); got {kind!r}")
        if not kinds:
            raise ConfigurationError("without() names nothing; expected pattern classes, for example without(retry)")
        object.__setattr__(self, "kinds", kinds)


def _put_on_function(function: Callable[..., Any], pattern: Pattern) -> None:
    setattr(function, WORN, (pattern, *getattr(function, WORN, ())))


def _put_on_task(task: Any, pattern: Pattern) -> None:
    put_on = getattr(task, "put_on", None)
    if put_on is None:
        raise ConfigurationError(
            f"{task.name} wears {pattern.kind()} but its class {type(task).__mro__[1].__name__} is not a PatternTask; "
            'call equip(app, store="redis://…") or use_patterns(app) before its tasks are made, or give it base=PatternTask',
        )
    put_on(pattern)


def _merged(inherited: dict[type[Pattern], Pattern], own: Iterable[Any], owner: str) -> dict[type[Pattern], Pattern]:
    seen: set[type[Pattern]] = set()
    switched_off: set[type[Pattern]] = set()
    merged = dict(inherited)
    for pattern in own:
        if not isinstance(pattern, Pattern):
            raise ConfigurationError(
                f"patterns of {owner} hold {pattern!r}; expected values such as retry(on=…, attempts=3)",
            )
        if isinstance(pattern, without):
            switched_off.update(pattern.kinds)
            continue
        kind = type(pattern)
        if kind in seen:
            raise ConfigurationError(f"{owner} wears {pattern.kind()} twice; expected it once")
        seen.add(kind)
        merged[kind] = pattern
    both = seen & switched_off
    if both:
        names = ", ".join(sorted(kind.kind() for kind in both))
        raise ConfigurationError(f"{owner} wears {names} and switches it off with without(); expected one of the two")
    return {kind: pattern for kind, pattern in merged.items() if kind not in switched_off}


def worn_by(cls: type, body: Callable[..., Any], above: Iterable[Pattern] = ()) -> tuple[Pattern, ...]:
    """The patterns a task wears, sorted by layer: its own replace its base's, kind by kind.

    Args:
        cls: The task's class.
        body: Its function, which may have been decorated.
        above: Patterns that were put on the finished task.

    Raises:
        ConfigurationError: When one class wears a kind twice, or something is no pattern.
    """
    merged: dict[type[Pattern], Pattern] = {}
    for base in reversed(cls.__mro__[1:]):
        merged = _merged(merged, _listed(base), base.__name__)
    own = (*_listed(cls), *getattr(body, WORN, ()), *above)
    merged = _merged(merged, own, getattr(cls, "name", None) or cls.__name__)
    return tuple(sorted(merged.values(), key=lambda pattern: pattern.layer))


def _listed(cls: type) -> tuple[Any, ...]:
    listed = cls.__dict__.get("patterns", ())
    if isinstance(listed, Pattern):
        raise ConfigurationError(f"patterns of {cls.__name__} is a single value; expected a tuple: patterns = (…,)")
    return tuple(listed)


class Plan:
    """How one task runs: its patterns from the outside to the inside, around its body.

    Args:
        patterns: The patterns, sorted.
        body: The function they go around.
        takes_task: Whether it takes the task first.
        signature: The body's signature as callers see it, without the task.
        between: The publication of what was asked for, which stands between the claim and the retry.
        attempts: How many attempts there are in all; None when Celery's own limits hold.
        crash_limit: How many starts may come to no end.
    """

    def __init__(
        self,
        patterns: tuple[Pattern, ...],
        body: Callable[..., Any],
        takes_task: bool,
        signature: inspect.Signature,
        between: Callable[[Proceed, Call], Any],
        *,
        attempts: int | None,
        crash_limit: int | None,
    ) -> None:
        self.patterns = patterns
        self._body = body
        keyed = any(pattern.layer is Layer.CLAIM for pattern in patterns)
        self.terms = Terms(signature, Binder(signature), attempts, keyed, crash_limit)
        rooms: list[tuple[Layer, Callable[[Proceed, Call], Any]]] = [(p.layer, p.around) for p in patterns]
        rooms.append((Layer.PUBLISH, between))
        self._enter: Proceed = functools.partial(run_body, body, takes_task)
        for _, around in sorted(rooms, key=lambda room: -room[0]):
            self._enter = functools.partial(around, self._enter)
        self.buries = next((pattern for pattern in patterns if pattern.layer is Layer.BURY), None)
        #: Whether starts are counted in the store: those of a task with a key are, in its claim.
        self.counted = self.buries is not None and crash_limit is not None and not keyed
        self.timed = any(pattern.layer in (Layer.LOG, Layer.BURY) for pattern in patterns)
        self.checks = [one.check_call for one in patterns if type(one).check_call is not Pattern.check_call]

    def __str__(self) -> str:
        """What is worn, and which edition of it: a worker tells it of its tasks, to whom asks."""
        return f"{'+'.join(pattern.kind() for pattern in self.patterns)} {edition_of(self._body, self.patterns)}"

    def run(self, task: Task, request: Context, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one attempt. The settlements come last, when it is known how the attempt ended."""
        call = Call(task, request, args, kwargs, self.terms)
        request.__dict__[MARK] = call
        try:
            result = self._enter(call)
        except (Retry, Ignore, Reject) as said:
            _settle(call, _outcome_of(said))
            if isinstance(said, Retry) or _arrives(said):
                raise
            raise _arriving(said) from None
        except MemoryError:
            # A MemoryError that reaches the tracer ends the worker, and after a redelivery the next one.
            _settle(call, FAILED)
            raise OutOfMemory(f"{call.task} ran out of memory; the worker was spared") from None
        except Exception:
            _settle(call, FAILED)
            raise
        else:
            if call.settlements:
                _settle(call, SUCCEEDED)
            return result
        finally:
            if call.lease is not None:
                call.lease.end()  # whatever ended it: a key is renewed for no run that is gone
            # The call holds its request: a cycle would keep the arguments until the garbage collector comes by.
            request.__dict__[MARK] = None


def _outcome_of(said: TaskPredicate) -> str:
    if isinstance(said, Reject):
        return REQUEUED if said.requeue else REJECTED
    return HANDED_OVER


def _arriving(said: TaskPredicate) -> TaskPredicate:
    """The same, with texts for what the main process cannot unpickle."""
    if isinstance(said, Reject):
        return Reject(safe_repr(said.reason), requeue=said.requeue)
    return Ignore(*map(safe_repr, said.args))


def _arrives(said: TaskPredicate) -> bool:
    """Whether the main process can unpickle it: an error of the user's in it that cannot be would end the whole worker."""
    return get_pickleable_exception(said) is said


def _settle(call: Call, outcome: str) -> None:
    try:
        for settle in call.settlements:
            settle(outcome)
    except SoftTimeLimitExceeded:  # strikes once, and must not change how the attempt ended
        for settle in call.settlements:  # which can be repeated without harm
            settle(outcome)


def worn(task: Any, kind: type[_P]) -> _P | None:
    """The pattern of this kind that a task wears; None where it wears none, or is no task that can."""
    plan = getattr(task, "plan", None)
    patterns = plan.patterns if isinstance(plan, Plan) else ()
    return next((pattern for pattern in patterns if isinstance(pattern, kind)), None)
