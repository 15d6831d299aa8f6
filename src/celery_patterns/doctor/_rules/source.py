"""CP5: what is written in the user's source. It is parsed, and never imported."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .._finding import Rule, Sign, rule
from .._source import Function, Module, TaskSource, called

if TYPE_CHECKING:
    from .._case import Case
    from .._tasks import TaskFacts

_SENDS = frozenset({"delay", "apply_async", "send_task"})
_WAITS = frozenset({"get", "wait", "join", "join_native", "get_leaf", "collect"})
_MAKES_RESULT = frozenset({*_SENDS, "AsyncResult", "GroupResult"})
_CANVAS = frozenset({"group", "chain", "chord", "signature", "s", "si"})
#: Where a transaction begins: Django's, SQLAlchemy's.
_TRANSACTIONS = frozenset({"atomic", "begin", "begin_nested"})
_METHODS = frozenset({"post", "put", "patch", "delete"})
_CLIENTS = frozenset({"requests", "httpx", "session", "client"})
_EFFECTS = frozenset({"send_mail", "send_mass_mail", "sendmail", "send_message", "EmailMessage"})
_FINDS_MODEL = frozenset(
    {"get", "first", "last", "create", "get_or_create", "one", "one_or_none", "earliest", "latest"}
)
_UNSENDABLE: dict[type[ast.expr], str] = {
    ast.Set: "a set",
    ast.SetComp: "a set",
    ast.Lambda: "a lambda",
    ast.GeneratorExp: "a generator",
}
_MADE = {
    "set": "a set",
    "frozenset": "a set",
    "open": "a file",
    "Path": "a path",
    "timedelta": "a timedelta",
    "object": "an object",
}


@rule(
    "CP501",
    "error",
    "A task waits for another task's result",
    "Celery raises RuntimeError; where that check is off, all slots come to wait for tasks that no slot is left for.",
    upstream="dagster-io/dagster#29660",
    part="source",
)
def waits_inside(case: Case) -> Iterator[Sign]:
    """``.get()`` of a result in a task's body."""
    for module, task, call in _in_tasks(case):
        if _reads_result(module, call) and not module.is_excused(call, "CP501"):
            yield Sign(
                module.place(call),
                f"{task.name} waits for a result with .{called(call)}()",
                "Let the second task be called when the first is done: chain(first.s(…), second.s()), or a chord for many.",
            )


@rule(
    "CP502",
    "error",
    "A task that is sent before its transaction is committed",
    "A worker may run it before the row is there, and runs it also when the transaction is rolled back.",
    upstream="celery/celery#8491",
    part="source",
)
def sends_in_transaction(case: Case) -> Iterator[Sign]:
    """``.delay()`` within ``transaction.atomic()`` or a session's ``begin()``."""
    for module in case.source:
        for call in module.calls:
            if called(call) not in _SENDS or not isinstance(call.func, ast.Attribute):
                continue
            if _in_transaction(module, call) and not module.is_excused(call, "CP502"):
                yield Sign(
                    module.place(call),
                    f".{called(call)}() within a transaction",
                    "Send it once that is committed: transaction.on_commit(lambda: task.delay(…)), or behind the block.",
                )


@rule(
    "CP503",
    "hint",
    "A task that is called and not sent",
    "Its body runs here and now, in the caller: no worker, no retries, no limits.",
    upstream="praekeltfoundation/vumi-go#59",
    part="source",
)
def called_directly(case: Case) -> Iterator[Sign]:
    """A statement that calls a task as a function, and uses nothing of what it returns."""
    for module in case.source:
        for call in module.calls:
            if not isinstance(module.parents.get(call), ast.Expr) or not isinstance(
                call.func, ast.Name | ast.Attribute
            ):
                continue
            name = _task_name(case, module, call.func)
            if name is not None and not module.is_excused(call, "CP503"):
                yield Sign(
                    module.place(call),
                    f"{name}(…) is called like a function",
                    f"Write {ast.unparse(call.func)}.delay(…).",
                )


