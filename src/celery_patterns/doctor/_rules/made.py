"""CP50 and CP51: how tasks are made, as it is written. The source is parsed, and never imported."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from types import FunctionType
from typing import TYPE_CHECKING

from celery.app.task import Task

from ..._plan import WORN
from ..._task import PatternTask
from .._finding import Rule, Sign, rule
from .._module import Function, Module, called, first_line
from .._values import SENDS, is_rebound

if TYPE_CHECKING:
    from .._case import Case

_OURS = "celery_patterns."
_BY_POSITION = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
)


@rule(
    "CP508",
    "error",
    "A task that the app does not know",
    "Its module was never imported: a worker throws such a task away, and its result never comes.",
    upstream="celery/celery#4289",
)
def never_imported(case: Case) -> Iterator[Sign]:
    """It is written in a file that was not imported, and is not among the app's tasks."""
    for module in case.source:
        for task in module.tasks:
            nested = any(isinstance(one, Function | ast.ClassDef) for one in module.around(task.function))
            others = task.app is not None and task.app is not case.app
            if (
                others
                or module.is_loaded
                or nested
                or task.name in case.app.tasks
                or module.is_excused(task.function, "CP508")
            ):
                continue
            yield Sign(
                module.place(task.function),
                f"the task {task.name} is written here, and the app has no task of that name",
                f'Add the module: Celery(…, include=["{module.name}"]).{_discovered(module)}',
            )


@rule(
    "CP515",
    "error",
    "Patterns on a function that is no task",
    "It has no .delay(), and no worker knows it; called, it is the function alone: nothing is tried again, claimed or kept.",
    upstream="cernanalysispreservation/analysispreservation.cern.ch#1423",
)
def wears_in_vain(case: Case) -> Iterator[Sign]:
    """A function at the top of a file wears patterns and nothing else, and nobody makes a task of it."""
    for module in case.source:
        for node in module.tree.body:
            if not isinstance(node, Function) or not node.decorator_list or module.registered_as(node):
                continue
            worn = [called(one) for one in node.decorator_list if _is_ours(module, one)]
            is_alone = len(worn) == len(node.decorator_list) and _is_left_alone(module, node)
            is_handed_on = any(node.name in one.handed_on for one in case.source)
            if is_alone and not is_handed_on and not module.is_excused(node, "CP515"):
                yield Sign(
                    module.place(node),
                    f"{node.name} wears {', '.join(worn)}, and is no task",
                    "Write @app.task, or @shared_task, above it, and send it with .delay().",
                )


@rule(
    "CP516",
    "warning",
    "A base class that no task has",
    "What it wears holds for nothing: its tasks are made of the app's own class.",
    upstream="celery/celery#5002",
)
def wears_for_nobody(case: Case) -> Iterator[Sign]:
    """A ``PatternTask`` with patterns that no task inherits from, and that is named nowhere in what was read."""
    sent = _sent_unregistered(case)
    for module in case.source:
        for name, node in module.classes.items():
            made = module.stands(name)
            if not isinstance(made, type) or not issubclass(made, PatternTask) or not made.patterns:
                continue
            is_used = bool(made.__subclasses__()) or any(type(one.task) is made for one in case.tasks)
            is_whole = made.run is not Task.run
            is_sent = is_whole and made.name is None and name in sent
            is_mentioned = any(name in one.mentioned for one in case.source) and not is_sent
            if not is_used and not is_mentioned and not module.is_excused(node, "CP516"):
                yield Sign(
                    module.place(node),
                    f"{name} wears patterns, and no task is made of it",
                    f"Write app.register_task({name}()), and send what that returns."
                    if is_whole
                    else f"Write base={name} into its tasks' decorators.",
                    "What is sent of it names no task: a worker throws it away." if is_sent else None,
                )


