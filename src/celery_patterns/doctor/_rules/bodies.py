"""CP501, CP504, CP506 and CP528: what the bodies of tasks do, as it is written. The source is parsed, and never imported."""

from __future__ import annotations

import ast
import builtins
import difflib
import dis
import inspect
from collections.abc import Iterator
from types import CodeType
from typing import TYPE_CHECKING, Any

from .._bindings import nodes_of
from .._finding import Rule, Sign, rule
from .._module import Function, Module, TaskSource, called, caught_by
from .._values import is_rebound, is_result, made_by

if TYPE_CHECKING:
    from .._case import Case
    from .._tasks import TaskFacts

#: How names are set that nobody wrote down: by a call of such a function, in a shell, by an older Python or another system.
_SETS_NAMES = frozenset({"globals", "vars", "exec", "setattr", "install"})
_AT_TIMES = frozenset({"_", "ic", "get_ipython", "profile", "reveal_type", "reveal_locals", "WindowsError", "unicode"})
_ALIKE = 0.7
_WAITS = frozenset({"get", "wait", "join", "join_native", "get_leaf", "collect"})
#: Of HTTP's methods those that do it twice when they are called twice.
_METHODS = frozenset({"post", "patch"})
_CLIENTS = frozenset({"requests", "httpx"})
_OPENED = frozenset({"Client", "AsyncClient", "Session"})
_SESSIONS = frozenset({"session", "client"})
_EFFECTS = frozenset({"send_mail", "send_mass_mail", "sendmail", "send_message", "mail_admins", "email_user"})


@rule(
    "CP501",
    "error",
    "A task waits for another task's result",
    "Celery raises RuntimeError; where that check is off, all slots come to wait for tasks that no slot is left for.",
    upstream="dagster-io/dagster#29660",
)
def waits_inside(case: Case) -> Iterator[Sign]:
    """``.get()`` of a result in a task's body, or in a function of the same file that it calls."""
    for module in case.source:
        reads = [one for one in module.calls if isinstance(one.func, ast.Attribute) and one.func.attr in _WAITS]
        waits = [one for one in reads if is_result(case, module, one.func.value, one)]  # type: ignore[attr-defined]
        callers = _callers(module) if waits else {}
        for call in waits:
            who = _run_by(module, call, callers)
            if who is not None and not module.is_excused(call, "CP501"):
                yield Sign(
                    module.place(call),
                    f"{who} waits for a result with .{called(call)}()",
                    "Let the second task be called when the first is done: chain(first.s(…), second.s()), or a chord for "
                    "many.",
                )


@rule(
    "CP528",
    "warning",
    "A name that stands for nothing",
    "Each run that comes there ends with a NameError.",
    upstream="madcowfred/evething#20",
)
def names_nothing(case: Case) -> Iterator[Sign]:
    """A body uses a name that is neither its own, nor its module's, nor Python's, and nobody seems to set it later."""
    set_later = {node.attr for module in case.source for node in module.attributes if isinstance(node.ctx, ast.Store)}
    for module in case.source:
        if any(called(call) in _SETS_NAMES for call in module.calls):
            continue
        for task in module.tasks:
            facts = case.by_name.get(task.name)
            if facts is None or module.registered_as(task.function) != task.name:
                continue
            body = inspect.unwrap(facts.body)
            names = _unknown_names(body) - module.globals - set_later - _AT_TIMES
            for name in sorted(names):
                uses = [node for node in ast.walk(task.function) if isinstance(node, ast.Name) and node.id == name]
                node = next((one for one in uses if _is_come_to(module, one)), None)
                if node is None or module.is_excused(node, "CP528"):
                    continue
                meant = difflib.get_close_matches(name, [*body.__code__.co_varnames, *body.__globals__], 1, _ALIKE)
                cure = f"Write {meant[0]}, if that was meant." if meant else f"Import {name}, or correct its name."
                yield Sign(module.place(node), f"{task.name} uses {name}, which nothing is called", cure)


