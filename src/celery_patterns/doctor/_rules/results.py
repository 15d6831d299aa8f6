"""CP51: where results are read, as it is written. The source is parsed, and never imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .._finding import Rule, Sign, rule
from .._module import Module, called
from .._values import SENDS, is_result, made_by, sends, task_name

if TYPE_CHECKING:
    from .._case import Case

#: What is read of a result without a call.
_SHOWS = frozenset({"state", "status", "result", "info", "traceback"})
_READS = frozenset({"get", "wait", "join", "join_native", "get_leaf", "collect", "ready", "successful", "failed"})


@rule(
    "CP510",
    "error",
    "Results that are read, and kept nowhere",
    "Reading one raises: there is no result backend.",
    upstream="celery/celery#7340",
)
def reads_nothing(case: Case) -> Iterator[Sign]:
    """A result is read, and ``result_backend`` is not set."""
    if case.keeps_results or case.conf.task_always_eager:
        return
    cure = f"Set {case.line('result_backend', repr(_near(case)))}, for example."
    for module, place, read in _reads(case):
        if not module.is_excused(place, "CP510"):
            yield Sign(module.place(place), f"a result is read with {_how(read)}, and result_backend is not set", cure)
    for module in case.source:
        for call in module.calls:
            chords = called(call) == "chord" and module.whole_name(call.func).startswith("celery.")
            if chords and not module.is_excused(call, "CP510"):
                yield Sign(
                    module.place(call), "a chord waits for its parts' results, and result_backend is not set", cure
                )


@rule(
    "CP523",
    "warning",
    "A result that is read as it is sent",
    "No worker can have done it yet: it is None, and the state is PENDING.",
    upstream="celery/celery#1574",
)
def reads_at_once(case: Case) -> Iterator[Sign]:
    """``task.delay(…).result``, and what else does not wait."""
    if case.conf.task_always_eager or not case.keeps_results:
        return
    for module in case.source:
        for read in module.attributes:
            sent = read.value if read.attr in _SHOWS else None
            if (
                not isinstance(sent, ast.Call)
                or not sends(case, module, sent)
                or not isinstance(sent.func, ast.Attribute)
            ):
                continue
            facts = case.by_name.get(task_name(case, module, sent.func.value) or "")
            if facts is not None and not facts.task.ignore_result and not module.is_excused(read, "CP523"):
                yield Sign(
                    module.place(read),
                    f".{read.attr} is read of what is sent in the same line",
                    f"Write .get(timeout=…) for .{read.attr}, or read it later.",
                )


@rule(
    "CP511",
    "error",
    "A result that is read, and ignored",
    "It is never stored: whoever reads it waits without an end, or gets None at once.",
    upstream="celery/celery#2652",
)
def reads_ignored(case: Case) -> Iterator[Sign]:
    """A result is read of a task whose results are ignored."""
    if not case.keeps_results or case.conf.task_store_errors_even_if_ignored:
        return
    for module, place, read in _reads(case):
        sent = made_by(module, read.value, place)
        if not isinstance(sent, ast.Call) or not isinstance(sent.func, ast.Attribute) or called(sent) not in SENDS:
            continue
        facts = case.by_name.get(task_name(case, module, sent.func.value) or "")
        stored = any(word.arg == "ignore_result" for word in sent.keywords)
        if facts is not None and facts.task.ignore_result and not stored and not module.is_excused(place, "CP511"):
            whose = "task_ignore_result=True" if case.conf.task_ignore_result else "ignore_result=True"
            yield Sign(
                module.place(place),
                f"the result of {facts.name} is read with {_how(read)}, and {whose}",
                f"Write ignore_result=False at {facts.name}.",
            )


def _reads(case: Case) -> Iterator[tuple[Module, ast.expr, ast.Attribute]]:
    """Where a result is read, and what of it: ``.get()``, ``.state``."""
    for module in case.source:
        for call in module.calls:
            read = call.func
            if isinstance(read, ast.Attribute) and read.attr in _READS and is_result(case, module, read.value, call):
                yield module, call, read
        for node in module.attributes:
            if node.attr in _SHOWS and is_result(case, module, node.value, node):
                yield module, node, node


def _how(read: ast.Attribute) -> str:
    return f".{read.attr}{'()' if read.attr in _READS else ''}"


def _near(case: Case) -> str:
    """A result backend beside the broker, where that is a Redis without a login."""
    broker = case.addresses[0]
    if broker.scheme not in ("redis", "rediss") or broker.trouble is not None or broker.user or broker.password:
        return "redis://localhost:6379/2"
    host = f"[{broker.host}]" if ":" in broker.host else broker.host
    taken = {one.place for one in case.addresses if (one.host, one.port) == (broker.host, broker.port)}
    free = next(number for number in range(1, len(taken) + 2) if str(number) not in taken)
    return f"{broker.scheme}://{host}:{broker.port}/{free}"


RULES: tuple[Rule, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
