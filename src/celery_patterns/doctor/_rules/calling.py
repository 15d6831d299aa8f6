"""CP503 and CP518: what was meant to be sent and is not, as it is written. The source is parsed, and never imported."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from celery.app.task import Task

from .._bindings import is_passed, nodes_of
from .._finding import Rule, Sign, rule
from .._module import Function, Module, asks_for_main, called
from .._values import SENDS, SIGNATURES, is_canvas, made_by, task_name

if TYPE_CHECKING:
    from .._case import Case

#: Where the methods of a task are defined, when the user has written none.
_OURS = ("celery.", "celery_patterns.")
#: What makes a function a command: click's and typer's.
_TYPED = frozenset({"command", "callback"})
#: What a script calls that which it was told on its command line.
_FROM_COMMAND_LINE = frozenset({"argv", "args", "options", "opts", "parse_args"})
_PLAIN = (ast.Constant, ast.JoinedStr, ast.BinOp, ast.Compare, ast.Dict, ast.List, ast.Tuple)
#: What only a result that was sent for has: a dict has a ``get(key)``.
_OF_RESULTS = frozenset({"get", "wait", "ready", "successful", "failed"})


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
        elif asks_for_main(around):
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
    return module.function_of(send) is module.function_of(call) and not both


RULES: tuple[Rule, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