@rule(
    "CP504",
    "warning",
    "An effect that each attempt repeats",
    "An attempt that fails behind it, or whose worker is killed, does it again: two charges, two mails.",
    upstream="getsentry/sentry#72516",
    part="source",
)
def repeats_effect(case: Case) -> Iterator[Sign]:
    """A task is retried, wears no key, and posts something or sends a mail."""
    for module, task, call in _in_tasks(case):
        facts = case.by_name.get(task.name)
        if "idempotent" in task.wears or (facts is not None and facts.keyed is not None):
            continue
        if _is_effect(call) and _is_retried(task, facts) and not module.is_excused(call, "CP504"):
            yield Sign(
                module.place(call),
                f"{task.name} is retried and calls {ast.unparse(call.func)}(), and has no key",
                "Let it wear idempotent(key=…, ttl=…), and hand current_claim().key on as the other side's Idempotency-Key.",
            )


@rule(
    "CP505",
    "error",
    "A soft limit that the body swallows",
    "SoftTimeLimitExceeded is an Exception: it is caught as any other, and the body goes on until the hard limit kills it.",
    upstream="celery/billiard#240",
    part="source",
)
def swallows_limit(case: Case) -> Iterator[Sign]:
    """``except Exception`` that does not raise again, in a task with a soft time limit."""
    for module in case.source:
        for task in module.tasks:
            facts = case.by_name.get(task.name)
            if facts is None or facts.soft_limit is None:
                continue
            for node in ast.walk(task.function):
                if isinstance(node, ast.Try):
                    handler = _swallower(node)
                    if handler is not None and not module.is_excused(handler, "CP505"):
                        yield Sign(
                            module.place(handler),
                            f"{task.name} has {facts.limit_line('soft_time_limit')}, and catches Exception",
                            "Put `except SoftTimeLimitExceeded: raise` before it, or name the exceptions that you mean.",
                        )


@rule(
    "CP506",
    "error",
    "State that is kept on the task",
    "There is one task object for all runs of a process: the next run finds what this one left, and threads mix theirs.",
    upstream="celery/celery#8972",
    part="source",
)
def keeps_state(case: Case) -> Iterator[Sign]:
    """An attribute of ``self`` is set in a task's body."""
    for module in case.source:
        for task in module.tasks:
            arguments = [*task.function.args.posonlyargs, *task.function.args.args]
            if not task.takes_task or not arguments:
                continue
            for target in _set_in(task.function):
                of_self = isinstance(target.value, ast.Name) and target.value.id == arguments[0].arg
                if of_self and not module.is_excused(target, "CP506"):
                    yield Sign(
                        module.place(target),
                        f"{task.name} sets {ast.unparse(target)}",
                        "Keep it in a variable; what is made once for each process goes into a module.",
                    )


@rule(
    "CP507",
    "error",
    "A model's row as an argument",
    "JSON cannot carry it, so .delay() raises; with pickle the task works on the row as it was, and writes that back.",
    upstream="mozilla/experimenter#1631",
    part="source",
)
def sends_model(case: Case) -> Iterator[Sign]:
    """What was read from the database is sent as it is."""
    for module in case.source:
        for call in module.calls:
            if called(call) not in ("delay", "s", "si") or not isinstance(call.func, ast.Attribute):
                continue
            for argument in (*call.args, *(word.value for word in call.keywords)):
                if _is_model(module, argument) and not module.is_excused(call, "CP507"):
                    said = ast.unparse(argument)
                    yield Sign(
                        module.place(call),
                        f".{called(call)}({said}) sends a row of the database",
                        f"Send its key, {said}.pk, and read the row in the task."
                        if isinstance(argument, ast.Name)
                        else "Send its key, and read the row in the task.",
                    )


@rule(
    "CP508",
    "error",
    "A task that the app does not know",
    "Its module was never imported: a worker throws such a task away, and its result never comes.",
    upstream="celery/celery#4289",
    part="source",
)
def never_imported(case: Case) -> Iterator[Sign]:
    """It is written in the source, and is not among the app's tasks."""
    for module in case.source:
        for task in module.tasks:
            nested = any(isinstance(one, Function) for one in module.around(task.function))
            if task.name in case.app.tasks or nested or module.is_excused(task.function, "CP508"):
                continue
            yield Sign(
                module.place(task.function),
                f"the task {task.name} is written here, and the app has no task of that name",
                f'Add the module: Celery(…, include=["{module.name}"]), or app.autodiscover_tasks().',
            )


