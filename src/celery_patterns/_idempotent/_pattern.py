"""The pattern ``idempotent``: a key's work is done once, and every duplicate gets its result."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args
from uuid import UUID

from .._call import Claim
from .._equipment import equipment_of
from .._keys import argument_names, canonical, digest
from .._plan import Layer, Pattern
from .._received import as_sent
from ..exceptions import ConfigurationError, InvalidKey
from ._failure import Kinds, kinds_of
from ._renewal import Unclaimed, local_fence
from ._run import Run
from ._source import Key, Source, expect_names

if TYPE_CHECKING:
    from .._call import Call, Proceed
    from .._keys import Binder

__all__ = ["idempotent"]

WhenRunning = Literal["wait", "raise"]
WhenStoreDown = Literal["wait", "run"]

#: Longer than any of these spans is meant to be, and still a time that a store can count.
LONGEST = timedelta(days=36_500)
#: Each duplicate fetches it: what is larger belongs into a store of files.
LARGEST_RESULT = 1024 * 1024
#: What stands for nothing, such as None, is always kept; and a limit that was meant in another unit is found out.
SMALLEST_LIMIT = 1024

#: Types that a key is made of without any doubt.
_SURE = frozenset({str, int, bool, bytes, UUID})


@dataclass(frozen=True, init=False)
class idempotent(Pattern):  # noqa: N801 - used as a call, like every pattern
    """Do a key's work once.

    It promises that a key's work is never run by two workers at once while its lease holds, and never again once it is
    done and recorded, for ``ttl``; a duplicate returns the first run's result. The lease is renewed as long as the body
    runs. A duplicate of running work waits, using no worker slot and no attempt, or fails at once, as ``when_running``
    says. A failure frees the key, unless ``remember`` names it: the next call with it runs. When a worker is killed, the
    redelivered message takes the key over once the lease is over; after the ``max_crashes`` of :class:`dead_letter`, 3
    without it, it is not run again.

    It does not promise exactly-once effects in another system: a worker killed between the effect and the record
    runs the effect again. Hand ``current_claim().key`` to that system for this case. Nor does it promise one worker at a
    time when a worker stands still for longer than the lease, or cannot reach the store for so long: another one may then
    begin. The first one's result no longer counts, ``current_claim().still_mine()`` is False, and its fence is the
    smaller one.

    Args:
        key: What makes two calls the same work: an argument's name, a path into an argument, as ``"order.id"``, a tuple of
            these, or a function that takes the task's arguments and returns the value. A path steps into a mapping by key,
            and into any other object by attribute. One call's own key: ``.set(idempotency_key="…")``.
        ttl: How long the record, and with it the result, is kept after the work is done.
        scope: Whose key it is, said like ``key``: calls of different tenants never meet, not even where both bring the same
            key of their own. It must not be None. By default all calls of the task share one scope.
        same: The arguments that duplicates must agree on, by name; all by default. Others may differ.
        lease: How long a killed worker keeps the key; 30 seconds by default. A body that runs for a third of it has it
            renewed, and so on until it ends.
        wait_within: How long a duplicate waits for running work before it fails with ``InProgress``; 1 hour by default.
        when_running: ``"wait"``, the default: a duplicate of running work waits for it. ``"raise"``: it fails with
            ``InProgress`` at once, in the worker. Another delivery of the very task that runs, and a run that has lost its
            key, wait all the same: to fail would be to fail that task.
        when_store_down: ``"wait"``, the default: while the store does not answer, the message waits, for ``wait_within`` at
            most, and no attempt is used. ``"run"``: it is run without a claim, and so perhaps more than once: nothing is
            recorded, and the event ``run_without_claim`` says so.
        remember: Exception types, one or a tuple of them; none by default. A final failure of such a type is recorded like a
            result, for ``ttl``: each later duplicate fails with ``FailedBefore`` at once, and leaves no letter. A replay of
            that failure's letter forgets it. ``SoftTimeLimitExceeded`` and ``MemoryError`` must be named themselves.
        max_result_bytes: The largest result that is kept, in bytes of JSON; 1 MiB by default. The work of a larger one is
            recorded as done, without it: a duplicate gets ``ResultNotKept``. None: no limit.

    Raises:
        ConfigurationError: When an argument is wrong, and when a task without such an argument wears it.
    """

    layer: ClassVar[Layer] = Layer.CLAIM

    key: Key
    ttl: timedelta
    scope: Key | None
    same: tuple[str, ...] | None
    lease: timedelta
    wait_within: timedelta
    when_running: WhenRunning
    when_store_down: WhenStoreDown
    remember: tuple[type[Exception], ...]
    max_result_bytes: int | None
    #: What key and scope are made of.
    _key: Source = field(repr=False, compare=False)
    _scope: Source | None = field(repr=False, compare=False)
    #: The arguments of which both are made, when it is whole ones.
    _whole: tuple[str, ...] = field(repr=False, compare=False)

    def __init__(
        self,
        *,
        key: Key,
        ttl: timedelta,
        scope: Key | None = None,
        same: tuple[str, ...] | None = None,
        lease: timedelta = timedelta(seconds=30),
        wait_within: timedelta = timedelta(hours=1),
        when_running: WhenRunning = "wait",
        when_store_down: WhenStoreDown = "wait",
        remember: Kinds = (),
        max_result_bytes: int | None = LARGEST_RESULT,
    ) -> None:
        for name, span, longest in (
            ("ttl", ttl, LONGEST),
            ("lease", lease, LONGEST),
            ("wait_within", wait_within, None),
        ):
            _expect_span(name, span, longest)
        made_of = Source("key", key)
        kept_apart = None if scope is None else Source("scope", scope)
        if same is not None:
            if not isinstance(same, tuple):
                raise ConfigurationError(f"expected same to be a tuple of argument names, got {same!r}")
            expect_names("same", same, empty=True)
        if when_running not in get_args(WhenRunning):
            raise ConfigurationError(f'expected when_running to be "wait" or "raise", got {when_running!r}')
        if when_store_down not in get_args(WhenStoreDown):
            raise ConfigurationError(f'expected when_store_down to be "wait" or "run", got {when_store_down!r}')
        kinds = kinds_of(remember)
        if max_result_bytes is not None and (type(max_result_bytes) is not int or max_result_bytes < SMALLEST_LIMIT):
            raise ConfigurationError(
                f"expected max_result_bytes to be at least {SMALLEST_LIMIT}, or None for no limit, got {max_result_bytes!r}"
            )
        sources = [made_of] if kept_apart is None else [made_of, kept_apart]
        whole = tuple([name for one in sources for name in one.arguments]) if all(one.plain for one in sources) else ()
        for name, value in (
            *(("key", key), ("ttl", ttl), ("scope", scope), ("same", same), ("lease", lease)),
            *(("wait_within", wait_within), ("when_running", when_running), ("when_store_down", when_store_down)),
            *(("remember", kinds), ("max_result_bytes", max_result_bytes)),
            *(("_key", made_of), ("_scope", kept_apart), ("_whole", whole)),
        ):
            object.__setattr__(self, name, value)

    def check(self, task: str, signature: inspect.Signature) -> None:
        names = argument_names(signature)
        scope = self._scope.arguments if self._scope is not None else ()
        for role, wanted in (("key", self._key.arguments), ("scope", scope), ("same", self.same or ())):
            for name in wanted:
                if name not in names:
                    takes = ", ".join(names) or "no named arguments"
                    raise ConfigurationError(f"{role} names {name!r}, but {task}() takes ({takes})")

    def around(self, proceed: Proceed, call: Call) -> Any:
        args, kwargs = call.received_args, call.received_kwargs
        if call.eager:  # they are the caller's own still
            args, kwargs = as_sent(call.instance, args, kwargs)
        arguments = call.terms.bound(args, kwargs)
        key = self.key_of(call.task, arguments, args, kwargs, call.header.get("key"))
        if call.eager:
            # Nothing is claimed, but a body that hands its key on can be run.
            call.lease = Unclaimed(self.lease.total_seconds(), mine=True)
            call.claim = Claim(key, local_fence(), call.lease, lambda *_: None)
            return proceed(call)
        run = Run(self, call, equipment_of(call.app).store, key, self.fingerprint(call.terms.bound.stated(arguments)))
        return run.claim(proceed)

    def check_call(
        self, task: str, bound: Binder, args: tuple[Any, ...], kwargs: dict[str, Any], given: str | None = None
    ) -> None:
        if given is None and self._whole:
            for name in self._whole:  # what is no doubt a key is let pass without making it
                if type(bound.one(name, args, kwargs)) not in _SURE:
                    break
            else:
                return
        try:
            arguments = bound(args, kwargs)
        except TypeError:
            return  # Celery's own check, which can be switched off, speaks of missing arguments
        self.key_of(task, arguments, args, kwargs, given)

    def key_of(
        self,
        task: str,
        arguments: dict[str, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: str | None = None,
    ) -> str:
        """The key's digest for these arguments; the task's name is in it.

        Raises:
            InvalidKey: When a value in the key or its scope is missing, is no plain value, or is a float, and when a
                function that makes one fails.
        """
        if given is None:
            parts = self._key.parts(task, arguments, args, kwargs)
        elif isinstance(given, str) and given:
            parts = ("given", canonical(given, where="idempotency_key", floats=False))
        else:
            raise InvalidKey(f"{task} was sent with a key of its own that is none: expected a str that is not empty")
        if self._scope is None:
            return digest(task, *parts)
        return digest(task, "scope", digest(*self._scope.parts(task, arguments, args, kwargs)), *parts)

    @property
    def made_of(self) -> tuple[str, ...]:
        """The arguments, and parts of them, that key and scope are made of; none where a function makes one."""
        sources = [source for source in (self._key, self._scope) if source is not None]
        return tuple([name for source in sources for name in source.said]) if all(one.said for one in sources) else ()

    def is_made_of(self, name: str, *, given: bool) -> bool:
        """Whether an argument, or a part of one, may have a part in the key; a function may use each.

        Args:
            name: Its name, or a path.
            given: Whether the call has brought a key of its own, so that only the scope is made.
        """
        sources = [self._scope] if given else [self._key, self._scope]
        return any(not source.said or source.overlaps(name) for source in sources if source is not None)

    def key_without_code(
        self, task: str, bound: Binder, args: tuple[Any, ...], kwargs: dict[str, Any], given: str | None
    ) -> str | None:
        """The key's digest as the main process may make it; None when code of the user's would run, which may hang."""
        arguments = bound(args, kwargs)
        used = (self._key if given is None else None, self._scope)
        if any(source.runs_code(arguments) for source in used if source is not None):
            return None
        return self.key_of(task, arguments, args, kwargs, given)

    def fingerprint(self, arguments: dict[str, Any]) -> str:
        """A digest of the arguments that duplicates must agree on.

        Args:
            arguments: Those that differ from their defaults.

        Raises:
            InvalidKey: When one of them is NaN, or no plain value.
        """
        agreed = {name: value for name, value in arguments.items() if self.same is None or name in self.same}
        return digest(canonical(agreed, where="arguments", floats=True))


def _expect_span(name: str, span: Any, longest: timedelta | None) -> None:
    if not isinstance(span, timedelta):
        raise ConfigurationError(f"expected {name} to be a timedelta, for example timedelta(days=1), got {span!r}")
    if span <= timedelta(0):
        raise ConfigurationError(f"expected {name} to be longer than nothing, got {span}")
    if longest is not None and span > longest:
        raise ConfigurationError(f"expected {name} to be at most {longest.days} days, got {span}")
