"""One file of the user's as it is written: the tasks in it, and what a name in it stands for. Nothing is imported."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from celery import Celery

__all__ = ["Function", "Module", "TaskSource", "called"]

Function = ast.FunctionDef | ast.AsyncFunctionDef

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
    """

    name: str
    function: Function
    task_is: str | None
    wears: frozenset[str]
    options: Mapping[str, ast.expr]


@dataclass(frozen=True)
class Module:
    """One file.

    Attributes:
        path: Where it is, as it is shown.
        name: Its name when it is imported.
        text: What is written in it.
        tree: The same, parsed.
        registered: Which of its functions the app knows as tasks, and by which names.
        is_loaded: Whether it was imported.
    """

    path: str
    name: str
    text: str
    tree: ast.Module
    registered: Mapping[str, str]
    is_loaded: bool

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @cached_property
    def parents(self) -> dict[ast.AST, ast.AST]:
        return {child: parent for parent in ast.walk(self.tree) for child in ast.iter_child_nodes(parent)}

    @cached_property
    def calls(self) -> tuple[ast.Call, ...]:
        return tuple(node for node in ast.walk(self.tree) if isinstance(node, ast.Call))

    @cached_property
    def tasks(self) -> tuple[TaskSource, ...]:
        return tuple(
            found
            for node in ast.walk(self.tree)
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
            if called(decorator) in _DECORATORS and (node.name in self.registered or self._is_celerys(decorator)):
                said = decorator.keywords if isinstance(decorator, ast.Call) else []
                options = {word.arg: word.value for word in said if word.arg}
                bound = options.get("bind")
                takes_task = isinstance(bound, ast.Constant) and bound.value is True
                yield TaskSource(
                    name=self.registered.get(node.name) or self._named(node.name, options.get("name")),
                    function=node,
                    task_is=_first(node) if takes_task else None,
                    wears=frozenset(called(one) for one in node.decorator_list),
                    options=options,
                )

    def _of_class(self, node: ast.ClassDef) -> Iterator[TaskSource]:
        """The ``run()`` of a class that a task is made of."""
        if not any(called(base).endswith("Task") for base in node.bases):
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

    def _is_celerys(self, decorator: ast.expr) -> bool:
        """Whether it is Celery's own; others have a ``task``, too."""
        what = decorator.func if isinstance(decorator, ast.Call) else decorator
        if isinstance(what, ast.Name):
            return self.imported.get(what.id, "").startswith("celery.")
        if not isinstance(what, ast.Attribute):
            return False
        module, _, name = self.whole_name(what.value).rpartition(".")
        found = getattr(sys.modules.get(module), name, None)
        return isinstance(found, Celery)

    def _named(self, function: str, name: ast.expr | None) -> str:
        given = name.value if isinstance(name, ast.Constant) else None
        return given if isinstance(given, str) else f"{self.name}.{function}"

    @cached_property
    def imported(self) -> dict[str, str]:
        """What a name stands for that was imported: ``pay`` for ``shop.tasks.pay``."""
        found: dict[str, str] = {}
        # Those of functions, too: a task is often imported where it is sent. The module's own win.
        nodes = [one for one in ast.walk(self.tree) if isinstance(one, ast.Import | ast.ImportFrom)]
        for node in sorted(nodes, key=lambda one: one in self.tree.body):
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

    def place(self, node: ast.AST) -> str:
        """Its file and line."""
        return f"{self.path}:{getattr(node, 'lineno', 1)}"

    def is_excused(self, node: ast.AST, id_: str) -> bool:
        """Whether its line says that this is meant: ``# noqa: CP501``."""
        number = getattr(node, "lineno", 0)
        line = self.lines[number - 1] if 0 < number <= len(self.lines) else ""
        comment = line.rpartition("# noqa:")[2] if "# noqa:" in line else ""
        return id_ in comment.replace(",", " ").split()


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