def _unknown_names(body: Any) -> set[str]:
    """The global names that a function's code, and that of functions within it, looks for in vain."""
    known, found = {*body.__globals__, *vars(builtins)}, set()
    waiting = [body.__code__]
    for code in waiting:  # it grows meanwhile
        waiting += [one for one in code.co_consts if isinstance(one, CodeType)]
        if known.issuperset(code.co_names):
            continue
        asked = (one.argval for one in dis.get_instructions(code) if one.opname == "LOAD_GLOBAL")
        found |= {name for name in asked if name not in known}
    return found


def _is_come_to(module: Module, node: ast.AST) -> bool:
    """Whether a run comes there as far as can be seen, and does not reckon with a name that is not there."""
    for around in module.around(node):
        if isinstance(around, ast.If | ast.IfExp | ast.Try | ast.With | ast.arg | ast.AnnAssign):
            return False
        if isinstance(around, Function) and node in around.decorator_list:
            return False
    return True


@rule(
    "CP504",
    "warning",
    "An effect that each attempt repeats",
    "An attempt that fails behind it, or whose worker is killed, does it again: two charges, two mails.",
    upstream="getsentry/sentry#72516",
)
def repeats_effect(case: Case) -> Iterator[Sign]:
    """A task is retried, wears no key, and posts something or sends a mail."""
    for module, task, call in _calls_in_tasks(case):
        facts = case.by_name.get(task.name)
        if "idempotent" in task.wears or (facts is not None and facts.keyed is not None):
            continue
        if _is_effect(module, call) and _is_retried(task, facts) and not module.is_excused(call, "CP504"):
            yield Sign(
                module.place(call),
                f"{task.name} is retried and calls {ast.unparse(call.func)}(), and has no key",
                "Let it wear idempotent(key=…, ttl=…), and hand current_claim().key on as the other side's Idempotency-Key.",
            )


@rule(
    "CP506",
    "error",
    "State that is kept on the task",
    "There is one task object for all runs of a process: the next run finds what this one left, and threads mix theirs.",
    upstream="celery/celery#8972",
)
def keeps_state(case: Case) -> Iterator[Sign]:
    """An attribute of the task is set in its body; one that is made once, where it is not there yet, is left alone."""
    for module in case.source:
        for task in module.tasks:
            for place, said in _set_on(module, task):
                if not module.is_excused(place, "CP506"):
                    yield Sign(
                        module.place(place),
                        f"{task.name} sets {said}",
                        "Keep it in a variable; what is made once for each process goes into a module.",
                    )


def _calls_in_tasks(case: Case) -> Iterator[tuple[Module, TaskSource, ast.Call]]:
    for module in case.source:
        for task in module.tasks:
            for node in ast.walk(task.function):
                if isinstance(node, ast.Call) and node not in task.function.decorator_list:
                    yield module, task, node


def _callers(module: Module) -> dict[str, list[ast.AST]]:
    """Which functions call one of the module's own by its name, and where: neither on a condition nor for later."""
    found: dict[str, list[ast.AST]] = {}
    for call in module.calls:
        name = called(call) if isinstance(call.func, ast.Name) else ""
        caller = _always_in(module, call) if name in module.functions else None
        if caller is not None and not is_rebound(module, name, call):
            found.setdefault(name, []).append(caller)
    return found


def _always_in(module: Module, call: ast.Call) -> Function | None:
    """The function in whose every run a place is come to, as far as conditions say."""
    for one in module.around(call):
        if isinstance(one, ast.If | ast.IfExp | ast.Lambda | ast.match_case):
            return None
        if isinstance(one, Function):
            return one
    return None


def _run_by(module: Module, call: ast.Call, callers: dict[str, list[ast.AST]]) -> str | None:
    """The task that comes to a place, in its own body or through functions of the same file; None where none is known to."""
    names: dict[ast.AST, str] = {task.function: task.name for task in module.tasks}
    for function in module.around(call):
        if function in names:
            return names[function]
    helper = _always_in(module, call)
    ways: list[ast.AST] = [] if helper is None else [helper]
    for one in ways:  # it grows meanwhile
        if one in names:
            return f"{names[one]}, which calls {getattr(helper, 'name', '')}(),"
        if isinstance(one, Function) and module.parents[one] is module.tree:  # and no method
            ways.extend(caller for caller in callers.get(one.name, ()) if caller not in ways)
    return None


