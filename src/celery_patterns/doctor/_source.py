"""Which files are read: the packages in which the app's tasks are written, or those that are named."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import tokenize
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..exceptions import ConfigurationError
from ._module import Module

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["read_source"]

#: Folders and files in which nothing of the app's runs in production.
_LEFT_OUT = frozenset({"tests", "test", "migrations", "node_modules", "__pycache__"})
_TESTS = re.compile(r"test_|tests\.|conftest\.|.*_test\.py$")
#: Where others' packages are.
_INSTALLED = frozenset({"site-packages", "dist-packages"})
#: So many files are read at most.
_MOST = 5_000


def read_source(app: Celery, named: Iterable[Path] | None, unread: list[str]) -> tuple[Module, ...]:
    """Read the files that are named; without any, the packages in which the app's tasks are written.

    Args:
        app: The app, with its tasks imported.
        named: Files and folders.
        unread: Those that could not be read are added here.

    Raises:
        ConfigurationError: When a named one is not there.
    """
    modules: dict[Path, Module] = {}
    registered = _registered(app)
    loaded = {str(getattr(one, "__file__", "")) for one in list(sys.modules.values())}
    for root, file in _files_of(app) if named is None else _files(named):
        if file in modules:
            continue
        if len(modules) >= _MOST:
            unread.append(f"more than {_MOST:,} files of source")
            break
        try:
            modules[file] = _read(root, file, registered.get(file, {}), str(file) in loaded)
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
            unread.append(f"{_shown(file)}{line}, which cannot be read as Python ({type(error).__name__})")
    return tuple(modules.values())


def _registered(app: Celery) -> dict[Path, dict[tuple[str, int], str]]:
    """The app's tasks, by the file, the name and the first line of their functions."""
    found: dict[Path, dict[tuple[str, int], str]] = {}
    for name, task in app.tasks.items():
        code = getattr(inspect.unwrap(task.run), "__code__", None)
        if code is not None and not name.startswith("celery.") and code.co_name != "run":
            found.setdefault(Path(code.co_filename).resolve(), {})[code.co_name, code.co_firstlineno] = name
    return found


def _read(root: Path, file: Path, registered: Mapping[tuple[str, int], str], is_loaded: bool) -> Module:
    with tokenize.open(file) as stream:  # in the encoding that the file itself says
        text = stream.read()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Python thinks of the user's backslashes
        tree = ast.parse(text)
    inside = file.relative_to(root).with_suffix("")
    parts = inside.parts[:-1] if inside.name == "__init__" else inside.parts
    return Module(_shown(file), ".".join(parts), text, tree, registered, is_loaded)


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
    files = [getattr(sys.modules.get(name), "__file__", None) for name in sorted({*names, str(app.main or "")})]
    paths = [Path(file).resolve() for file in files if file is not None]
    own = [path for path in paths if _INSTALLED.isdisjoint(path.parts)]
    for path in own or paths:  # an app that is installed itself is read there
        root = _root_of(path)
        top = root / path.relative_to(root).parts[0]
        # Beside a module that stands alone its project stands, in the folder in which the command was called: another one
        # may be anything's, and those are read there that were imported.
        if not top.is_file():
            beside = _inside(top)
        elif root == Path.cwd():
            beside = (one for one in sorted(root.glob("*.py")) if not _TESTS.match(one.name))
        else:
            beside = (one for one in sorted(root.glob("*.py")) if one.stem in sys.modules)
        for one in beside:
            yield root, one


def _root_of(path: Path) -> Path:
    """The folder from which a file is imported."""
    folder = path.parent if path.is_file() else path
    while (folder / "__init__.py").exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _inside(folder: Path) -> Iterator[Path]:
    environments = [one.parent for one in folder.rglob("pyvenv.cfg")]
    for file in sorted(folder.rglob("*.py")):
        inside = file.relative_to(folder).parts[:-1]
        left_out = not (_LEFT_OUT | _INSTALLED).isdisjoint(inside) or any(part.startswith(".") for part in inside)
        left_out = left_out or any(file.is_relative_to(one) for one in environments)
        if not left_out and not _TESTS.match(file.name):
            yield file
