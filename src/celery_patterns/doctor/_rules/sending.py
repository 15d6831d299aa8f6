"""CP50 and CP51: how tasks are sent and their results read, as it is written. The source is parsed, and never imported."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from ..._republish import STRICT
from .._bindings import Binding, last_binding, scope_of
from .._finding import Rule, Sign, rule
from .._module import Function, Module, called
from .._tasks import seconds
from .._values import (
    ERROR,
    ROWS,
    SENDS,
    arguments_of,
    is_canvas_sent,
    is_model,
    is_rebound,
    is_result,
    is_task_itself,
    made_by,
    sends,
    task_name,
)

if TYPE_CHECKING:
    from .._case import Case
    from .._tasks import TaskFacts

#: What is read of a result without a call.
_SHOWS = frozenset({"state", "status", "result", "info", "traceback"})
_READS = frozenset({"get", "wait", "join", "join_native", "get_leaf", "collect", "ready", "successful", "failed"})
#: Where a transaction begins: Django's, SQLAlchemy's.
_TRANSACTIONS = frozenset({"begin", "begin_nested"})
#: What begins one is called so, and not a tracer's or an animation's.
_DATABASES = ("session", "engine", "connection", "conn", "db", "database", "transaction")
_UNSENDABLE: dict[type[ast.expr], str] = {
    ast.Set: "a set",
    ast.SetComp: "a set",
    ast.Lambda: "a lambda",
    ast.GeneratorExp: "a generator",
}
#: Methods by which kombu, or a class of one's own, makes something of an object that JSON carries.
_CARRIES = frozenset({"__json__", "__new__"})
#: No wait is so long, in seconds.
_LONGEST = 1e12
_WAIT = frozenset({"apply_async", "retry", "set", "signature"})
_SUMS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
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
        if "atomic" not in module.text and "begin" not in module.text:
            continue
        for call in module.calls:
            if not _in_transaction(module, call) or module.is_excused(call, "CP502"):
                continue
            one = sends(case, module, call)
            if (one and not _waits_itself(case, module, call)) or is_canvas_sent(module, call):
                yield Sign(
                    module.place(call),
                    f"{f'.{called(call)}()' if one else 'a canvas is sent'} within a transaction",
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
    "CP507",
    "error",
    "A model's row as an argument",
    "JSON cannot carry it, so .delay() raises; with pickle the task works on the row as it was, and writes that back.",
    upstream="mozilla/experimenter#1631",
)
def sends_model(case: Case) -> Iterator[Sign]:
    """What was read from the database is sent as it is."""
    for module, call, argument, facts in _sent(case):
        if _is_json(case, call, facts) and is_model(module, argument, call) and not module.is_excused(call, "CP507"):
            said = ast.unparse(argument)
            many = made_by(module, argument, call)
            if isinstance(many, ast.Call) and many.func is not argument and _is_query(module, argument, call):
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
        kind = None if made is None else _unsendable(module, made) or _own_object(case, module, made)
        if isinstance(argument, ast.Name) and _is_function(case, module, argument, call):
            kind = "a function"
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


def _near(case: Case) -> str:
    """A result backend beside the broker, where that is a Redis without a login."""
    broker = case.addresses[0]
    if broker.scheme not in ("redis", "rediss") or broker.trouble is not None or broker.user or broker.password:
        return "redis://localhost:6379/2"
    host = f"[{broker.host}]" if ":" in broker.host else broker.host
    return f"{broker.scheme}://{host}:{broker.port}/{1 if broker.place != '1' else 2}"


def _is_meant(module: Module, call: ast.Call, name: str) -> bool:
    """A task that calls itself, and a script that runs it."""
    for around in module.around(call):
        if isinstance(around, Function) and module.task_names.get(around.name) == name:
            return True
        if isinstance(around, ast.If) and "__main__" in ast.dump(around.test):
            return True
    return False


def _is_query(module: Module, argument: ast.expr, at: ast.AST) -> bool:
    """Whether many rows are given: the query itself, and not one that a loop goes through or a place in it."""
    found: ast.expr | None = argument
    if isinstance(argument, ast.Name):
        scopes = (one for one in module.around(at) if isinstance(one, Function | ast.Module))
        bindings = (last_binding(module, scope, argument.id, at) for scope in scopes)
        binding = next((one for one in bindings if one is not None), None)
        node = binding.node if isinstance(binding, Binding) else None
        found = node.value if isinstance(node, ast.Assign) else None
    return isinstance(found, ast.Call) and called(found) in ROWS


def _is_function(case: Case, module: Module, argument: ast.Name, at: ast.AST) -> bool:
    return (
        argument.id in module.functions
        and not is_rebound(module, argument.id, at)
        and task_name(case, module, argument) is None
    )


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


def _sent(case: Case) -> Iterator[tuple[Module, ast.Call, ast.expr, TaskFacts | None]]:
    """Each argument with which a known task is sent."""
    for module in case.source:
        for call in module.calls:
            arguments = arguments_of(call) if isinstance(call.func, ast.Attribute) else []
            name = task_name(case, module, call.func.value) if arguments else None  # type: ignore[attr-defined]
            if name is not None:
                yield from ((module, call, argument, case.by_name.get(name)) for argument in arguments)


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
    if called(node) == "atomic":
        return True
    owner = called(node.func.value).lower() if isinstance(node.func, ast.Attribute) else ""
    # A tracer's begin("span") begins something else, and so does an animation's.
    return called(node) in _TRANSACTIONS and not node.args and any(word in owner for word in _DATABASES)


def _unsendable(module: Module, node: ast.expr) -> str | None:
    if isinstance(node, ast.Call):
        return _MADE.get(called(node)) if node is ERROR or _is_builtin(module, node) else None
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
    imported = module.imported.get(name)
    if name in ("timedelta", "Path"):
        return imported in (None, "datetime.timedelta", "pathlib.Path") and name not in module.classes
    return imported is None and name not in scope_of(module, module.tree).bindings


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
