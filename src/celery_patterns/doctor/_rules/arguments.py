"""CP507, CP509, CP524 and CP529: what tasks are sent with, as it is written. The source is parsed, and never imported."""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, get_type_hints
from uuid import UUID

from celery.app.task import Task

from ..._republish import STRICT
from ..._task import PatternTask
from .._bindings import nodes_of, scope_of
from .._finding import Rule, Sign, rule
from .._module import Function, Module, called
from .._rows import is_query, is_row
from .._values import ERROR, arguments_of, is_rebound, made_by, task_name

if TYPE_CHECKING:
    from .._case import Case
    from .._tasks import TaskFacts

_UNSENDABLE: dict[type[ast.expr], str] = {
    ast.Set: "a set",
    ast.SetComp: "a set",
    ast.Lambda: "a lambda",
    ast.GeneratorExp: "a generator",
}
#: Methods by which kombu, or a class of one's own, makes something of an object that JSON carries.
_CARRIES = frozenset({"__json__", "__new__"})
_MADE = {
    "set": "a set",
    "frozenset": "a set",
    "object": "an object",
    "open": "a file",
    "Path": "a path",
    "timedelta": "a timedelta",
    "Exception": "an exception",
    **{
        name: f"a {name} object"
        for name in ("range", "map", "filter", "zip", "iter", "reversed", "complex", "bytearray")
    },
}
#: What a call may give for an annotation; a whole number is as good a Decimal.
_TAKES: dict[Any, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    float: (int, float),
    bool: (bool,),
    Decimal: (int,),
    **dict.fromkeys((date, datetime, timedelta, UUID), ()),
}
_ARTICLES = {str: "a str", int: "an int", float: "a float", bool: "a bool"}


@rule(
    "CP507",
    "error",
    "A model's row as an argument",
    "JSON cannot carry it, so .delay() raises; with pickle the task works on the row as it was, and writes that back.",
    upstream="mozilla/experimenter#1631",
)
def sends_model(case: Case) -> Iterator[Sign]:
    """What was read from the database is sent as it is."""
    for module, call, argument, facts in _sent(case):
        if _is_json(case, call, facts) and is_row(module, argument, call) and not module.is_excused(call, "CP507"):
            said = ast.unparse(argument)
            if is_query(module, argument, call):
                what, cure = "rows of the database", "Send their keys, in a list, and read the rows in the task."
            else:
                key = f", {said}.pk," if isinstance(argument, ast.Name | ast.Attribute) else ""
                what, cure = "a row of the database", f"Send its key{key} and read the row in the task."
            yield Sign(module.place(call), f".{called(call)}() is given {said}, {what}", cure)


@rule(
    "CP509",
    "error",
    "A value that cannot be sent",
    "JSON cannot carry it: sending it raises, and nothing is sent.",
    upstream="miguelgrinberg/flask-celery-example#14",
)
def sends_unsendable(case: Case) -> Iterator[Sign]:
    """A set, a function, a file and their like among the arguments."""
    for module, call, argument, facts in _sent(case):
        if not _is_json(case, call, facts) or _stays_here(module, call):
            continue
        made = made_by(module, argument, call)
        kind = None if made is None else _kind_of(case, module, made)
        if isinstance(argument, ast.Name) and _is_function(case, module, argument, call):
            kind = "a function"
        if kind is not None and not module.is_excused(call, "CP509"):
            yield Sign(
                module.place(call),
                f".{called(call)}() is given {ast.unparse(argument)}, {kind}",
                "Send a list, a dict, a number or a text.",
            )