def _is_effect(module: Module, call: ast.Call) -> bool:
    if called(call) in _EFFECTS:
        return True
    if not isinstance(call.func, ast.Attribute):
        return False
    whole = module.whole_name(call.func)
    if whole.startswith("stripe.") and called(call) == "create":
        return True
    if called(call) not in _METHODS:
        return False
    owner = call.func.value
    made = made_by(module, owner, call)
    if isinstance(made, ast.Call) and isinstance(owner, ast.Name):  # with httpx.Client() as client: …
        return called(made) in _OPENED and module.whole_name(made.func).partition(".")[0] in _CLIENTS
    # A session may be a database's, whose delete() is no request.
    to_a_path = bool(call.args) and isinstance(call.args[0], ast.Constant | ast.JoinedStr)
    return called(owner) in _CLIENTS or (called(owner) in _SESSIONS and to_a_path)


def _is_retried(task: TaskSource, facts: TaskFacts | None) -> bool:
    if "retry" in task.wears or "autoretry_for" in task.options or (facts is not None and facts.retries != 0):
        return True
    return any(
        isinstance(node, ast.Attribute) and node.attr == "retry" and called(node.value) == task.task_is
        for node in ast.walk(task.function)
    )


def _set_on(module: Module, task: TaskSource) -> Iterator[tuple[ast.AST, str]]:
    if task.task_is is None:
        return
    for node in nodes_of(task.function):
        match node:
            case ast.Attribute(value=ast.Name(id=owner), attr=attribute, ctx=ast.Store()) if owner == task.task_is:
                said = ast.unparse(node)
                if isinstance(statement := module.parents.get(node), ast.AnnAssign) and statement.value is None:
                    continue  # its type only
            case ast.Call(func=ast.Name(id="setattr"), args=[ast.Name(id=owner), name, _]) if owner == task.task_is:
                attribute = str(name.value) if isinstance(name, ast.Constant) else ""
                said = f"an attribute of {owner}"
            case _:
                continue
        if not _is_made_once(module, node, attribute):
            yield node, said


def _is_made_once(module: Module, place: ast.AST, attribute: str) -> bool:
    """``if self.client is None: self.client = …``, and how else it is said that it is not there yet."""
    for one in module.around(place):
        if isinstance(one, ast.If) and (_asks(module, one.test, attribute) or _sets_what_it_asks(one)):
            return True
        if isinstance(one, ast.Assign | ast.AnnAssign) and isinstance(one.value, ast.BoolOp | ast.IfExp):
            return _mentions(one.value, attribute)  # self.client = self.client or …
        if isinstance(one, Function):
            earlier = (node for node in nodes_of(one) if isinstance(node, ast.If) and node.lineno < place.lineno)  # type: ignore[attr-defined]
            return any(isinstance(node.body[-1], ast.Return) and _mentions(node.test, attribute) for node in earlier)
        if isinstance(one, ast.ExceptHandler) and "AttributeError" in [called(kind) for kind in caught_by(one)]:
            return True
    return False


def _sets_what_it_asks(node: ast.If) -> bool:
    """``if not self.ready: …; self.ready = True``."""
    set_there = {one.attr for part in node.body for one in ast.walk(part) if _is_set(one)}  # type: ignore[attr-defined]
    return any(_mentions(node.test, name) for name in set_there)


def _is_set(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)


def _asks(module: Module, test: ast.expr, attribute: str) -> bool:
    """Whether a condition is about the attribute, or about a variable that was made of it."""
    if _mentions(test, attribute):
        return True
    names = [one for one in ast.walk(test) if isinstance(one, ast.Name)]
    made = (made_by(module, one, test) for one in names)
    return any(one is not None and _mentions(one, attribute) for one in made)


def _mentions(node: ast.expr, attribute: str) -> bool:
    """``self.client``, ``hasattr(self, "client")``, ``getattr(self, "client", None)``."""
    return any(
        (isinstance(one, ast.Attribute) and one.attr == attribute)
        or (isinstance(one, ast.Constant) and one.value == attribute)
        for one in ast.walk(node)
    )


RULES: tuple[Rule, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