@rule(
    "CP509",
    "error",
    "A value that cannot be sent",
    "JSON cannot carry it: .delay() raises, and nothing is sent.",
    upstream="miguelgrinberg/flask-celery-example#14",
    part="source",
)
def sends_unsendable(case: Case) -> Iterator[Sign]:
    """A set, a function, a file and their like among the arguments."""
    if "pickle" in str(case.conf.task_serializer):
        return
    for module in case.source:
        for call in module.calls:
            if called(call) not in ("delay", "s", "si") or not isinstance(call.func, ast.Attribute):
                continue
            for argument in (*call.args, *(word.value for word in call.keywords)):
                kind = _unsendable(argument)
                if kind is not None and not module.is_excused(call, "CP509"):
                    yield Sign(
                        module.place(call),
                        f".{called(call)}({ast.unparse(argument)}) sends {kind}",
                        "Send a list, a dict, a number or a text.",
                    )


@rule(
    "CP510",
    "error",
    "Results that are read, and kept nowhere",
    "Reading one raises: there is no result backend.",
    upstream="celery/celery#7340",
    part="source",
)
def reads_nothing(case: Case) -> Iterator[Sign]:
    """A result is read, and ``result_backend`` is not set."""
    if case.conf.result_backend:
        return
    for module in case.source:
        for call in module.calls:
            if _reads_result(module, call) and not module.is_excused(call, "CP510"):
                yield Sign(
                    module.place(call),
                    f"a result is read with .{called(call)}(), and result_backend is not set",
                    'Set result_backend = "redis://localhost:6379/2", for example.',
                )


@rule(
    "CP511",
    "error",
    "A result that is read, and ignored",
    "It is never stored: whoever reads it waits without an end, or gets None at once.",
    upstream="celery/celery#2652",
    part="source",
)
def reads_ignored(case: Case) -> Iterator[Sign]:
    """A result is read of a task whose results are ignored."""
    if not case.conf.result_backend:
        return
    for module in case.source:
        for call in module.calls:
            sent = _sent_by(module, call) if _reads_result(module, call) else None
            name = None if sent is None else _task_name(case, module, sent)
            facts = case.by_name.get(name or "")
            if facts is not None and facts.task.ignore_result and not module.is_excused(call, "CP511"):
                whose = "task_ignore_result=True" if case.conf.task_ignore_result else "ignore_result=True"
                yield Sign(
                    module.place(call),
                    f"the result of {facts.name} is read with .{called(call)}(), and {whose}",
                    f"Write ignore_result=False at {facts.name}.",
                )


def _in_tasks(case: Case) -> Iterator[tuple[Module, TaskSource, ast.Call]]:
    for module in case.source:
        for task in module.tasks:
            for part in task.function.body:
                for node in ast.walk(part):
                    if isinstance(node, ast.Call):
                        yield module, task, node


def _task_name(case: Case, module: Module, function: ast.expr) -> str | None:
    """The name of the task that an expression stands for; None where it is none that is known."""
    if isinstance(function, ast.Name):
        for task in module.tasks:
            if task.function.name == function.id:
                return task.name
    return case.written.get(module.whole_name(function))


def _reads_result(module: Module, call: ast.Call) -> bool:
    return (
        isinstance(call.func, ast.Attribute) and call.func.attr in _WAITS and _is_result(module, call.func.value, call)
    )


def _is_result(module: Module, node: ast.expr, at: ast.AST) -> bool:
    """Whether an expression is what was got by sending a task."""
    if isinstance(node, ast.Call):
        if called(node) in _MAKES_RESULT:
            return True
        # group(…)() and chain(…)(): a canvas that is called.
        return isinstance(node.func, ast.Call) and called(node.func) in _CANVAS
    if isinstance(node, ast.Name):
        value = _value_of(module, node.id, at)
        return value is not None and _is_result(module, value, at)
    return False


def _value_of(module: Module, name: str, at: ast.AST) -> ast.expr | None:
    """What a variable was set to in the same function, or at the module's top; in a loop, what each of the list is."""
    for scope in module.around(at):
        if isinstance(scope, ast.ListComp | ast.SetComp | ast.GeneratorExp):
            for loop in scope.generators:
                if isinstance(loop.target, ast.Name) and loop.target.id == name:
                    return _one_of(module, loop.iter, scope)
        if isinstance(scope, ast.For) and isinstance(scope.target, ast.Name) and scope.target.id == name:
            return _one_of(module, scope.iter, scope)
        if isinstance(scope, Function | ast.Module):
            found = _last_set(scope, name, before=getattr(at, "lineno", 0))
            if found is not None:
                return found
    return None


