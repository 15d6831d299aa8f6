"""Every Python example in the README, the documentation and the docstrings is run, as it stands and from top to bottom."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from doctest import ELLIPSIS
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import structlog
from celery import Celery, _state, signals
from celery.contrib.testing.worker import start_worker
from kombu.asynchronous import set_event_loop
from sybil import Document
from sybil.document import PythonDocStringDocument
from sybil.parsers import myst, rest

import celery_patterns as patterns
from celery_patterns._letter import REASONS

from .servers import wait_until

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts),
]
SOURCES = sorted((ROOT / "src").rglob("*.py"))

#: The server that the examples name. Here it is another one, which the tests started.
LOCAL = re.compile(r"redis://localhost:6379/\d")
LOCAL_SQL = re.compile(r"postgresql(\+psycopg)?://localhost/shop")
FENCE = re.compile(r"^```python\n", re.MULTILINE)

MARKDOWN = (myst.PythonCodeBlockParser(doctest_optionflags=ELLIPSIS),)
DOCSTRING = (rest.PythonCodeBlockParser(), rest.DocTestParser(optionflags=ELLIPSIS))


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def _parsed(
    path: Path, database: str = "redis://localhost:6379/0", postgres: str = "postgresql://localhost/shop"
) -> Document:
    text = LOCAL.sub(database, path.read_text(encoding="utf-8"))
    text = LOCAL_SQL.sub(lambda found: postgres.replace(":", f"{found[1] or ''}:", 1), text)
    document = Document(text, str(path))
    for parser in MARKDOWN:
        for region in parser(document):
            document.add(region)
    return document


class Stage:
    """What the invisible blocks of a page may use: a worker in a thread of this process."""

    def __init__(self, database: str) -> None:
        self.database = database
        self.workers = ExitStack()
        self.known = set(_state._on_app_finalizers)
        self.modules: list[str] = []

    def importable(self, name: str, *values: Any) -> None:
        """Let what a page has defined be imported, as if it stood in a file: pickle and result backends want that."""
        module = sys.modules[name] = ModuleType(name)
        self.modules.append(name)
        for value in values:
            setattr(module, value.__name__, value)

    def serve(self, app: Celery) -> None:
        """Start a real worker for the app; it knows the tasks that are defined by now, and takes the place of another."""
        self.workers.close()
        set_event_loop(None)  # kombu 5.5 would give this worker the timer of the one before, which has stopped
        self.workers.enter_context(
            start_worker(app, pool="solo", perform_ping_check=False, loglevel="INFO", shutdown_timeout=60.0)
        )

    def start_over(self) -> Celery:
        """Stop the workers, and forget the tasks that the page has defined so far: they are about to be defined again."""
        self.workers.close()
        _state._on_app_finalizers.intersection_update(self.known)
        app = Celery("shop", broker=self.database, backend=self.database)
        patterns.equip(app, store=self.database)
        return app


@pytest.fixture
def stage(database: str) -> Iterator[Stage]:
    """A stage, and everything that a page can change in this process as it was before."""
    root = logging.getLogger()
    kept_logging = root.handlers[:], root.level
    kept_apps = _state.default_app, _state._tls.current_app
    kept_receivers = list(signals.setup_logging.receivers or ())
    made = Stage(database)
    try:
        yield made
    finally:
        made.workers.close()
        for name in made.modules:
            del sys.modules[name]
        _state._on_app_finalizers.intersection_update(made.known)
        root.handlers[:], root.level = kept_logging
        _state.default_app, _state._tls.current_app = kept_apps
        signals.setup_logging.receivers = kept_receivers
        signals.setup_logging.sender_receivers_cache.clear()
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_the_examples_of_a_page(page: Path, stage: Stage, request: pytest.FixtureRequest) -> None:
    """A page's examples share one namespace, and each gives what the page says."""
    in_sql = LOCAL_SQL.search(page.read_text(encoding="utf-8"))
    document = _parsed(page, stage.database, *([request.getfixturevalue("postgres")] if in_sql else []))
    document.namespace.update(
        __name__="shop", serve=stage.serve, start_over=stage.start_over, importable=stage.importable
    )
    for example in document.examples():
        example.evaluate()


@pytest.mark.parametrize("source", SOURCES, ids=_name)
def test_the_examples_of_a_module(source: Path, stage: Stage) -> None:
    """An example in a docstring is run like one on a page."""
    document = PythonDocStringDocument.parse(str(source), *DOCSTRING)
    for example in document.examples():
        example.evaluate()