@rule(
    "CP524",
    "error",
    "A result that cannot be stored",
    "JSON cannot carry it: the body is done, and the task fails.",
    upstream="inyokaproject/inyoka#871",
)
def returns_unsendable(case: Case) -> Iterator[Sign]:
    """A task whose result is kept returns a set, an object, a file and their like."""
    if not case.keeps_results or case.conf.result_serializer != "json":
        return
    for module in case.source:
        for task in module.tasks:
            facts = case.by_name.get(task.name)
            if facts is None or facts.task.ignore_result or facts.is_called_otherwise:
                continue
            for node in nodes_of(task.function) if not getattr(facts.task, "pydantic", False) else ():
                made = made_by(module, node.value, node) if isinstance(node, ast.Return) and node.value else None
                kind = None if made is None else _kind_of(case, module, made)
                if kind is not None and not module.is_excused(node, "CP524"):
                    cure = "Raise it." if kind == "an exception" else "Return a list, a dict, a number or a text."
                    yield Sign(module.place(node), f"{task.name} returns {kind}", cure)


@rule(
    "CP529",
    "warning",
    "An argument of another type than is written",
    "It arrives as it was sent: nothing makes of it what the function's annotation says.",
    upstream="WikiWatershed/model-my-watershed#1303",
)
def sends_another_type(case: Case) -> Iterator[Sign]:
    """``.delay(9.90)`` where the function is annotated with Decimal; and what else is a number or a text in the call."""
    for module in case.source:
        for call in module.calls:
            name = task_name(case, module, call.func.value) if isinstance(call.func, ast.Attribute) else None
            facts = case.by_name.get(name or "") if called(call) == "delay" else None
            if facts is None or not _is_sent_as_given(module, call, facts):
                continue
            for parameter, value, wanted in _misfits(facts, call):
                if not module.is_excused(call, "CP529"):
                    yield Sign(
                        module.place(call),
                        f".delay() is given {value!r}, {_ARTICLES[type(value)]}, as {parameter}, which is annotated with "
                        f"{wanted.__name__}",
                        "Send what the function is written for, or correct its annotation.",
                    )


def _is_sent_as_given(module: Module, call: ast.Call, facts: TaskFacts) -> bool:
    """Whether the call is the task's own, and nothing of the user's stands between its arguments and the function."""
    owner = call.func.value if isinstance(call.func, ast.Attribute) else call
    there = module.stands(owner.id) if isinstance(owner, ast.Name) else None
    kind = type(facts.task)
    is_celerys = kind.delay is Task.delay and kind.apply_async in (Task.apply_async, PatternTask.apply_async)
    is_itself = getattr(there, "name", None) == facts.name and isinstance(there, Task)
    converts = facts.is_called_otherwise or getattr(facts.task, "pydantic", False)
    return is_celerys and is_itself and not converts and not is_rebound(module, getattr(owner, "id", ""), call)