def _sent_unregistered(case: Case) -> frozenset[str]:
    """``Refund().delay(…)``, or of a variable that was made so; none where one is registered that is not written out."""
    registered: set[str] = set()
    sent: set[str] = set()
    for module in case.source:
        made: dict[tuple[ast.AST | None, str], str] = {}
        for call in module.calls:
            if called(call) == "register_task":
                names = [called(one) if isinstance(one, ast.Call) else "" for one in call.args]
                if not names or not all(names):
                    return frozenset()
                registered.update(names)
            around = module.parents[call]
            if (
                isinstance(call.func, ast.Name)
                and isinstance(around, ast.Assign)
                and isinstance(around.targets[0], ast.Name)
            ):
                made[module.function_of(around), around.targets[0].id] = call.func.id
        for one in (node.value for node in module.attributes if node.attr in SENDS):
            if isinstance(one, ast.Call) and isinstance(one.func, ast.Name):
                sent.add(one.func.id)
            elif isinstance(one, ast.Name):
                here = made.get((module.function_of(one), one.id))
                there = None if is_rebound(module, one.id, one) else made.get((None, one.id))
                sent.add(here or there or "")
    return frozenset(sent - registered)


@rule(
    "CP517",
    "error",
    "Two tasks of one name",
    "Celery keeps one of them, in another process maybe the other; who sends the one may have the other run.",
    upstream="celery/celery#10576",
)
def of_one_name(case: Case) -> Iterator[Sign]:
    """Two functions at the top of files are tasks of the same app under the same name."""
    first: dict[str, tuple[str, str]] = {}
    for module in case.source:
        for task in module.tasks if module.is_loaded else ():
            if module.parents[task.function] is not module.tree or task.app not in (None, case.app):
                continue
            function, place = first.setdefault(task.name, (task.function.name, module.place(task.function)))
            if place != module.place(task.function) and not module.is_excused(task.function, "CP517"):
                alike = function == task.function.name and "name" not in task.options
                yield Sign(
                    module.place(task.function),
                    f"{task.name} is a task at {place} already",
                    "Call one of the two functions otherwise." if alike else "Give one of the two another name=.",
                )


@rule(
    "CP519",
    "error",
    "A task that is to take itself, and does not",
    "Each .delay() raises TypeError: its arguments are taken for others.",
    upstream="mozilla/sumo#2186",
)
def takes_itself(case: Case) -> Iterator[Sign]:
    """A function that begins with ``self`` without ``bind=True``, or takes nothing with it; or a method."""
    for module in case.source:
        for task in module.tasks:
            facts = case.by_name.get(task.name)
            is_method = isinstance(module.parents[task.function], ast.ClassDef)
            known = facts is not None and module.registered_as(task.function) == task.name
            if facts is None or not known or facts.is_called_otherwise:
                continue
            parameters = inspect.signature(facts.body).parameters.values()
            first = next((one for one in parameters if one.kind in _BY_POSITION), None)
            if (
                is_method
                and not facts.takes_itself
                and first is not None
                and first.name == "self"
                and first.default is first.empty
            ):
                what = "is a method, and a worker has no object of its class to call it on"
                cure = "Take it out of its class, and self away: a task is a function."
            elif facts.takes_itself and first is None:
                what, cure = "is bound, and takes nothing first", "Let it begin with self, or take bind=True away."
            elif not facts.takes_itself and first is not None and first.name == "self" and first.default is first.empty:
                what, cure = (
                    "begins with self, and is not bound",
                    "Write bind=True into its decorator, or take self away.",
                )
            else:
                continue
            if not module.is_excused(task.function, "CP519"):
                yield Sign(module.place(task.function), f"{task.name} {what}", cure)


def _is_ours(module: Module, decorator: ast.expr) -> bool:
    what = decorator.func if isinstance(decorator, ast.Call) else decorator
    return module.whole_name(what).startswith(_OURS)


def _is_left_alone(module: Module, node: Function) -> bool:
    """Whether under its name stands the function itself, as it was imported."""
    made = module.stands(node.name)
    return type(made) is FunctionType and WORN in vars(made) and made.__code__.co_firstlineno == first_line(node)


def _discovered(module: Module) -> str:
    """What Django looks through are the modules of its apps."""
    package, _, name = module.name.rpartition(".")
    if name != "tasks" or "django.conf" not in sys.modules:
        return ""
    return f" Under Django app.autodiscover_tasks() finds it, where {package} stands in INSTALLED_APPS."


RULES: tuple[Rule, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
