"""CP50 and CP51: how tasks are made, as it is written. The source is parsed, and never imported."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from types import FunctionType
from typing import TYPE_CHECKING

from ..._plan import WORN
from ..._task import PatternTask
from .._finding import Rule, Sign, rule
from .._module import Function, Module, called

if TYPE_CHECKING:
    from .._case import Case

_OURS = "celery_patterns."


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
            if not isinstance(node, Function) or not node.decorator_list or node.name in module.registered:
                continue
            worn = [called(one) for one in node.decorator_list if _is_ours(module, one)]
            made = module.stands(node.name)
            is_alone = type(made) is FunctionType and WORN in vars(made) and len(worn) == len(node.decorator_list)
            if is_alone and not _is_named(case, node.name, as_argument=True) and not module.is_excused(node, "CP515"):
                yield Sign(
                    module.place(node),
                    f"{node.name} wears {', '.join(worn)}, and is no task",
                    "Write @app.task above it.",
                )


@rule(
    "CP516",
    "warning",
    "A base class that no task has",
    "What it wears holds for nothing: its tasks are made of the app's own class.",
    upstream="celery/celery#5002",
)
def wears_for_nobody(case: Case) -> Iterator[Sign]:
    """A ``PatternTask`` with patterns that no task inherits from, and that is named nowhere else in the source."""
    for module in case.source:
        for name, node in module.classes.items():
            made = module.stands(name)
            if not isinstance(made, type) or not issubclass(made, PatternTask) or not made.patterns:
                continue
            is_used = bool(made.__subclasses__()) or any(type(one.task) is made for one in case.tasks)
            if not is_used and not _is_named(case, name) and not module.is_excused(node, "CP516"):
                is_whole = any(isinstance(one, Function) and one.name == "run" for one in node.body)
                yield Sign(
                    module.place(node),
                    f"{name} wears patterns, and no task is made of it",
                    f"Write app.register_task({name}())."
                    if is_whole
                    else f"Write @app.task(base={name}) above its tasks.",
                )


@rule(
    "CP517",
    "error",
    "Two tasks of one name",
    "Celery keeps one of them, in another process maybe the other; who sends the one may have the other run.",
    upstream="celery/celery#10576",
)
def of_one_name(case: Case) -> Iterator[Sign]:
    """Two functions at the top of files are tasks of the same app under the same name."""
    first: dict[str, str] = {}
    for module in case.source:
        for task in module.tasks if module.is_loaded else ():
            if module.parents[task.function] is not module.tree or task.app not in (None, case.app):
                continue
            place = module.place(task.function)
            if task.name in first and not module.is_excused(task.function, "CP517"):
                yield Sign(
                    place,
                    f"{task.name} is a task at {first[task.name]} already",
                    "Call one of the two otherwise, or give it another name=.",
                )
            first.setdefault(task.name, place)


@rule(
    "CP519",
    "error",
    "A task that is to take itself, and does not",
    "Each .delay() raises TypeError: its arguments are taken for others.",
    upstream="mozilla/sumo#2186",
)
def takes_itself(case: Case) -> Iterator[Sign]:
    """A function that begins with ``self`` without ``bind=True``, or takes nothing with it."""
    for module in case.source:
        for task in module.tasks:
            decorators = [one for one in task.function.decorator_list if not _is_ours(module, one)]
            given = task.function.args
            first = [one.arg for one in (*given.posonlyargs, *given.args)][:1]
            is_method = not isinstance(module.parents[task.function], ast.Module)
            if (
                is_method
                or len(decorators) != 1
                or _is_open(decorators[0])
                or module.is_excused(task.function, "CP519")
            ):
                continue
            if first == ["self"] and "bind" not in task.options:
                what, cure = (
                    "begins with self, and is not bound",
                    "Write bind=True into its decorator, or take self away.",
                )
            elif not (first or given.vararg) and task.is_bound:
                what, cure = "is bound, and takes nothing", "Let it begin with self, or take bind=True away."
            else:
                continue
            yield Sign(module.place(task.function), f"{task.name} {what}", cure)


def _is_open(decorator: ast.expr) -> bool:
    """Whether nobody knows all that is said to it: ``@app.task(**options)``."""
    return isinstance(decorator, ast.Call) and any(word.arg is None for word in decorator.keywords)


def _is_ours(module: Module, decorator: ast.expr) -> bool:
    what = decorator.func if isinstance(decorator, ast.Call) else decorator
    return module.whole_name(what).startswith(_OURS)


def _is_named(case: Case, name: str, *, as_argument: bool = False) -> bool:
    """Whether something is named in the source, beside where it is defined; also by a text, ``"shop:OrderTask"``."""
    for module in case.source:
        for node in module.parents:
            if isinstance(node, ast.Name | ast.Attribute):
                found = called(node) == name and isinstance(node.ctx, ast.Load)
            else:
                found = isinstance(node, ast.Constant) and str(node.value).endswith((f":{name}", f".{name}"))
            if found and not (as_argument and not isinstance(module.parents[node], ast.Call | ast.keyword)):
                return True
    return False


def _discovered(module: Module) -> str:
    """What Django looks through are the modules of its apps."""
    package, _, name = module.name.rpartition(".")
    if name != "tasks" or "django.conf" not in sys.modules:
        return ""
    return f" Under Django app.autodiscover_tasks() finds it, where {package} stands in INSTALLED_APPS."


RULES: tuple[Rule, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