def _misfits(facts: TaskFacts, call: ast.Call) -> Iterator[tuple[str, Any, type]]:
    """The parameters that a call gives a number or a text of another type than theirs, and which type that is."""
    parameters = list(inspect.signature(facts.body).parameters.values())[facts.takes_itself :]
    listed = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    given = dict(zip((one.name for one in listed), call.args, strict=False))
    if any(isinstance(one, ast.Starred) for one in call.args):
        given = {}
    named = {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    given |= {word.arg: word.value for word in call.keywords if word.arg in named}
    try:
        annotated: dict[str, Any] = get_type_hints(facts.body)
    except Exception:  # noqa: BLE001 - annotations are the user's own code, and may name what is imported for types only
        return
    for name, node in given.items():
        wanted: Any = annotated.get(name)
        value = node.value if isinstance(node, ast.Constant) else None
        if (
            isinstance(wanted, type)
            and wanted in _TAKES
            and type(value) in _ARTICLES
            and not isinstance(value, _TAKES[wanted])
        ):
            yield name, value, wanted


def _sent(case: Case) -> Iterator[tuple[Module, ast.Call, ast.expr, TaskFacts | None]]:
    """Each argument with which a known task is sent."""
    for module in case.source:
        for call in module.calls:
            arguments = arguments_of(call) if isinstance(call.func, ast.Attribute) else []
            name = task_name(case, module, call.func.value) if arguments else None  # type: ignore[attr-defined]
            if name is not None:
                yield from ((module, call, argument, case.by_name.get(name)) for argument in arguments)


def _is_json(case: Case, call: ast.Call, facts: TaskFacts | None) -> bool:
    """Whether the call's message is written in JSON; a serializer of somebody's own may carry more."""
    said = [word.value for word in call.keywords if word.arg == "serializer"]
    own = case.conf.task_serializer if facts is None else facts.task.serializer
    name = getattr(said[0], "value", None) if said else own
    return name in ("json", STRICT)


def _stays_here(module: Module, call: ast.Call) -> bool:
    """Whether a signature is called and not sent, or is told another serializer later."""
    node: ast.AST = call
    while isinstance(around := module.parents.get(node), ast.Attribute | ast.Call):
        if isinstance(around, ast.Call) and around.func is node:
            told = any(word.arg == "serializer" for word in around.keywords)
            if told or called(around) == "apply" or node is call:
                return True
        elif isinstance(around, ast.Call):
            return False  # it is an argument
        node = around
    return False


def _kind_of(case: Case, module: Module, made: ast.expr) -> str | None:
    kind = _unsendable(module, made)
    if kind != "an exception":
        return kind or _own_object(case, module, made)
    methods = (one.name for node in module.classes.values() for one in node.body if isinstance(one, Function))
    return None if case.teaches or _CARRIES & {*methods} else kind


def _unsendable(module: Module, node: ast.expr) -> str | None:
    if isinstance(node, ast.Call):
        made = getattr(builtins, called(node), None)
        is_error = isinstance(made, type) and issubclass(made, BaseException)
        kind = "an exception" if is_error else _MADE.get(called(node))
        return kind if node is ERROR or _is_builtin(module, node) else None
    if isinstance(node, ast.Dict) and None in node.keys:
        return None  # {**others}: they may replace it
    if isinstance(node, ast.Dict) and any(isinstance(key, ast.Tuple) for key in node.keys):
        return "a dict whose key is a tuple"
    inside = node.values if isinstance(node, ast.Dict) else node.elts if isinstance(node, ast.List | ast.Tuple) else []
    return _UNSENDABLE.get(type(node)) or next((kind for one in inside if (kind := _unsendable(module, one))), None)


def _is_builtin(module: Module, node: ast.Call) -> bool:
    """Whether it calls Python's own, and nothing that the module or somebody else calls so."""
    name = called(node)
    if isinstance(node.func, ast.Attribute):
        return module.whole_name(node.func) in ("datetime.timedelta", "pathlib.Path")
    if not isinstance(node.func, ast.Name) or is_rebound(module, name, node):
        return False
    imported, there = module.imported.get(name), module.stands(name)
    if there is not None and there is not getattr(builtins, name, there):
        return False  # as a star has brought it
    if name in ("timedelta", "Path"):
        return imported in (None, "datetime.timedelta", "pathlib.Path") and name not in module.classes
    return imported is None and name not in scope_of(module, module.tree).bindings


def _is_function(case: Case, module: Module, argument: ast.Name, at: ast.AST) -> bool:
    return (
        argument.id in module.functions
        and not is_rebound(module, argument.id, at)
        and task_name(case, module, argument) is None
    )


def _own_object(case: Case, module: Module, node: ast.expr) -> str | None:
    """An object of a class that is written in the same file, and of nothing that JSON knows."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return None
    one = module.classes.get(node.func.id)
    if one is None or case.teaches or is_rebound(module, one.name, node):
        return None
    if one.keywords or not all(called(base) in ("object", "BaseModel") for base in one.bases):
        return None
    methods = {part.name for part in one.body if isinstance(part, Function)}
    return None if methods & _CARRIES else f"an object of {one.name}"


RULES: tuple[Rule, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
