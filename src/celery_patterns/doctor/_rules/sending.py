"""CP50 and CP51: how tasks are sent, as it is written. The source is parsed, and never imported."""

from __future__ import annotations

import ast
import bisect
import itertools
import operator
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from celery.app.task import Task

from .._bindings import is_passed, nodes_of
from .._finding import Rule, Sign, rule
from .._module import Function, Module, called
from .._tasks import seconds
from .._values import SENDS, SIGNATURES, is_canvas, is_canvas_sent, is_task_itself, made_by, sends, task_name

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
#: What makes a function a command: click's and typer's.
_TYPED = frozenset({"command", "callback"})
#: What a script calls that which it was told on its command line.
_FROM_COMMAND_LINE = frozenset({"argv", "args", "options", "opts", "parse_args"})
_PLAIN = (ast.Constant, ast.JoinedStr, ast.BinOp, ast.Compare, ast.Dict, ast.List, ast.Tuple)
#: What only a result that was sent for has: a dict has a ``get(key)``.
_OF_RESULTS = frozenset({"get", "wait", "ready", "successful", "failed"})
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
    "CP503",
    "warning",
    "A task that is called and not sent",
    "Its body runs here and now, as a part of the caller: no message, no retries, no key, no limits of its own.",
    upstream="praekeltfoundation/vumi-go#59",
)
def called_directly(case: Case) -> Iterator[Sign]:
    """A statement that calls a task as a function, and uses nothing of what it returns, or takes that for a result."""
    for module in case.source:
        if "management/commands/" in module.path.replace("\\", "/"):
            continue  # a command is typed to run it here and now
        waited_for = {*_waited_for(case, module)}
        for call in module.calls:
            if not isinstance(module.parents.get(call), ast.Expr) and call not in waited_for:
                continue
            name = task_name(case, module, call.func)
            if name is None or _calls_something_else(case, name):
                continue
            is_meant = _is_one_of_two_ways(case, module, call, name) or (
                call not in waited_for and _is_meant(module, call, name)
            )
            if not is_meant and not module.is_excused(call, "CP503"):
                said = f"{ast.unparse(call.func)}.delay(…)"
                yield Sign(module.place(call), f"{name}(…) is called like a function", f"Write {said}.")


@rule(
    "CP518",
    "error",
    "A message that is made, and not sent",
    "The statement does nothing: no worker hears of it.",
    upstream="celery/celery#10258",
)
def made_and_dropped(case: Case) -> Iterator[Sign]:
    """A statement that is a signature or a canvas, or names ``.delay`` without calling it."""
    for module in case.source:
        for statement in module.parents:
            if isinstance(statement, ast.Expr):
                said = _dropped(case, module, statement)
                if said is not None and not module.is_excused(statement, "CP518"):
                    what, cure = said
                    yield Sign(module.place(statement), what, cure)


def _dropped(case: Case, module: Module, statement: ast.Expr) -> tuple[str, str] | None:
    """What a statement makes and drops, and what to do; None where it is nothing of the kind."""
    node = statement.value
    if isinstance(node, ast.Attribute) and node.attr in SENDS and not isinstance(module.parents[statement], ast.Try):
        if task_name(case, module, node.value):
            return f".{node.attr} is named, and not called", f"Write {ast.unparse(node)}(…)."
    elif isinstance(node, ast.BinOp) and is_canvas(module, node) and _tasks_in(case, module, node):
        return "a canvas is made, and not sent", "Write .delay() behind it, with all of it in parentheses before."
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and called(node) in SIGNATURES:
        if task_name(case, module, node.func.value):
            way = "delay" if called(node) in ("s", "si") else "apply_async"
            return f".{called(node)}(…) makes a signature", f"Write {ast.unparse(node.func.value)}.{way}(…)."
    elif isinstance(node, ast.Call) and is_canvas(module, node):
        if called(node) == "chord" and len(node.args) + len(node.keywords) == 1:
            return "a chord is made, and not sent", "Write its body behind it: chord(…)(body)."
        return "a canvas is made, and not sent", "Write .delay() behind it."
    return None


def _tasks_in(case: Case, module: Module, node: ast.expr) -> list[ast.AST]:
    """Where known tasks are named."""
    names = (one for one in ast.walk(node) if isinstance(one, ast.Name | ast.Attribute))
    return [one for one in names if task_name(case, module, one)]


@rule(
    "CP514",
    "error",
    "A script whose tasks have other names than the worker's",
    "The worker does not know the task, and throws it away.",
    upstream="celery/celery#3989",
)
def sends_as_main(case: Case) -> Iterator[Sign]:
    """A task of the same file is sent under ``__main__``, where Celery names it after the app and not after the file."""
    for module in case.source:
        for call in module.calls:
            if not _is_under_main(module, call) or not sends(case, module, call):
                continue
            owner = call.func.value if isinstance(call.func, ast.Attribute) else None
            function = owner.id if isinstance(owner, ast.Name) and owner.id in module.task_names else ""
            known = module.task_names.get(function, "")
            app = "__main__" if _is_called_as_its_file(module) else case.app.main or "__main__"
            sent = f"{app}.{function}"
            if known != f"{module.name}.{function}" or known not in case.by_name or sent in case.by_name:
                continue  # named by hand, another app's, or known by both names
            if not module.is_excused(call, "CP514"):
                yield Sign(
                    module.place(call),
                    f"run as a script, it sends {sent}, and the worker knows {known}",
                    f'Write Celery("{module.name}"), or name={known!r} at the task; or send it from another file.',
                )


