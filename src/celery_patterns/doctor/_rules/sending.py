"""CP50 and CP51: how tasks are sent, as it is written. The source is parsed, and never imported."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from .._bindings import is_passed
from .._finding import Rule, Sign, rule
from .._module import Function, Module, called
from .._tasks import seconds
from .._values import is_canvas_sent, is_task_itself, made_by, sends, task_name

if TYPE_CHECKING:
    from .._case import Case

#: Where a transaction begins: Django's, SQLAlchemy's.
_TRANSACTIONS = frozenset({"begin", "begin_nested"})
#: What begins one is called so, and not a tracer's or an animation's.
_DATABASES = ("session", "engine", "connection", "conn", "db", "database", "transaction")
#: No wait is so long, in seconds.
_LONGEST = 1e12
#: What a session is told to write.
_ADDS = ("add", "add_all", "merge", "flush")
_WAIT = frozenset({"apply_async", "retry", "set", "signature"})
_SUMS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}


@rule(
    "CP502",
    "error",
    "A task that is sent before its transaction is committed",
    "A worker may run it before the row is there, and runs it also when the transaction is rolled back.",
    upstream="celery/celery#8491",
)
def sends_in_transaction(case: Case) -> Iterator[Sign]:
    """``.delay()`` within ``transaction.atomic()`` or a session's ``begin()``, or between its ``add()`` and ``commit()``."""
    for module in case.source:
        if not any(word in module.text for word in ("atomic", "begin", "commit")):
            continue
        writes = _writes(module)
        for call in module.calls:
            where = "within a transaction" if _in_transaction(module, call) else _before_commit(module, call, writes)
            if where is None or module.is_excused(call, "CP502"):
                continue
            one = sends(case, module, call)
            if (one and not _waits_itself(case, module, call)) or is_canvas_sent(module, call):
                yield Sign(
                    module.place(call),
                    f"{f'.{called(call)}()' if one else 'a canvas is sent'} {where}",
                    "Send it once that is committed: behind the block or the commit(), or in Django by "
                    "transaction.on_commit(lambda: task.delay(…)).",
                )


@rule(
    "CP503",
    "hint",
    "A task that is called and not sent",
    "Its body runs here and now, in the caller: no worker, no retries, no limits.",
    upstream="praekeltfoundation/vumi-go#59",
)
def called_directly(case: Case) -> Iterator[Sign]:
    """A statement that calls a task as a function, and uses nothing of what it returns."""
    for module in case.source:
        if "management/commands/" in module.path.replace("\\", "/"):
            continue  # a command is typed to run it here and now
        for call in module.calls:
            if not isinstance(module.parents.get(call), ast.Expr):
                continue
            name = task_name(case, module, call.func)
            if name is not None and not _is_meant(module, call, name) and not module.is_excused(call, "CP503"):
                said = f"{ast.unparse(call.func)}.delay(…)"
                yield Sign(module.place(call), f"{name}(…) is called like a function", f"Write {said}.")


@rule(
    "CP512",
    "error",
    "A countdown longer than the visibility timeout",
    "Redis gives the waiting message out again at each timeout: the task runs once for each.",
    upstream="celery/kombu#337",
)
def waits_too_long(case: Case) -> Iterator[Sign]:
    """A ``countdown=`` or an ``eta=`` whose length is written in numbers."""
    timeout = case.visibility_timeout
    if timeout is None:
        return
    for module in case.source:
        for call in module.calls:
            if called(call) not in _WAIT or not isinstance(call.func, ast.Attribute):
                continue
            if not _is_told_to_wait(case, module, call):
                continue  # somebody else's
            word, wait = _wait(module, call)
            if wait is not None and wait >= timeout and not module.is_excused(call, "CP512"):
                yield Sign(
                    module.place(call),
                    f".{called(call)}({word}=…) waits for {seconds(wait)}, and {case.visibility_line}",
                    case.longer_visibility(wait) + " Or keep the moment in your database, and let beat look.",
                )


def _waits_itself(case: Case, module: Module, call: ast.Call) -> bool:
    """Whether the task's class sends in a way of its own, for instance once a transaction is committed."""
    assert isinstance(call.func, ast.Attribute)
    facts = case.by_name.get(task_name(case, module, call.func.value) or "")
    if facts is None:
        return False
    ways = (getattr(type(facts.task), name, None) for name in ("delay", "apply_async"))
    return any(not str(getattr(way, "__module__", "")).startswith(("celery.", "celery_patterns.")) for way in ways)


def _is_meant(module: Module, call: ast.Call, name: str) -> bool:
    """A task that calls itself, and a script that runs it."""
    for around in module.around(call):
        if isinstance(around, Function) and module.task_names.get(around.name) == name:
            return True
        if isinstance(around, ast.If) and "__main__" in ast.dump(around.test):
            return True
    return False


