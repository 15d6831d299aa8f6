"""The user's source as it is written: its modules, the tasks in them, and what a name stands for. Nothing is imported."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..exceptions import ConfigurationError

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Function", "Module", "TaskSource", "called", "read_source"]

Function = ast.FunctionDef | ast.AsyncFunctionDef

#: Folders in which nothing of the app's runs in production.
_LEFT_OUT = frozenset({"tests", "test", "migrations", "node_modules", "site-packages", "dist-packages", "__pycache__"})
_DECORATORS = frozenset({"task", "shared_task", "periodic_task"})
#: So many files are read at most.
_MOST = 5_000


@dataclass(frozen=True)
class TaskSource:
    """A task as it is written.

    Attributes:
        name: Its name in the registry.
        function: What it runs.
        takes_task: Whether its first argument is the task itself.
        wears: The names of all that decorates it.
        options: What is said to ``@app.task``.
    """

    name: str
    function: Function
    takes_task: bool
    wears: frozenset[str]
    options: dict[str, ast.expr]


@dataclass(frozen=True)
class Module:
    """One file.

    Attributes:
        path: Where it is, as it is shown.
        name: Its name when it is imported.
        text: What is written in it.
        tree: The same, parsed.
        registered: Which of its functions the app knows as tasks, and by which names.
    """

    path: str
    name: str
    text: str
    tree: ast.Module
    registered: Mapping[str, str]

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
        return tuple(self._tasks())

    def _tasks(self) -> Iterator[TaskSource]:
        for node in ast.walk(self.tree):
            if not isinstance(node, Function):
                continue
            for decorator in node.decorator_list:
                if called(decorator) in _DECORATORS:
                    said = decorator.keywords if isinstance(decorator, ast.Call) else []
                    options = {word.arg: word.value for word in said if word.arg}
                    bound = options.get("bind")
                    yield TaskSource(
                        name=self.registered.get(node.name) or self._named(node, options.get("name")),
                        function=node,
                        takes_task=isinstance(bound, ast.Constant) and bound.value is True,
                        wears=frozenset(called(one) for one in node.decorator_list),
                        options=options,
                    )

    def _named(self, function: Function, name: ast.expr | None) -> str:
        given = name.value if isinstance(name, ast.Constant) else None
        return given if isinstance(given, str) else f"{self.name}.{function.name}"

    @cached_property
    def imported(self) -> dict[str, str]:
        """What a name stands for that was imported: ``pay`` for ``shop.tasks.pay``."""
        found: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom):
                base = self._base(node)
                found.update({one.asname or one.name: f"{base}.{one.name}" for one in node.names})
            elif isinstance(node, ast.Import):
                found.update({one.asname: one.name for one in node.names if one.asname})
        return found

    def _base(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = self.name.split(".")[: -node.level if not self.path.endswith("__init__.py") else None]
        if self.path.endswith("__init__.py") and node.level > 1:
            package = self.name.split(".")[: 1 - node.level]
        return ".".join([*package, *([node.module] if node.module else [])])

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


def called(node: ast.expr) -> str:
    """The last name of a call or of a decorator: ``task`` of ``@app.task(bind=True)``."""
    if isinstance(node, ast.Call):
        return called(node.func)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def read_source(app: Celery, named: Iterable[Path] | None) -> tuple[Module, ...]:
    """Read the files that are named; without any, the packages in which the app and its tasks are written.

    Raises:
        ConfigurationError: When a named one is not there, or no Python.
    """
    modules: dict[Path, Module] = {}
    registered = _registered(app)
    for root, file in _files_of(app) if named is None else _files(named):
        if len(modules) >= _MOST:
            break
        if file not in modules:
            module = _read(root, file, registered.get(file, {}))
            if module is not None:
                modules[file] = module
            elif named is not None:
                raise ConfigurationError(f"{file} cannot be read as Python")
    return tuple(modules.values())


def _registered(app: Celery) -> dict[Path, dict[str, str]]:
    """The app's tasks, by the file and the name of their functions."""
    found: dict[Path, dict[str, str]] = {}
    for name, task in app.tasks.items():
        code = getattr(inspect.unwrap(task.run), "__code__", None)
        if code is not None and not name.startswith("celery."):
            found.setdefault(Path(code.co_filename).resolve(), {})[code.co_name] = name
    return found


def _read(root: Path, file: Path, registered: Mapping[str, str]) -> Module | None:
    try:
        text = file.read_text()
        tree = ast.parse(text)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None
    inside = file.relative_to(root).with_suffix("")
    parts = inside.parts[:-1] if inside.name == "__init__" else inside.parts
    return Module(_shown(file), ".".join(parts), text, tree, registered)


def _shown(file: Path) -> str:
    try:
        return str(file.relative_to(Path.cwd()))
    except ValueError:
        return str(file)


def _files(named: Iterable[Path]) -> Iterator[tuple[Path, Path]]:
    for one in named:
        path = one.resolve()
        if not path.exists():
            raise ConfigurationError(f"there is no {one}; expected a file of Python's, or a folder")
        root = _root_of(path)
        for file in [path] if path.is_file() else _inside(path):
            yield root, file


def _files_of(app: Celery) -> Iterator[tuple[Path, Path]]:
    names = {str(task.__module__) for name, task in app.tasks.items() if not name.startswith("celery.")}
    for name in sorted({*names, str(app.main or "")}):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is None or not _LEFT_OUT.isdisjoint(Path(file).parts[:-1]):
            continue
        path = Path(file).resolve()
        root = _root_of(path)
        top = root / path.relative_to(root).parts[0]
        # Of a module that stands alone those beside it that are imported, too: its folder may be anything's.
        beside = [one for one in root.glob("*.py") if one.stem in sys.modules] if top.is_file() else _inside(top)
        for one in beside:
            yield root, one


def _root_of(path: Path) -> Path:
    """The folder from which a file is imported."""
    folder = path.parent if path.is_file() else path
    while (folder / "__init__.py").exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _inside(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*.py")):
        inside = file.relative_to(folder).parts[:-1]
        if _LEFT_OUT.isdisjoint(inside) and not any(part.startswith(".") for part in inside):
            yield file