def _one_of(module: Module, many: ast.expr, at: ast.AST) -> ast.expr | None:
    if isinstance(many, ast.Name):
        value = _value_of(module, many.id, at)
        return None if value is None else _one_of(module, value, at)
    if isinstance(many, ast.ListComp | ast.GeneratorExp | ast.SetComp):
        return many.elt
    return many.elts[0] if isinstance(many, ast.List | ast.Tuple) and many.elts else None


def _last_set(scope: Function | ast.Module, name: str, *, before: int) -> ast.expr | None:
    found: ast.expr | None = None
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign) and node.lineno <= before:
            for target in node.targets:
                if isinstance(target, ast.Name) and target.id == name and not _within(node.value, name):
                    found = node.value
    return found


def _within(node: ast.expr, name: str) -> bool:
    """Whether the variable is set to something of its own."""
    return any(isinstance(one, ast.Name) and one.id == name for one in ast.walk(node))


def _sent_by(module: Module, call: ast.Call) -> ast.expr | None:
    """What was sent, whose result a call reads: ``pay`` of ``pay.delay(…).get()``."""
    assert isinstance(call.func, ast.Attribute)
    made: ast.expr | None = call.func.value
    if isinstance(made, ast.Name):
        made = _value_of(module, made.id, call)
    if isinstance(made, ast.Call) and isinstance(made.func, ast.Attribute) and made.func.attr in _SENDS:
        return made.func.value
    return None


def _in_transaction(module: Module, call: ast.Call) -> bool:
    for node in module.around(call):
        if isinstance(node, ast.With | ast.AsyncWith) and any(_begins(item.context_expr) for item in node.items):
            return True
        if isinstance(node, ast.Lambda):
            return False  # called later: on_commit(lambda: …)
        if isinstance(node, Function):
            return any(called(one) == "atomic" for one in node.decorator_list)
    return False


def _begins(node: ast.expr) -> bool:
    if not isinstance(node, ast.Call):
        return False
    return called(node) in _TRANSACTIONS


def _is_effect(call: ast.Call) -> bool:
    if called(call) in _EFFECTS:
        return True
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    return called(call) in _METHODS and isinstance(owner, ast.Name) and owner.id in _CLIENTS


def _is_retried(task: TaskSource, facts: TaskFacts | None) -> bool:
    if "retry" in task.wears or "autoretry_for" in task.options or (facts is not None and facts.retries != 0):
        return True
    asks: Callable[[ast.AST], bool] = lambda node: (  # noqa: E731
        isinstance(node, ast.Attribute) and node.attr == "retry" and isinstance(node.value, ast.Name)
    )
    return task.takes_task and any(asks(node) for node in ast.walk(task.function))


def _swallower(node: ast.Try) -> ast.ExceptHandler | None:
    """The handler that catches everything and raises nothing, where none before it lets the limit through."""
    for handler in node.handlers:
        names = [called(one) for one in _kinds(handler)]
        if "SoftTimeLimitExceeded" in names:
            return None
        if handler.type is None or "Exception" in names or "BaseException" in names:
            raises = any(isinstance(one, ast.Raise) for one in ast.walk(handler))
            return None if raises else handler
    return None


def _kinds(handler: ast.ExceptHandler) -> list[ast.expr]:
    if isinstance(handler.type, ast.Tuple):
        return handler.type.elts
    return [] if handler.type is None else [handler.type]


def _set_in(function: Function) -> Iterator[ast.Attribute]:
    for node in ast.walk(function):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
        )
        yield from (target for target in targets if isinstance(target, ast.Attribute))


def _is_model(module: Module, node: ast.expr) -> bool:
    if isinstance(node, ast.Name):
        value = _value_of(module, node.id, node)
        return value is not None and _is_model(module, value)
    if not isinstance(node, ast.Call):
        return False
    if called(node) == "get_object_or_404":
        return True
    manager = node.func.value if isinstance(node.func, ast.Attribute) else None
    return called(node) in _FINDS_MODEL and manager is not None and _mentions_objects(manager)


def _mentions_objects(node: ast.expr) -> bool:
    return any(isinstance(one, ast.Attribute) and one.attr in ("objects", "query") for one in ast.walk(node))


def _unsendable(node: ast.expr) -> str | None:
    if isinstance(node, ast.Call):
        return _MADE.get(called(node)) if isinstance(node.func, ast.Name) else None
    return _UNSENDABLE.get(type(node))


RULES: tuple[Rule, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
