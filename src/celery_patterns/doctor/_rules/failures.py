"""CP505, CP513 and CP525: what bodies catch and raise, as it is written. The source is parsed, and never imported."""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

import celery

from .._bindings import nodes_of, scope_of
from .._finding import Rule, Sign, rule
from .._module import Function, Module, called, caught_by

if TYPE_CHECKING:
    from .._case import Case
    from .._tasks import TaskFacts

#: A ``try``, with ``except*`` since Python 3.11.
_TRIES: Any = (ast.Try, getattr(ast, "TryStar", ast.Try))
#: The release of Celery that stores the failure of what was rejected.
_STORES_REJECTED = (5, 7)
#: What a body lets through for others than its patterns.
_OF_ENDS = frozenset({"SoftTimeLimitExceeded", "Ignore", "Reject", "Retry"})
#: Who is told of an error, and does nothing about it; and what makes a text for them.
_TELLERS = frozenset(
    {
        "log",
        "logger",
        "logging",
        "getlogger",
        "traceback",
        "sentry_sdk",
        "print",
        "str",
        "repr",
        "type",
        "len",
        "format",
    }
)
#: What leaves a handler, and the body.
_LEAVES = frozenset({"retry", "exit", "_exit", "abort"})


@rule(
    "CP505",
    "warning",
    "A soft limit that the body swallows",
    "SoftTimeLimitExceeded is an Exception: where it strikes there, it is caught as any other, and the body goes on until "
    "the hard limit kills it.",
    upstream="celery/billiard#240",
)
def swallows_limit(case: Case) -> Iterator[Sign]:
    """``except Exception`` that goes on, in a task with a soft time limit."""
    for module, facts, node in _nodes_in_tasks(case):
        found = None if facts.soft_limit is None else _swallower(module, node)
        if found is not None and _goes_on(module, node) and not module.is_excused(found, "CP505"):
            yield Sign(
                module.place(found),
                f"{facts.name} has {facts.limit_line('soft_time_limit')}, and catches Exception and goes on",
                "Put `except SoftTimeLimitExceeded: raise` before it, or name the exceptions that you mean.",
            )


@rule(
    "CP525",
    "warning",
    "A body that swallows what its patterns act on",
    "Each run ends well, whatever happened: nothing is tried again, and no dead letter is left.",
    upstream="rapidsms/rapidsms#421",
)
def swallows_failure(case: Case) -> Iterator[Sign]:
    """All of the body stands in a ``try`` whose handler does nothing, or logs; and the task is retried, or buries."""
    for module in case.source:
        for task in module.tasks:
            facts = case.by_name.get(task.name)
            if facts is None or facts.is_called_otherwise or (facts.retry is None and facts.buries is None):
                continue
            on = facts.retry.on if facts.retry is not None and facts.buries is None else ()
            found = _swallower_of_all(module, task.function, on if isinstance(on, tuple) else ())
            if found is not None and not module.is_excused(found, "CP525"):
                worn = " and ".join(kind.kind() for kind in (facts.retry, facts.buries) if kind is not None)
                yield Sign(
                    module.place(found),
                    f"{facts.name} wears {worn}, and catches each error that is waited for",
                    "Take the handler away, or let it end with raise.",
                )


@rule(
    "CP513",
    "warning",
    "A rejected task whose result never comes",
    "Celery stores nothing of a task that raises Reject: its state stays PENDING, and whoever waits for it, a chord too, "
    "waits without an end. Celery 5.7 stores FAILURE.",
    upstream="celery/celery#4222",
)
def rejects(case: Case) -> Iterator[Sign]:
    """``raise Reject(…)`` without ``requeue=True``, in a task whose results are kept, on Celery before 5.7."""
    if celery.VERSION[:2] >= _STORES_REJECTED or not case.keeps_results:
        return
    for module, facts, node in _nodes_in_tasks(case):
        rejected = (
            isinstance(node, ast.Raise)
            and not facts.task.ignore_result
            and _is_reject(module, node.exc)
            and not _is_seen_to(module, node)
        )
        if rejected and not module.is_excused(node, "CP513"):
            yield Sign(
                module.place(node),
                f"{facts.name} raises Reject, its results are kept, and Celery {celery.__version__} is installed",
                "Install Celery 5.7 or later, or raise an error of your own.",
            )


def _is_seen_to(module: Module, node: ast.AST) -> bool:
    """Whether it is caught in the same body, or the body stores a state by itself."""
    for around in module.around(node):
        if isinstance(around, _TRIES) and not isinstance(node, ast.ExceptHandler):
            tried: Any = around
            kinds = {called(kind) for handler in tried.handlers for kind in caught_by(handler)}
            if any(handler.type is None for handler in tried.handlers):
                kinds.add("BaseException")
            if node not in tried.finalbody and kinds & {"Reject", "Exception", "BaseException"}:
                return True
        if isinstance(around, ast.With) and any(called(one.context_expr) == "suppress" for one in around.items):
            return True
        if isinstance(around, Function):
            calls = (one for one in nodes_of(around) if isinstance(one, ast.Call))
            return any(called(one) in ("mark_as_failure", "store_result", "update_state") for one in calls)
        node = around
    return False


def _is_reject(module: Module, raised: ast.expr | None) -> bool:
    if not isinstance(raised, ast.Call | ast.Name) or called(raised) != "Reject":
        return False
    if not isinstance(raised, ast.Call):
        return module.whole_name(raised).startswith("celery.")
    if any(isinstance(one, ast.Starred) for one in raised.args) or any(word.arg is None for word in raised.keywords):
        return False  # nobody knows what is said there
    requeue = [*raised.args[1:2], *(word.value for word in raised.keywords if word.arg == "requeue")]
    stays_out = all(isinstance(one, ast.Constant) and not one.value for one in requeue)
    return module.whole_name(raised.func).startswith("celery.") and stays_out


