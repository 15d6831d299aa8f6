"""The house: imports point down, rooms have no doors, foreign imports are fenced, the window is complete."""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import celery_patterns

SOURCE = Path(__file__).resolve().parent.parent / "src" / "celery_patterns"

#: From the bottom to the top. A module may import from lower floors, and from its own floor where there are walls to share.
FLOORS: list[set[str]] = [
    {"exceptions", "typing"},
    {
        *("_body", "_call", "_message", "_received", "_header_values", "_history"),
        *("_codec", "_keys", "_lines", "_events", "_publish", "_queues", "_frame", "_waits"),
        "_edition",
    },
    {"stores", "_aftermath", "_equipment", "_plan", "_republish", "_letter", "_envelope", "_x_death", "_bury"},
    {"_retry", "_idempotent", "_dead_letter", "_logged", "_strict_json"},
    {"_fit", "_sending", "_slots", "_task", "letters", "worker", "_app", "doctor"},
    {"cli"},
    {"__init__"},
]
#: What only these modules may import.
FENCED = {
    "tenacity": {"_retry", "_waits"},
    "redis": {"stores", "letters", "doctor"},
    "structlog": {"_events", "_logged"},
    "orjson": {"_codec", "_lines"},
    "amqp": {"_queues", "doctor"},
    "sqlalchemy": {"stores", "doctor"},
    "pydantic": set(),
    "pickle": set(),
}
#: Pure: neither the task nor the app nor a worker is touched here.
WITHOUT_CELERY = {
    *("exceptions", "typing", "_message", "_received", "_header_values", "_history"),
    *("_codec", "_keys", "_lines", "_events", "_publish", "_queues", "_frame"),
    *("_equipment", "stores"),
}

ROOMS = FLOORS[3]


def modules() -> dict[Path, str]:
    return {path: path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in sorted(SOURCE.rglob("*.py"))}


def imports(path: Path) -> list[tuple[str, bool, bool]]:
    """Each import of a file: the module (ours without the package), whether it is ours, whether it is for types only."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name.split(".")[0], False, id(node) in typing_only) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append(((node.module or "").split(".")[0], False, id(node) in typing_only))
        elif isinstance(node, ast.ImportFrom):
            depth = len(path.relative_to(SOURCE).parts) - node.level
            package = path.relative_to(SOURCE).parts[:depth]
            names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            found += [((package[0] if package else name), True, id(node) in typing_only) for name in names]
    return found


def floor_of(module: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if module in floor)


@pytest.mark.parametrize(
    ("path", "module"), modules().items(), ids=lambda value: value if isinstance(value, str) else value.name
)
def test_imports_point_down(path: Path, module: str) -> None:
    """No module imports from a higher floor, rooms never import each other, and every module has a floor."""
    for name, ours, _ in imports(path):
        if not ours or name == module:
            continue
        assert floor_of(name) <= floor_of(module), f"{module} imports {name}, which stands above it"
        assert not (module in ROOMS and name in ROOMS), f"{module} has a door to {name}"


@pytest.mark.parametrize(
    ("path", "module"), modules().items(), ids=lambda value: value if isinstance(value, str) else value.name
)
def test_foreign_imports_are_fenced(path: Path, module: str) -> None:
    """One engine, one room; and the lower floors know no Celery, except for types."""
    for name, ours, typing_only in imports(path):
        if ours or typing_only:
            continue
        assert name not in FENCED or module in FENCED[name], f"{module} imports {name}"
        assert not (name == "celery" and module in WITHOUT_CELERY), f"{module} imports celery"


def test_no_module_imports_us_inside_a_function() -> None:
    """A hidden import is a hidden cycle."""
    for path in modules():
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                assert not [n for n in ast.walk(function) if isinstance(n, ast.ImportFrom) and n.level], path


def test_there_are_no_cycles() -> None:
    """Within a floor, too, the arrows go one way."""
    edges: dict[str, set[str]] = {}
    for path, module in modules().items():
        edges.setdefault(module, set()).update(
            name for name, ours, typing_only in imports(path) if ours and not typing_only and name != module
        )
    done: set[str] = set()
    while edges.keys() - done:
        free = {module for module in edges.keys() - done if edges[module] <= done}
        assert free, f"a cycle among {sorted(edges.keys() - done)}"
        done |= free


def test_the_shop_window_is_sorted_and_true() -> None:
    """``__all__`` is sorted, every name is there, and none is also the name of a private module's file."""
    assert list(celery_patterns.__all__) == sorted(celery_patterns.__all__)
    for name in celery_patterns.__all__:
        assert hasattr(celery_patterns, name)
    files = {module.name for module in pkgutil.iter_modules(celery_patterns.__path__)}
    public = {name for name in celery_patterns.__all__ if name not in ("exceptions", "stores", "typing")}
    assert not public & files


def test_every_public_name_is_documented() -> None:
    """What can be imported from the window, and every public method of it, has a docstring."""
    for name in celery_patterns.__all__:
        thing = getattr(celery_patterns, name)
        if name == "task_dead_lettered":
            continue
        assert thing.__doc__, name
        for attribute, member in vars(thing).items() if isinstance(thing, type) else ():
            if (
                callable(member)
                and not attribute.startswith("_")
                and name not in ("retry", "idempotent", "dead_letter", "logged", "without", "Pattern")
            ):
                assert member.__doc__, f"{name}.{attribute}"


def test_every_module_says_what_it_is() -> None:
    """The first sentence of a file is its reason."""
    for path in modules():
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_importing_us_is_light() -> None:
    """A producer does not load the worker, the result backends or a test library with us."""
    import subprocess
    import sys

    code = (
        "import sys, celery_patterns;"
        "bad = [n for n in sys.modules if n.startswith(('celery.worker', 'celery.concurrency', 'celery.backends.redis', 'pytest'))];"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name", [info.name for info in pkgutil.walk_packages(celery_patterns.__path__, "celery_patterns.")]
)
def test_a_module_can_be_imported_first(name: str) -> None:
    """No module needs another one to have been imported before it."""
    code = f"import {name}, sys; sys.exit(0 if '{name}' in sys.modules else 1)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