def _is_called_as_its_file(module: Module) -> bool:
    """Whether it makes its app by ``Celery(__name__)``, which is another name in a script."""
    made = (call.args[0] for call in module.calls if called(call) == "Celery" and call.args)
    return any(isinstance(one, ast.Name) and one.id == "__name__" for one in made)


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
    "CP521",
    "error",
    "A guard that is never true",
    "A script that is run is called __main__: what stands there never happens.",
    upstream="internetarchive/openlibrary-client#232",
)
def never_main(case: Case) -> Iterator[Sign]:
    """``if __name__ == "main":``, around what sends or calls a task."""
    for module in case.source:
        for node in module.parents:
            if not isinstance(node, ast.If) or _asks_for_main(node) or module.parents[node] is not module.tree:
                continue
            said = _name_asked(node.test)
            if said.strip("_ ").lower() == "main" and not module.is_excused(node, "CP521"):
                yield Sign(module.place(node), f'__name__ is never "{said}"', 'Write if __name__ == "__main__":')


def _name_asked(test: ast.expr) -> str:
    """``x`` of ``__name__ == "x"``."""
    match test:
        case ast.Compare(left=ast.Name(id="__name__"), ops=[ast.Eq()], comparators=[ast.Constant(value=str(said))]):
            return said
    return ""


@rule(
    "CP522",
    "warning",
    "A task that each import sends",
    "Each process that imports the file sends it: a worker, too, whenever it starts.",
    upstream="celery/celery#1018",
)
def sends_at_import(case: Case) -> Iterator[Sign]:
    """``.delay()`` at the top of a file that was imported, on no condition."""
    for module in case.source:
        for call in module.calls if module.is_loaded else ():
            if not sends(case, module, call) and not is_canvas_sent(module, call):
                continue
            around = (
                isinstance(one, Function | ast.Lambda | ast.If | ast.IfExp | ast.Try) for one in module.around(call)
            )
            if not any(around) and not module.is_excused(call, "CP522"):
                yield Sign(
                    module.place(call),
                    f".{called(call)}() stands where the file is imported",
                    'Put it under if __name__ == "__main__":, or into a function.',
                )


def _is_under_main(module: Module, call: ast.Call) -> bool:
    around = [*module.around(call)]
    return any(map(_asks_for_main, around)) and not any(isinstance(one, Function) for one in around)


def _asks_for_main(node: ast.AST) -> bool:
    """Whether it is ``if __name__ == "__main__":``."""
    return isinstance(node, ast.If) and "__main__" in ast.dump(node.test)


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


def _calls_something_else(case: Case, name: str) -> bool:
    """Whether under the task's name stands what a decorator made of it, or another function; or it sends when called."""
    facts = case.by_name.get(name)
    if facts is None:
        return False
    task = facts.task
    there = getattr(sys.modules.get(task.__module__), task.__name__, task)
    return not isinstance(there, Task) or not str(type(task).__call__.__module__).startswith(_OURS)


def _waited_for(case: Case, module: Module) -> Iterator[ast.expr]:
    """What somebody waits for, as for a task that was sent: ``result = charge(…)``, and then ``result.get()``.

    A body may give what can be waited for, so that its source is asked, too.
    """
    for call in module.calls:
        if not isinstance(call.func, ast.Attribute) or call.func.attr not in _OF_RESULTS or call.args:
            continue
        made = made_by(module, call.func.value, call)
        if not isinstance(made, ast.Call) or any(word.arg not in ("timeout", "propagate") for word in call.keywords):
            continue
        name = task_name(case, module, made.func)
        in_task = any(one in module.bodies for one in module.around(call))
        if name is not None and not in_task and _gives_plain(case, name):
            yield made


def _gives_plain(case: Case, name: str) -> bool:
    """Whether all that a task returns is written there, as a text or a number."""
    for function in (task.function for module in case.source for task in module.tasks if task.name == name):
        given = [one.value for one in nodes_of(function) if isinstance(one, ast.Return) and one.value is not None]
        return all(isinstance(one, _PLAIN) for one in given)
    return False


def _is_meant(module: Module, call: ast.Call, name: str) -> bool:
    """In the task itself, and in what is typed to do it here and now."""
    for around in module.around(call):
        if isinstance(around, Function):
            if module.task_names.get(around.name) == name or any(
                called(one) in _TYPED for one in around.decorator_list
            ):
                return True
        elif _asks_for_main(around):
            told = {getattr(one, "attr", getattr(one, "id", "")) for one in ast.walk(call)}
            if not (call.args or call.keywords) or not _FROM_COMMAND_LINE.isdisjoint(told):
                return True
    return False


def _is_one_of_two_ways(case: Case, module: Module, call: ast.Call, name: str) -> bool:
    """Whether a task is called in one branch of a function, and sent in another."""
    return any(_is_other_way(case, module, one, call, name) for one in module.calls if called(one) in SENDS)


def _is_other_way(case: Case, module: Module, send: ast.Call, call: ast.Call, name: str) -> bool:
    if not isinstance(send.func, ast.Attribute) or task_name(case, module, send.func.value) != name:
        return False
    both = is_passed(module, send, call) and is_passed(module, call, send)
    return _function_of(module, send) is _function_of(module, call) and not both


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
    function = _function_of(module, call)
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