def _nodes_in_tasks(case: Case) -> Iterator[tuple[Module, TaskFacts, ast.AST]]:
    """What stands in the bodies of the tasks that the app knows."""
    for module in case.source:
        for task in module.tasks:
            facts = case.by_name.get(task.name)
            yield from ((module, facts, node) for node in nodes_of(task.function) if facts is not None)


def _swallower(module: Module, node: ast.AST) -> ast.AST | None:
    """What catches everything and goes on, where nothing before it lets the limit through."""
    if isinstance(node, ast.With | ast.AsyncWith):
        broad = (one for one in node.items if called(one.context_expr) == "suppress")
        kinds = [kind for one in broad if isinstance(one.context_expr, ast.Call) for kind in one.context_expr.args]
        return node if any(called(kind) in ("Exception", "BaseException") for kind in kinds) else None
    if not isinstance(node, _TRIES):
        return None
    tried: Any = node
    if all(isinstance(one, ast.Import | ast.ImportFrom) for one in tried.body):
        return None
    for handler in tried.handlers:
        names = [module.whole_name(one).rpartition(".")[2] for one in caught_by(handler)]
        if "SoftTimeLimitExceeded" in names:
            return None
        if handler.type is None or "Exception" in names or "BaseException" in names:
            left = any(_leaves(one) for part in handler.body for one in (part, *nodes_of(part)))
            return None if left else cast("ast.AST", handler)
    return None


def _swallower_of_all(module: Module, function: Function, on: tuple[type, ...]) -> ast.AST | None:
    """The handler that does nothing about an error, around all that the function does.

    Args:
        module: Where it stands.
        function: The function.
        on: The errors that are waited for; none: all of them.
    """
    tries = [one for one in function.body if isinstance(one, _TRIES)]
    tried: Any = tries[0] if len(tries) == 1 else None
    others = [one for one in function.body if one is not tried and not _is_idle(one)]
    if tried is None or others or not all(map(_is_idle, tried.orelse + tried.finalbody)):
        return None
    through = [one for one in tried.handlers if _lets_through(one)]
    let = {kind for one in through for kind in caught_by(one)}
    if any(called(kind) not in _OF_ENDS for kind in let) or _are_among(module, function, on, let):
        return None
    for handler in tried.handlers:
        if handler in through:
            continue
        if not all(map(_is_idle, handler.body)):
            return None
        if handler.type is None or _are_among(module, function, on or (Exception,), caught_by(handler), every=True):
            return cast("ast.AST", handler)
    return None


def _lets_through(handler: ast.ExceptHandler) -> bool:
    return isinstance(handler.body[0], ast.Raise) and handler.body[0].exc is None


def _are_among(
    module: Module, function: Function, errors: tuple[type, ...], named: Iterable[ast.expr], *, every: bool = False
) -> bool:
    """Whether any of these errors, or every one, is of a kind that is named."""
    kinds = tuple(one for kind in named if isinstance(one := _class_of(module, function, kind), type))
    are = [issubclass(one, kinds) for one in errors]
    return all(are) if every else any(are)


def _class_of(module: Module, function: Function, node: ast.expr) -> Any:
    """What a name stands for, where its module was imported and nothing within the function is called so."""
    if isinstance(node, ast.Attribute):
        home, _, name = module.whole_name(node).rpartition(".")
        return getattr(sys.modules.get(home), name, None)
    if not isinstance(node, ast.Name) or node.id in scope_of(module, function).bindings:
        return None
    found = module.stands(node.id)
    return getattr(builtins, node.id, None) if found is None and node.id not in module.imported else found


#: What a statement is made of that can neither do anything nor fail.
_IDLE = (
    *(ast.Assign, ast.AnnAssign, ast.Return, ast.Expr, ast.Pass, ast.Name, ast.Constant, ast.Tuple, ast.List, ast.Dict),
    *(ast.Call, ast.Attribute, ast.keyword, ast.JoinedStr, ast.FormattedValue, ast.expr_context),
)


def _is_idle(statement: ast.stmt) -> bool:
    """Whether it only tells of an error, or sets or returns what is there."""
    if isinstance(statement, ast.Import) and all(one.name in _TELLERS for one in statement.names):
        return True
    for node in ast.walk(statement):
        notes = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if not isinstance(node, _IDLE) or notes or (isinstance(node, ast.Call) and not _tells(node)):
            return False
    return True


def _tells(call: ast.Call) -> bool:
    owner = call.func.value if isinstance(call.func, ast.Attribute) else call.func
    return called(owner).strip("_").lower() in _TELLERS


def _leaves(node: ast.AST) -> bool:
    return isinstance(node, ast.Raise | ast.Return | ast.Break) or (
        isinstance(node, ast.Call) and called(node) in _LEAVES
    )


def _goes_on(module: Module, node: ast.AST) -> bool:
    """Whether the body does something behind it: another turn of a loop, or what stands below."""
    for around in module.around(node):
        if isinstance(around, ast.For | ast.AsyncFor | ast.While):
            return True
        for block in (getattr(around, part, None) for part in ("body", "orelse", "finalbody")):
            if isinstance(block, list) and node in block and block[-1] is not node:
                return True
        if isinstance(around, Function):
            return False
        node = around
    return False


RULES: tuple[Rule, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
