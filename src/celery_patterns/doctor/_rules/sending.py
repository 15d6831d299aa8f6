"""CP50 and CP51: how tasks are sent and their results read, as it is written. The source is parsed, and never imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .._finding import Rule, Sign, rule
from .._module import Function, Module, called
from .._tasks import seconds
from .._values import SENDS, arguments_of, is_canvas_called, is_model, is_rebound, is_result, made_by

if TYPE_CHECKING:
    from .._case import Case
    from .._tasks import TaskFacts

#: What is read of a result without a call.
_SHOWS = frozenset({"state", "status", "result", "info", "traceback"})
_READS = frozenset({"get", "wait", "join", "join_native", "get_leaf", "collect", "ready", "successful", "failed"})
#: Where a transaction begins: Django's, SQLAlchemy's.
_TRANSACTIONS = frozenset({"begin", "begin_nested"})
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
}


@rule(
    "CP502",
    "error",
    "A task that is sent before its transaction is committed",
    "A worker may run it before the row is there, and runs it also when the transaction is rolled back.",
    upstream="celery/celery#8491",
)
def sends_in_transaction(case: Case) -> Iterator[Sign]:
    """``.delay()`` within ``transaction.atomic()`` or a session's ``begin()``."""
    for module in case.source:
        for call in module.calls:
            sends = called(call) in SENDS and isinstance(call.func, ast.Attribute)
            if (
                (sends or is_canvas_called(call))
                and _in_transaction(module, call)
                and not module.is_excused(call, "CP502")
            ):
                yield Sign(
                    module.place(call),
                    f"{'a canvas is sent' if not sends else f'.{called(call)}()'} within a transaction",
                    "Send it once that is committed: transaction.on_commit(lambda: task.delay(…)), or behind the block.",
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
        for call in module.calls:
            if not isinstance(module.parents.get(call), ast.Expr):
                continue
            name = _task_name(case, module, call.func)
            if name is not None and not module.is_excused(call, "CP503"):
                said = f"{ast.unparse(call.func)}.delay(…)"
                yield Sign(module.place(call), f"{name}(…) is called like a function", f"Write {said}.")


@rule(
    "CP507",
    "error",
    "A model's row as an argument",
    "JSON cannot carry it, so .delay() raises; with pickle the task works on the row as it was, and writes that back.",
    upstream="mozilla/experimenter#1631",
)
def sends_model(case: Case) -> Iterator[Sign]:
    """What was read from the database is sent as it is."""
    for module, call, argument, _ in _sent(case):
        if is_model(module, argument, call) and not module.is_excused(call, "CP507"):
            said = ast.unparse(argument)
            key = f", {said}.pk," if isinstance(argument, ast.Name | ast.Attribute) else ""
            yield Sign(
                module.place(call),
                f".{called(call)}() is given {said}, a row of the database",
                f"Send its key{key} and read the row in the task.",
            )


@rule(
    "CP509",
    "error",
    "A value that cannot be sent",
    "JSON cannot carry it: .delay() raises, and nothing is sent.",
    upstream="miguelgrinberg/flask-celery-example#14",
)
def sends_unsendable(case: Case) -> Iterator[Sign]:
    """A set, a function, a file and their like among the arguments."""
    for module, call, argument, facts in _sent(case):
        made = made_by(module, argument, call)
        pickled = facts is not None and facts.task.serializer == "pickle"
        kind = None if pickled or made is None else _unsendable(made) or _own_object(case, module, made)
        if kind is not None and not module.is_excused(call, "CP509"):
            yield Sign(
                module.place(call),
                f".{called(call)}() is given {ast.unparse(argument)}, {kind}",
                "Send a list, a dict, a number or a text.",
            )


@rule(
    "CP510",
    "error",
    "Results that are read, and kept nowhere",
    "Reading one raises: there is no result backend.",
    upstream="celery/celery#7340",
)
def reads_nothing(case: Case) -> Iterator[Sign]:
    """A result is read, and ``result_backend`` is not set."""
    if case.keeps_results:
        return
    for module, place, read in _reads(case):
        if not module.is_excused(place, "CP510"):
            yield Sign(
                module.place(place),
                f"a result is read with {_how(read)}, and result_backend is not set",
                f"Set {case.line('result_backend', repr('redis://localhost:6379/2'))}, for example.",
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
    if not case.keeps_results:
        return
    for module, place, read in _reads(case):
        sent = made_by(module, read.value, place)
        if not isinstance(sent, ast.Call) or not isinstance(sent.func, ast.Attribute) or called(sent) not in SENDS:
            continue
        facts = case.by_name.get(_task_name(case, module, sent.func.value) or "")
        stored = any(word.arg == "ignore_result" for word in sent.keywords)
        if facts is not None and facts.task.ignore_result and not stored and not module.is_excused(place, "CP511"):
            whose = "task_ignore_result=True" if case.conf.task_ignore_result else "ignore_result=True"
            yield Sign(
                module.place(place),
                f"the result of {facts.name} is read with {_how(read)}, and {whose}",
                f"Write ignore_result=False at {facts.name}.",
            )


@rule(
    "CP512",
    "error",
    "A countdown longer than the visibility timeout",
    "Redis gives the waiting message out again at each timeout: the task runs once for each.",
    upstream="celery/kombu#337",
)
def waits_too_long(case: Case) -> Iterator[Sign]:
    """A ``countdown=`` that is written as a number."""
    timeout = case.visibility_timeout
    if timeout is None:
        return
    for module in case.source:
        for call in module.calls:
            if called(call) not in ("apply_async", "retry", "set", "signature") or not isinstance(
                call.func, ast.Attribute
            ):
                continue
            wait = next((_number(word.value) for word in call.keywords if word.arg == "countdown"), None)
            if wait is not None and wait >= timeout and not module.is_excused(call, "CP512"):
                yield Sign(
                    module.place(call),
                    f".{called(call)}(countdown=…) waits for {seconds(wait)}, and {case.visibility_line}",
                    case.longer_visibility(wait) + " Or keep the moment in your database, and let beat look.",
                )


def _sent(case: Case) -> Iterator[tuple[Module, ast.Call, ast.expr, TaskFacts | None]]:
    """Each argument with which a known task is sent."""
    for module in case.source:
        for call in module.calls:
            arguments = arguments_of(call) if isinstance(call.func, ast.Attribute) else []
            name = _task_name(case, module, call.func.value) if arguments else None  # type: ignore[attr-defined]
            if name is not None:
                yield from ((module, call, argument, case.by_name.get(name)) for argument in arguments)


def _reads(case: Case) -> Iterator[tuple[Module, ast.expr, ast.Attribute]]:
    """Where a result is read, and what of it: ``.get()``, ``.state``."""
    for module in case.source:
        for call in module.calls:
            read = call.func
            if isinstance(read, ast.Attribute) and read.attr in _READS and is_result(module, read.value, call):
                yield module, call, read
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and node.attr in _SHOWS and is_result(module, node.value, node):
                yield module, node, node


def _how(read: ast.Attribute) -> str:
    return f".{read.attr}{'()' if read.attr in _READS else ''}"


def _task_name(case: Case, module: Module, function: ast.expr) -> str | None:
    """The name of the task that an expression stands for; None where it is none that is known."""
    if isinstance(function, ast.Name):
        if is_rebound(module, function.id, function):
            return None
        for task in module.tasks:
            if task.function.name == function.id:
                return task.name
    return case.written.get(module.whole_name(function))


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


def _begins(node: ast.expr) -> bool:
    if not isinstance(node, ast.Call):
        return False
    # A tracer's begin("span") begins something else.
    return called(node) == "atomic" or (called(node) in _TRANSACTIONS and not node.args)


def _unsendable(node: ast.expr) -> str | None:
    if isinstance(node, ast.Call):
        owner = called(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        return _MADE.get(called(node)) if owner in ("", "datetime", "pathlib") else None
    inside = node.values if isinstance(node, ast.Dict) else node.elts if isinstance(node, ast.List | ast.Tuple) else []
    return _UNSENDABLE.get(type(node)) or next((kind for one in inside if (kind := _unsendable(one))), None)


def _own_object(case: Case, module: Module, node: ast.expr) -> str | None:
    """An object of a class that is written in the same file, and of nothing that JSON knows."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return None
    for one in module.tree.body:
        if isinstance(one, ast.ClassDef) and one.name == node.func.id:
            is_plain = all(called(base) in ("object", "BaseModel") for base in one.bases) and not one.keywords
            methods = {part.name for part in one.body if isinstance(part, Function)}
            # What kombu's register_type() was called for, it can carry.
            taught = any(called(call) == "register_type" for read in case.source for call in read.calls)
            return f"an object of {one.name}" if is_plain and not taught and not methods & _CARRIES else None
    return None


def _number(node: ast.expr) -> float | None:
    """The number that is written, ``24 * 60 * 60`` among them."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        left, right = _number(node.left), _number(node.right)
        return None if left is None or right is None else left * right
    return None


RULES: tuple[Rule, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
