"""One file of the user's as it is written: the tasks in it, and what a name in it stands for. Nothing is imported."""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from celery import Celery, Task

__all__ = ["Function", "Module", "TaskSource", "asks_for_main", "called", "caught_by", "first_line"]

Function = ast.FunctionDef | ast.AsyncFunctionDef

_LINE_END = re.compile(r"\r\n|\r|\n")
_LAST = re.compile(r"[.:]")
_NOQA = re.compile(r"#\s*noqa(:(?P<ids>[\w ,]+))?", re.IGNORECASE)
_DECORATORS = frozenset({"task", "shared_task", "periodic_task"})


@dataclass(frozen=True)
class TaskSource:
    """A task as it is written.

    Attributes:
        name: Its name in the registry.
        function: What it runs.
        task_is: What its body calls the task itself; None where it does not get it.
        wears: The names of all that decorates it.
        options: What is said to ``@app.task``.
        app: The app whose task it is, where that is named and imported.
    """

    name: str
    function: Function
    task_is: str | None
    wears: frozenset[str]
    options: Mapping[str, ast.expr]
    app: Celery | None = None


@dataclass(frozen=True)
class Module:
    """One file.

    Attributes:
        path: Where it is, as it is shown.
        name: Its name when it is imported.
        text: What is written in it.
        tree: The same, parsed.
        registered: The names of the app's tasks whose functions are its own, by what and where these are.
        is_loaded: Whether it was imported.
    """

    path: str
    name: str
    text: str
    tree: ast.Module
    registered: Mapping[tuple[str, int], str]
    is_loaded: bool

    @cached_property
    def lines(self) -> list[str]:
        return _LINE_END.split(self.text)  # as Python's own parser counts them

    @cached_property
    def parents(self) -> dict[ast.AST, ast.AST]:
        """Each node but the file itself, and what it stands in; from the outside to the inside."""
        found: dict[ast.AST, ast.AST] = {}
        waiting: list[ast.AST] = [self.tree]
        for node in waiting:  # it grows meanwhile
            for child in ast.iter_child_nodes(node):
                found[child] = node
                waiting.append(child)
        return found

    @cached_property
    def scopes(self) -> dict[ast.AST, Any]:
        """What was read of its functions and of itself so far, by others."""
        return {}

    @cached_property
    def values(self) -> dict[tuple[ast.AST, ast.AST], ast.expr | None]:
        """What was found that expressions are made by, so far, by others."""
        return {}

    @cached_property
    def attributes(self) -> tuple[ast.Attribute, ...]:
        return tuple(node for node in self.parents if isinstance(node, ast.Attribute))

    @cached_property
    def globals(self) -> frozenset[str]:
        """Variables that a function of it sets from the inside."""
        said = (node for node in self.parents if isinstance(node, ast.Global | ast.Nonlocal))
        return frozenset(name for node in said for name in node.names)

    @cached_property
    def functions(self) -> frozenset[str]:
        """Names that stand for a function of its own, and for nothing else."""
        found = Counter(name for node in self.tree.body for name in _bound_by(node))
        return frozenset(node.name for node in self.tree.body if isinstance(node, Function) and found[node.name] == 1)

    @cached_property
    def mentioned(self) -> frozenset[str]:
        """Names that are used somewhere in it, imported as another one, or the end of a text: ``"shop:OrderTask"``."""
        found: set[str] = set()
        for node in self.parents:
            if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(called(node))
            elif isinstance(node, ast.alias) and node.asname:
                found.add(node.name)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(_LAST.split(node.value)[-1])
        return frozenset(found)

    @cached_property
    def handed_on(self) -> frozenset[str]:
        """Names of what is given to a call, or put into a list or a dict."""
        names = [node for node in self.parents if isinstance(node, ast.Name | ast.Attribute)]
        return frozenset(called(node) for node in names if _is_handed_on(node, self.parents[node]))

    @cached_property
    def classes(self) -> dict[str, ast.ClassDef]:
        return {node.name: node for node in self.tree.body if isinstance(node, ast.ClassDef)}

    @cached_property
    def bodies(self) -> dict[ast.AST, str | None]:
        """The functions of its tasks, and what each calls the task itself."""
        return {one.function: one.task_is for one in self.tasks}

    @cached_property
    def task_names(self) -> dict[str, str]:
        """The names of the tasks that a plain name stands for here: those that are no methods."""
        methods = {one.function for one in self.tasks if isinstance(self.parents.get(one.function), ast.ClassDef)}
        return {one.function.name: one.name for one in self.tasks if one.function not in methods}

    @cached_property
    def calls(self) -> tuple[ast.Call, ...]:
        return tuple(node for node in self.parents if isinstance(node, ast.Call))

    @cached_property
    def tasks(self) -> tuple[TaskSource, ...]:
        return tuple(
            found
            for node in self.parents
            for found in (
                self._decorated(node)
                if isinstance(node, Function)
                else self._of_class(node)
                if isinstance(node, ast.ClassDef)
                else ()
            )
        )

    def _decorated(self, node: Function) -> Iterator[TaskSource]:
        for decorator in node.decorator_list:
            if called(decorator) in _DECORATORS and (self.registered_as(node) or self._is_celerys(decorator)):
                said = decorator.keywords if isinstance(decorator, ast.Call) else []
                options = {word.arg: word.value for word in said if word.arg}
                bound = options.get("bind")
                takes_task = isinstance(bound, ast.Constant) and bound.value is True
                yield TaskSource(
                    name=self.registered_as(node) or self._named(node.name, options.get("name")),
                    function=node,
                    task_is=_first(node) if takes_task else None,
                    wears=frozenset(called(one) for one in node.decorator_list),
                    options=options,
                    app=self._owner_of(decorator),
                )
                return

    def _of_class(self, node: ast.ClassDef) -> Iterator[TaskSource]:
        """The ``run()`` of a class that a task is made of."""
        if not any(called(base).endswith("Task") for base in node.bases) or not self._is_celerys_class(node):
            return
        for function in node.body:
            if isinstance(function, Function) and function.name == "run":
                said = {
                    one.targets[0].id: one.value
                    for one in node.body
                    if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name)
                }
                name = self._named(node.name, said.get("name"))
                yield TaskSource(name, function, _first(function), frozenset(), said)

    def _is_celerys_class(self, node: ast.ClassDef) -> bool:
        """Whether a class is a task of Celery's; others call theirs so, too."""
        made = self.stands(node.name)
        if isinstance(made, type):
            return issubclass(made, Task)
        for base in node.bases:
            if self.whole_name(base).startswith(("celery.", "celery_patterns.")):
                return True
            if isinstance(base, ast.Attribute) and self.app_of(base.value) is not None:
                return True
        return False

    def _is_celerys(self, decorator: ast.expr) -> bool:
        """Whether it is Celery's own; others have a ``task``, too."""
        what = decorator.func if isinstance(decorator, ast.Call) else decorator
        if isinstance(what, ast.Name):
            return self.imported.get(what.id, "").startswith("celery.")
        return self._owner_of(decorator) is not None

    def _owner_of(self, decorator: ast.expr) -> Celery | None:
        what = decorator.func if isinstance(decorator, ast.Call) else decorator
        return self.app_of(what.value) if isinstance(what, ast.Attribute) else None

    def app_of(self, node: ast.expr) -> Celery | None:
        """The app that an expression stands for, where it was imported."""
        module, _, name = self.whole_name(node).rpartition(".")
        found = getattr(sys.modules.get(module), name, None)
        return found if isinstance(found, Celery) else None

    def _named(self, function: str, name: ast.expr | None) -> str:
        given = name.value if isinstance(name, ast.Constant) else None
        return given if isinstance(given, str) else f"{self.name}.{function}"

    def registered_as(self, node: Function) -> str | None:
        """The name of the app's task that is made of a function."""
        return self.registered.get((node.name, first_line(node)))

    def stands(self, name: str) -> Any:
        """What stands under one of its names, where it was imported; None where it was not."""
        module = sys.modules.get(self.name)
        return None if module is None else vars(module).get(name)

    @cached_property
    def imported(self) -> dict[str, str]:
        """What a name stands for that was imported: ``pay`` for ``shop.tasks.pay``."""
        found: dict[str, str] = {}
        # Those of functions, too: a task is often imported where it is sent. The module's own win.
        nodes = [one for one in self.parents if isinstance(one, ast.Import | ast.ImportFrom)]
        for node in sorted(nodes, key=lambda one: self.parents[one] is self.tree):
            if isinstance(node, ast.ImportFrom):
                base = self._base(node)
                found.update({one.asname or one.name: f"{base}.{one.name}" for one in node.names})
            else:
                found.update({one.asname or one.name: one.name for one in node.names})
        return found

    def _base(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = self.name.split(".")
        up = node.level - self.path.endswith("__init__.py")
        return ".".join([*(package[:-up] if up else package), *([node.module] if node.module else [])])

    def whole_name(self, node: ast.expr) -> str:
        """What an expression names: ``tasks.pay`` is ``shop.tasks.pay``, where tasks was imported from shop."""
        if isinstance(node, ast.Name):
            return self.imported.get(node.id, f"{self.name}.{node.id}")
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id not in self.imported:
                return f"{node.value.id}.{node.attr}"
            return f"{self.whole_name(node.value)}.{node.attr}"
        return ""

    def around(self, node: ast.AST) -> Iterator[ast.AST]:
        """What it stands in, from the inside to the outside."""
        while node in self.parents:
            node = self.parents[node]
            yield node

    def function_of(self, node: ast.AST) -> ast.AST | None:
        """The innermost function that it stands in."""
        return next((one for one in self.around(node) if isinstance(one, Function | ast.Lambda)), None)

    def place(self, node: ast.AST) -> str:
        """Its file and line."""
        return f"{self.path}:{getattr(node, 'lineno', 1)}"

    def is_excused(self, node: ast.AST, id_: str) -> bool:
        """Whether its first line or its last one says that this is meant: ``# noqa: CP501``."""
        numbers = (getattr(node, "lineno", 0), getattr(node, "end_lineno", 0) or 0)
        line = "\n".join(self.lines[number - 1] for number in numbers if 0 < number <= len(self.lines))
        found = _NOQA.search(line)
        return found is not None and (found["ids"] is None or id_ in found["ids"].upper().replace(",", " ").split())


def _bound_by(node: ast.stmt) -> list[str]:
    """The names that a statement at the top sets."""
    if isinstance(node, Function | ast.ClassDef):
        return [node.name]
    return [one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)]


def _is_handed_on(node: ast.AST, parent: ast.AST) -> bool:
    if isinstance(parent, ast.Call):
        return parent.func is not node
    return isinstance(parent, ast.keyword | ast.List | ast.Tuple | ast.Set | ast.Dict)


def caught_by(handler: ast.ExceptHandler) -> list[ast.expr]:
    """The kinds of errors that a handler names; none where it catches all."""
    if isinstance(handler.type, ast.Tuple):
        return handler.type.elts
    return [] if handler.type is None else [handler.type]


def asks_for_main(node: ast.AST) -> bool:
    """Whether it is ``if __name__ == "__main__":``."""
    return isinstance(node, ast.If) and "__main__" in ast.dump(node.test)


def first_line(node: Function) -> int:
    """The line at which a function's code begins for Python: its first decorator's."""
    return min([node.lineno, *(one.lineno for one in node.decorator_list)])


def _first(function: Function) -> str | None:
    arguments = [*function.args.posonlyargs, *function.args.args]
    return arguments[0].arg if arguments else None


def called(node: ast.expr) -> str:
    """The last name of a call or of a decorator: ``task`` of ``@app.task(bind=True)``."""
    if isinstance(node, ast.Call):
        return called(node.func)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