def _in_transaction(module: Module, call: ast.Call) -> bool:
    for node in module.around(call):
        if isinstance(node, ast.With | ast.AsyncWith) and any(_begins(item.context_expr) for item in node.items):
            return True
        if isinstance(node, ast.Lambda):
            return False  # called later: on_commit(lambda: …)
        if isinstance(node, Function):
            parts = (part for decorator in node.decorator_list for part in ast.walk(decorator))
            return any(isinstance(part, ast.Attribute | ast.Name) and called(part) == "atomic" for part in parts)
    return False


def _writes(module: Module) -> dict[ast.AST | None, list[ast.Call]]:
    """What each function does to a session, in the order of the lines."""
    found: dict[ast.AST | None, list[ast.Call]] = {}
    for call in module.calls:
        if called(call) in (*_ADDS, "commit") and _session(call).rpartition(".")[2].lower().endswith(("session", "db")):
            found.setdefault(_function_of(module, call), []).append(call)
    return {function: sorted(calls, key=lambda one: one.lineno) for function, calls in found.items()}


def _session(call: ast.Call) -> str:
    return ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""


def _before_commit(module: Module, call: ast.Call, writes: dict[ast.AST | None, list[ast.Call]]) -> str | None:
    """Between what is written and the commit of the same session, where all three are passed."""
    function = _function_of(module, call)
    here = [] if function is None else writes.get(function, [])
    before = [one for one in here if one.lineno < call.lineno and is_passed(module, one, call)]
    if not before or called(before[-1]) == "commit":
        return None
    session, inside = _session(before[-1]), {*module.around(call)}
    for one in here:
        is_later = one.lineno > call.lineno and (called(one), _session(one)) == ("commit", session)
        if is_later and module.parents.get(module.parents[one]) in inside:
            return f"between {session}.{called(before[-1])}() and {session}.commit()"
    return None


def _function_of(module: Module, node: ast.AST) -> ast.AST | None:
    return next((one for one in module.around(node) if isinstance(one, Function | ast.Lambda)), None)


def _begins(node: ast.expr) -> bool:
    if not isinstance(node, ast.Call):
        return False
    if called(node) == "atomic":
        return True
    owner = called(node.func.value).lower() if isinstance(node.func, ast.Attribute) else ""
    # A tracer's begin("span") begins something else, and so does an animation's.
    return called(node) in _TRANSACTIONS and not node.args and any(word in owner for word in _DATABASES)


def _is_told_to_wait(case: Case, module: Module, call: ast.Call) -> bool:
    assert isinstance(call.func, ast.Attribute)
    owner = call.func.value
    if called(call) == "set":
        return called(owner) in ("s", "si", "signature")
    if called(call) == "apply_async":
        return sends(case, module, call)
    return is_task_itself(module, owner) or task_name(case, module, owner) is not None


def _wait(module: Module, call: ast.Call) -> tuple[str, float | None]:
    """Which word says how long it waits, and the seconds."""
    for word in call.keywords:
        if word.arg == "countdown":
            return "countdown", _number(module, word.value, call)
        made = made_by(module, word.value, call) if word.arg == "eta" else None
        if isinstance(made, ast.BinOp) and isinstance(made.op, ast.Add):
            for now, span in ((made.left, made.right), (made.right, made.left)):
                moment = made_by(module, now, made)
                if isinstance(moment, ast.Call) and called(moment) in ("now", "utcnow"):
                    return "eta", _span(module, span, made)
    return "", None


def _span(module: Module, node: ast.expr, at: ast.AST) -> float | None:
    """The seconds of a timedelta whose parts are written."""
    made = made_by(module, node, at)
    if not isinstance(made, ast.Call) or called(made) != "timedelta":
        return None
    names = ("days", "seconds", "microseconds", "milliseconds", "minutes", "hours", "weeks")
    said = {**dict(zip(names, made.args, strict=False)), **{word.arg: word.value for word in made.keywords if word.arg}}
    parts = {name: _number(module, value, made) for name, value in said.items()}
    known = {name: value for name, value in parts.items() if value is not None and name in names}
    try:
        return timedelta(**known).total_seconds() if len(known) == len(parts) else None
    except (OverflowError, ValueError):
        return None


def _number(module: Module, node: ast.expr, at: ast.AST) -> float | None:
    """The number that is written, ``24 * 60 * 60`` and a variable of it among them."""
    made = made_by(module, node, at)
    if isinstance(made, ast.Constant) and isinstance(made.value, int | float):
        return float(made.value) if abs(made.value) < _LONGEST else None
    if not isinstance(made, ast.BinOp) or type(made.op) not in _SUMS:
        return None
    left, right = _number(module, made.left, made), _number(module, made.right, made)
    return None if left is None or right is None else _SUMS[type(made.op)](left, right)


RULES: tuple[Rule, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