def test_no_example_is_left_out() -> None:
    """Each Python block of each page is one that the tests above run."""
    for page in PAGES:
        document = _parsed(page)
        starts = [region.start for _, region in document.regions]
        for fence in FENCE.finditer(document.text):
            end = document.text.index("\n```", fence.end())
            assert any(fence.start() <= start < end for start in starts), (_name(page), fence.start())
        assert "skip: next" not in document.text, _name(page)


def test_the_readmes_example_works_when_pasted(database: str, tmp_path: Path) -> None:
    """The first block of the README is a file that a worker and a sender run as it is."""
    text = _read("README.md")
    start = FENCE.search(text)
    assert start is not None
    pasted = text[start.end() : text.index("\n```", start.end())]
    (tmp_path / "shop.py").write_text(LOCAL.sub(database, pasted) + "\n", encoding="utf-8")
    log = tmp_path / "worker.log"
    with log.open("ab") as stream:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "shop", "worker", "-l", "INFO", "-c", "1"],
            cwd=tmp_path,
            stdout=stream,
            stderr=stream,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
    try:
        for _ in range(2):
            subprocess.run([sys.executable, "shop.py"], cwd=tmp_path, check=True, timeout=60)
        wait_until(lambda: log.read_text().count('"event":"task_succeeded"') == 2, 60, "both messages are done")
        assert '"event":"duplicate_returned"' in log.read_text()
    finally:
        worker.terminate()
        worker.wait(30)


def _rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its first two lines."""
    heading = heading if heading.startswith("#") else f"## {heading}"
    section = _read(page).split(f"\n{heading}\n", 1)[1].split("\n## ", 1)[0]
    table = section[section.index("\n|") + 1 :].split("\n\n", 1)[0]
    lines = table.splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize(
    ("page", "heading", "pattern"),
    [
        ("docs/patterns/retry.md", "## Options", patterns.retry),
        ("docs/patterns/idempotent.md", "## Options", patterns.idempotent),
        ("docs/patterns/dead-letter.md", "## Options", patterns.dead_letter),
        ("docs/patterns/logged.md", "## Options", patterns.logged),
        ("docs/stores.md", "## Options", patterns.stores.RedisStore),
        ("docs/stores.md", "### Options of SQLStore", patterns.stores.SQLStore),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_options_of_a_page_are_those_of_the_code(page: str, heading: str, pattern: Callable[..., Any]) -> None:
    """A table of options names each option of the pattern, and no other."""
    assert [row[0].strip("`*") for row in _rows(page, heading)] == list(inspect.signature(pattern).parameters)


def test_the_events_of_the_page_are_those_of_the_code() -> None:
    """The page on logs lists each event that the library emits, at the level it has."""
    code = "\n".join(source.read_text(encoding="utf-8") for source in SOURCES)
    emitted = set(re.findall(r'(?:emit\(\s*|announce\(\s*|_close\(.*?)logging\.([A-Z]+),\s*"(\w+)"', code))
    listed = {(row[1], row[0].strip("`")) for row in _rows("docs/patterns/logged.md", "Every event")}
    assert listed == emitted


def test_the_fields_of_a_letter_are_those_of_the_code() -> None:
    """The page on the format lists each field of a letter, and each reason that its docstring has."""
    listed = [row[0].strip("`") for row in _rows("docs/letter-format.md", "The fields")]
    assert listed == [field.name for field in dataclasses.fields(patterns.Letter)]
    reasons = [row[0].strip("`") for row in _rows("docs/letter-format.md", "The reasons")]
    told = (patterns.Letter.__doc__ or "").split("reason: ", 1)[1].split("error: ", 1)[0]
    assert set(reasons) == set(re.findall(r"``(\w+)``", told)) == REASONS


def test_every_public_name_stands_in_the_reference() -> None:
    """The reference has what the shop window, the exceptions, the types and the stores show."""
    reference = _read("docs/reference.md")
    named = set(re.findall(r"(?:autoclass|autofunction|autoexception|data):: (?:\w+\.)*(\w+)", reference))
    modules = {"exceptions", "stores", "typing"}
    assert set(patterns.__all__) - modules <= named
    for module in (patterns.exceptions, patterns.typing):
        assert set(module.__all__) <= named | {"Answer"}, module.__name__
    assert {"MemoryStore", "RedisStore", "SQLStore"} <= named
