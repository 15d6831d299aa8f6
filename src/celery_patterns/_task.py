"""``PatternTask``: the class a task needs to wear patterns, and ``ReliableTask``, which wears a good set of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from celery.app.annotations import resolve_all
from celery.app.task import Task
from celery.exceptions import MaxRetriesExceededError, Retry
from kombu.exceptions import EncodeError

from ._aftermath import contain_hooks, sparing
from ._body import shortened
from ._call import EVER_KEPT, MARK, Call
from ._dead_letter import MAX_CRASHES, dead_letter
from ._fit import refuse_misfits, refuse_strays, said
from ._logged import logged
from ._plan import INNER, WORN, Layer, Pattern, Plan, worn_by
from ._republish import publish_asked
from ._retry import retry
from ._sending import prepared, with_key
from ._strict_json import unwrapped
from .exceptions import ConfigurationError

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["CHECK", "INTAKE", "PatternTask", "ReliableTask", "body_of"]

#: The worker's step that refuses to start where a task's promise cannot be kept; its module is not loaded by senders.
CHECK = "celery_patterns.worker.CheckPatterns"

#: The request, in the worker's main process, of a task that wears ``dead_letter``.
REQUEST = "celery_patterns.worker.Request"
#: The consumer's step that keeps what no task can be found for.
INTAKE = "celery_patterns.worker.Intake"

_SELF = inspect.Parameter("__task__", inspect.Parameter.POSITIONAL_ONLY)


class PatternTask(Task):  # type: ignore[misc]
    """A Celery task that can wear patterns; without any it is a plain Celery task, at no cost.

    Put the values into ``patterns`` of a base class, or of one task with ``@app.task(patterns=(…))``, or decorate the
    function: all three mean the same. A task's own pattern replaces its base's of the same kind, the rest is inherited.
    """

    abstract = True

    #: The patterns that every task of this class wears.
    patterns: ClassVar[tuple[Pattern, ...]] = ()

    #: How the task runs; None for a task that wears nothing.
    plan: ClassVar[Plan | None] = None
    _above: ClassVar[tuple[Pattern, ...]] = ()
    _unsaid: ClassVar[frozenset[str]] = frozenset()
    _annotated: ClassVar[frozenset[str]] = frozenset()

    @property
    def backend(self) -> Any:
        """Celery's result backend for this task. Once a run's letter or next attempt stands, its trouble is logged only."""
        backend = super().backend
        # Asked for at each .delay() and after each run, most of which are in a process that has never kept anything.
        return sparing(backend, self) if EVER_KEPT else backend

    @backend.setter
    def backend(self, backend: Any) -> None:
        super(PatternTask, type(self)).backend.__set__(self, backend)

    @classmethod
    def bind(cls, app: Celery) -> Celery:
        """Bind the task to its app, as Celery does, remembering which options came from the app's settings."""
        own = set(cls.__dict__)
        bound: Celery = super().bind(app)
        if "_unsaid" not in cls.__dict__:
            filled = {name for name, _ in cls.from_config} | {"acks_on_failure", "acks_on_timeout"}
            cls._unsaid = frozenset(filled - own - cls._annotated)
            cls._dress()
        return bound

    @classmethod
    def annotate(cls) -> None:
        """Apply the app's ``task_annotations``, as Celery does, remembering which options they set."""
        cls._annotated = frozenset(name for found in resolve_all(cls._app.annotations, cls) for name in found)
        super().annotate()

    @classmethod
    def put_on(cls, pattern: Pattern) -> None:
        """Wear one more pattern: what a decorator above ``@app.task`` does."""
        cls._above = (pattern, *cls.__dict__.get("_above", ()))
        cls._dress()

    @classmethod
    def _dress(cls) -> None:
        """Make the task's plan and put its one wrapper around the body."""
        if not cls.name or cls.name.startswith("celery."):
            return
        body, in_class = body_of(cls)
        try:
            patterns = worn_by(cls, body, cls.__dict__.get("_above", ()))
            if not patterns:
                refuse_strays(cls, patterns)
                cls.plan = None
                cls._promise(patterns)
                return
            signature = _caller_signature(body, in_class)
            refuse_misfits(cls, body, signature, patterns)
        except ConfigurationError:
            # Left in the registry, it would be a task whose patterns are silently absent.
            cls._app._tasks.pop(cls.name, None)  # noqa: SLF001 - `tasks` would finalize the app
            raise
        cls._promise(patterns)
        plan = Plan(
            patterns,
            body,
            in_class,
            signature,
            publish_asked,
            attempts=cls._attempts(patterns),
            crash_limit=cls._crash_limit(patterns),
        )
        cls.plan = plan
        cls._app.steps["worker"].add(CHECK)
        cls._app.steps["consumer"].add(INTAKE)
        if any(pattern.layer is Layer.BURY for pattern in patterns) and cls.Request == Task.Request:
            cls.Request = REQUEST  # another one of the user's own is looked at when a worker starts
        contain_hooks(cls)
        cls.run = _wrapper(cls, plan, body, in_class)

    @classmethod
    def _promise(cls, patterns: tuple[Pattern, ...]) -> None:
        """Set the options that the promises of these patterns need, where the task itself said nothing."""
        attempts = cls._attempts(patterns)
        if attempts is not None:
            cls._set("max_retries", attempts - 1)  # the body's own self.retry() shares the budget
        else:
            owners = [base for base in cls.__mro__ if "max_retries" in base.__dict__]
            said_by = next(base for base in owners if "max_retries" not in base.__dict__.get("_unsaid", ()))
            if owners[0] is not said_by:  # the retry of a task that it inherits from had set it
                cls._set("max_retries", said_by.__dict__["max_retries"])
        if any(pattern.layer in (Layer.BURY, Layer.CLAIM) for pattern in patterns):
            for option in ("acks_late", "reject_on_worker_lost"):
                if said(cls, option) is None:
                    cls._set(option, True)

    @classmethod
    def _set(cls, option: str, value: Any) -> None:
        """Set an option without having the task say so: a subclass may still promise something else."""
        cls._unsaid = cls.__dict__["_unsaid"] | {option}
        setattr(cls, option, value)

    @classmethod
    def _attempts(cls, patterns: tuple[Pattern, ...]) -> int | None:
        for pattern in patterns:
            if isinstance(pattern, retry):
                return pattern.attempts
        return None

    @classmethod
    def _crash_limit(cls, patterns: tuple[Pattern, ...]) -> int | None:
        if not cls.acks_late:
            return None  # acknowledged before it starts, a message cannot crash twice
        for pattern in patterns:
            if isinstance(pattern, dead_letter):
                return pattern.max_crashes
        return MAX_CRASHES  # a key counts its starts also where no dead_letter says how many there may be

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        **options: Any,
    ) -> Any:
        """Send the task, as Celery does.

        Args:
            args: Positional arguments.
            kwargs: Named arguments.
            task_id: The task's id; a random one by default.
            producer: Celery's option of this name.
            link: Celery's option of this name.
            link_error: Celery's option of this name.
            shadow: Celery's option of this name.
            options: Celery's options, and ``idempotency_key``: this call's own key, a str.

        Raises:
            UnsafeValue: After ``use_strict_json(app)``, when an argument would not arrive as it is. Nothing was sent.
            InvalidKey: When no key can be made from the arguments. Nothing was sent.
            ConfigurationError: When an ``idempotency_key`` is given that is none. Nothing was sent.
            TypeError: When arguments are missing, or are given one by one, as ``delay`` takes them. Nothing was sent.
        """
        options = prepared(self, self.plan, args, kwargs, task_id, options)
        try:
            return super().apply_async(args, kwargs, task_id, producer, link, link_error, shadow, **options)
        except EncodeError as error:
            unsafe = unwrapped(error, self.name)
            if unsafe is None:
                raise
            raise unsafe from None

    def apply(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Run the task here, as Celery does; an ``idempotency_key`` is taken as in :meth:`apply_async`."""
        options = with_key(self, self.plan, options)
        return super().apply(args, kwargs, *more, **options)

    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: Exception | None = None,
        throw: bool = True,
        eta: Any = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Any:
        """Ask for another attempt, as Celery's ``retry`` does.

        In a task that wears patterns the next attempt counts against ``retry(attempts=…)``, and is published, confirmed,
        when the body is over. The arguments are Celery's own.

        Raises:
            celery.exceptions.Retry: Always, unless ``throw`` is False or no attempt is left.
        """
        call = self.request.__dict__.get(MARK)
        asking = {
            "args": args,
            "kwargs": kwargs,
            "exc": exc,
            "eta": eta,
            "countdown": countdown,
            "max_retries": max_retries,
            **options,
        }
        if not isinstance(call, Call) or call.instance is not self:
            return super().retry(throw=throw, **asking)
        if call.attempts is not None and max_retries is not None:
            asking["max_retries"] = min(max_retries, call.attempts - 1)
        asked = self._asked(call, asking)
        if throw:
            raise asked
        return asked

    def _asked(self, call: Call, asking: dict[str, Any]) -> Retry:
        """The ``Retry`` that Celery would raise, with nothing published yet.

        For an eager request Celery makes the signature and leaves the sending to its caller, which is what we want.
        """
        request, was_eager = call.request, call.request.is_eager
        request.is_eager = True
        try:
            asked = super().retry(throw=False, **asking)
        except MaxRetriesExceededError:
            call.spent = True
            # Celery's text quotes the arguments.
            raise self.MaxRetriesExceededError(f"{self.name}: attempt {call.attempt} was the last") from None
        except Exception as error:
            given = asking["exc"]  # which Celery raises again when no attempt is left
            if error is given or (isinstance(given, type) and isinstance(error, given)):
                call.spent = True
            raise
        finally:
            request.is_eager = was_eager
        assert isinstance(asked, Retry)
        asked.is_eager = was_eager
        if asking["args"] is None:
            asked.sig["args"] = call.received_args
        if asking["kwargs"] is None:
            asked.sig["kwargs"] = call.received_kwargs
        call.asked = asked
        return asked

    def map(self, it: Any) -> Any:
        """Celery's ``map``; refused for a task with a key, whose calls it would make without it."""
        self._refuse_calls_without_key("map")
        return super().map(it)

    def starmap(self, it: Any) -> Any:
        """Celery's ``starmap``; refused for a task with a key, whose calls it would make without it."""
        self._refuse_calls_without_key("starmap")
        return super().starmap(it)

    def chunks(self, it: Any, n: int) -> Any:
        """Celery's ``chunks``; refused for a task with a key, whose calls it would make without it."""
        self._refuse_calls_without_key("chunks")
        return super().chunks(it, n)

    def _refuse_calls_without_key(self, form: str) -> None:
        if self.plan is not None and self.plan.terms.keyed:
            raise ConfigurationError(
                f"{self.name}.{form}() makes its calls inside one task, where no key is claimed; expected a group: "
                f"group({self.__name__}.s(item) for item in items)",
            )


class ReliableTask(PatternTask):
    """A task that is logged, tried again on connection trouble, and kept when it finally fails.

    It wears ``logged()``, ``dead_letter()`` to its queue's name with ``.dead`` behind it, and
    ``retry(on=(ConnectionError, TimeoutError), attempts=5)``. It wears no key: give it one with ``idempotent``. Its crashes
    are counted in the app's store, without which a worker refuses to start.
    """

    abstract = True

    patterns = (logged(), dead_letter(), retry(on=(ConnectionError, TimeoutError), attempts=5))


def body_of(cls: type) -> tuple[Callable[..., Any], bool]:
    """The user's function, and whether it takes the task first."""
    found: Any = next(base.__dict__["run"] for base in cls.__mro__ if "run" in base.__dict__)
    inner = getattr(found, INNER, None)
    if inner is not None:
        body, in_class = inner
        return body, in_class
    if isinstance(found, staticmethod):
        return found.__func__, False
    return found, True


def _caller_signature(body: Callable[..., Any], in_class: bool) -> inspect.Signature:
    signature = inspect.signature(body)
    if not in_class:
        return signature
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _wrapper(cls: type[PatternTask], plan: Plan, body: Callable[..., Any], in_class: bool) -> Callable[..., Any]:
    """The one wrapper: it acts as the running task's own body, and is transparent for every other call."""

    @functools.wraps(body)
    def run(self: PatternTask, /, *args: Any, **kwargs: Any) -> Any:
        request = self.request_stack.top
        if request is None or request.called_directly or MARK in request.__dict__ or type(self) is not cls:
            return body(self, *args, **kwargs) if in_class else body(*args, **kwargs)
        try:
            return plan.run(self, request, args, kwargs)
        except Exception as error:  # noqa: BLE001 - and raised again
            raise shortened(error)  # noqa: B904 - it is the same one

    run.__dict__.pop(WORN, None)
    setattr(run, INNER, (body, in_class))
    # Celery reads it to check arguments, and to tell how an errback is called.
    run.__signature__ = plan.terms.signature.replace(  # type: ignore[attr-defined]
        parameters=[_SELF, *plan.terms.signature.parameters.values()],
    )
    return run
