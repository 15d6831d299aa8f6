"""CP502, CP512 and CP520: how tasks are sent, as it is written. The source is parsed, and never imported."""

from __future__ import annotations

import ast
import bisect
import itertools
import operator
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from .._bindings import is_passed, nodes_of
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
_ADDS = frozenset({"add", "add_all"})
#: What ends its transaction, whoever is told.
_ENDS = frozenset({"commit", "rollback", "close"})
#: Where the methods of a task are defined, when the user has written none.
_OURS = ("celery.", "celery_patterns.")
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
        steps: dict[ast.AST, list[ast.AST]] = {}
        for call in module.calls:
            one = sends(case, module, call)
            if not (one and not _waits_itself(case, module, call)) and not is_canvas_sent(module, call):
                continue
            where = "within a transaction" if _in_transaction(module, call) else _before_commit(module, call, steps)
            if where is not None and not module.is_excused(call, "CP502"):
                yield Sign(
                    module.place(call),
                    f"{f'.{called(call)}()' if one else 'a canvas is sent'} {where}",
                    "Send it once that is committed: behind the block or the commit(), or in Django by "
                    "transaction.on_commit(lambda: task.delay(…)).",
                )


@rule(
    "CP520",
    "warning",
    "A name that is sent, and that no task has",
    "The worker throws the message away.",
    upstream="celery/celery#3446",
)
def sends_unknown(case: Case) -> Iterator[Sign]:
    """``send_task("…")`` with almost the name of one of the app's tasks, or with its last part."""
    for module in case.source:
        for call in module.calls:
            name = getattr(call.args[0], "value", None) if called(call) == "send_task" and call.args else None
            if not isinstance(name, str) or name in case.app.tasks or not sends(case, module, call):
                continue
            meant = case.alike(name)
            if meant is not None and not module.is_excused(call, "CP520"):
                cure = f"Write {meant!r}, if that was meant. Ignore this where it is another service's task."
                yield Sign(module.place(call), f"{name!r} is sent, and the app has no such task", cure)


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
    return any(not str(getattr(way, "__module__", "")).startswith(_OURS) for way in ways)


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


def _before_commit(module: Module, call: ast.Call, steps: dict[ast.AST, list[ast.AST]]) -> str | None:
    """Between a session's ``add(row)`` and its ``commit()``, with something of that row, if each way goes through all."""
    function = module.function_of(call)
    if not isinstance(function, Function):
        return None
    if function not in steps:
        steps[function] = sorted((one for one in nodes_of(function) if _is_step(one)), key=_position)
    here = bisect.bisect(steps[function], _position(call), key=_position)
    before = [one for one in steps[function][:here] if isinstance(one, ast.Call)]
    after = next((one for one in steps[function][here:] if not isinstance(one, ast.Call) or called(one) in _ENDS), None)
    if not isinstance(after, ast.Call) or called(after) != "commit" or not _is_behind(module, after, call):
        return None
    for add in itertools.takewhile(lambda one: called(one) not in _ENDS, reversed(before)):
        if _session(add) == _session(after) and _is_about(module, call, add) and is_passed(module, add, call):
            return f"between {_session(add)}.{called(add)}() and {_session(add)}.commit()"
    return None


def _is_behind(module: Module, commit: ast.Call, call: ast.Call) -> bool:
    """Whether a commit stands in no branch that the call is not in, too."""
    block = module.parents.get(module.parents[commit])
    return any(one is block for one in module.around(call))


def _is_step(node: ast.AST) -> bool:
    """What matters to a transaction, and what leaves before its end."""
    if isinstance(node, ast.Call):
        return called(node) in _ENDS or (called(node) in _ADDS and bool(_session(node)))
    return isinstance(node, ast.Return | ast.Raise)


def _is_about(module: Module, call: ast.Call, add: ast.Call) -> bool:
    """Whether a task is sent with something of the row that is added."""
    rows = {one.id for row in add.args for one in ast.walk(row) if isinstance(one, ast.Name)}
    given = [one for part in (*call.args, *call.keywords) for one in ast.walk(part) if isinstance(one, ast.Name)]
    made = [made_by(module, one, call) for one in given]
    of = [one for found in made if isinstance(found, ast.Attribute) for one in ast.walk(found)]
    return any(one.id in rows for one in (*given, *of) if isinstance(one, ast.Name))


def _position(node: ast.AST) -> tuple[int, int]:
    return getattr(node, "lineno", 0), getattr(node, "col_offset", 0)


def _session(call: ast.Call) -> str:
    """The session that is told something: ``session``, ``db.session``; nothing where it is something else."""
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    if isinstance(owner, ast.Name) or (isinstance(owner, ast.Attribute) and isinstance(owner.value, ast.Name)):
        return ast.unparse(owner) if called(owner).lower().endswith("session") else ""
    return ""


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
