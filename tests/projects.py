"""A user's project: a module in a folder of its own, its app, and workers that the user starts."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from string import Template
from typing import Any

from celery import _state

from celery_patterns.doctor import Examination, examine

from .harness import ROOT
from .servers import _children, wait_until

#: A machine whose clock is wrong: Python reads this file as it starts.
CLOCK = """
import os
import time

ahead = float(os.environ.get("CLOCK_AHEAD", "0"))
if ahead:
    right = time.time
    time.time = lambda: right() + ahead
"""


class Started:
    """A ``celery`` command that goes on: a worker, or beat."""

    def __init__(self, project: Project, module: str, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
        self.log = project.folder / f"{uuid.uuid4().hex[:6]}.log"
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", module, *arguments],
                cwd=project.folder,
                env={**project.environment, **environment},
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_ready(self) -> Started:
        wait_until(lambda: " ready." in self.text() or self._ended(), 60, "the worker is ready")
        return self

    def _ended(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"it ended with {self.process.returncode}:\n{self.text()[-3000:]}")
        return False

    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        pids = _children(self.process.pid)
        self.process.kill()
        self.process.wait()
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


class Project:
    """One project.

    Args:
        folder: Where it is written.
        source: Its text, with ``$broker``, ``$backend``, ``$store``, ``$queue`` and ``$name`` in it; or several files.
        values: What these are.
    """

    def __init__(self, folder: Path, source: str | dict[str, str], values: dict[str, str]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.values = values
        self.name = f"proj_{uuid.uuid4().hex[:8]}"
        self.marks_file = folder / "marks"
        values["name"] = self.name
        (folder / "sitecustomize.py").write_text(CLOCK)
        files = {"NAME.py": source} if isinstance(source, str) else source
        for path, text in files.items():
            file = folder / path.replace("NAME", self.name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(Template(text).safe_substitute(values))
        path = os.pathsep.join((str(folder), str(ROOT)))
        self.environment = {**os.environ, "PYTHONPATH": path, "PROJECT_MARKS": str(self.marks_file)}
        #: What its workers are started with: ``w``, ``w:old`` for the module's older self, ``w+TIMEOUT=2`` in another environment.
        self.workers: tuple[tuple[str, ...], ...] = ()
        self._started: list[Started] = []
        self._app: Any = None
        self._finalizers = set(_state._on_app_finalizers)
        self._current = _state.default_app, getattr(_state._tls, "current_app", None)

    @property
    def app(self) -> Any:
        """Its app, imported here."""
        if self._app is None:
            os.environ["PROJECT_MARKS"] = str(self.marks_file)
            sys.path.insert(0, str(self.folder))
            try:
                self._app = importlib.import_module(self.name).app
                self._app.loader.import_default_modules()
                self._app.finalize()
            finally:
                sys.path.remove(str(self.folder))
        return self._app

    def task(self, name: str) -> Any:
        return self.app.tasks[f"{self.name}.{name}"]

    def send(self, name: str, *args: Any, **options: Any) -> Any:
        return self.task(name).apply_async(args, **options)

    def call(self, name: str, *args: Any) -> Any:
        """Call a function of its module, as a view of the user's does."""
        assert self.app
        return getattr(sys.modules[self.name], name)(*args)

    def wait(self, condition: Any, seconds: float, what: object) -> object:
        return wait_until(condition, seconds, what)

    def examine(self, **how: Any) -> Examination:
        return examine(self.app, **how)

    def start(self, *arguments: str, module: str | None = None, **environment: str) -> Started:
        started = Started(self, module or self.name, arguments, environment)
        self._started.append(started)
        return started

    def worker(
        self,
        *arguments: str,
        name: str = "w",
        concurrency: int = 1,
        module: str | None = None,
        ready: bool = True,
        **environment: str,
    ) -> Started:
        name, _, setting = name.partition("+")
        name, _, older = name.partition(":")
        if setting:
            key, _, value = Template(setting).safe_substitute(self.values).partition("=")
            before = f"{os.pathsep}{self.environment['PYTHONPATH']}" if key == "PYTHONPATH" else ""
            environment = {**environment, key: f"{value}{before}"}
        if older:
            module = f"{self.name}_{older}"
        arguments = tuple(Template(one).safe_substitute(self.values) for one in arguments)
        more = () if "-Q" in arguments else ("-Q", self.values["queue"])
        quiet = () if "--gossip" in arguments else ("--without-gossip",)
        said = tuple(one for one in arguments if one != "--gossip")
        started = self.start(
            *("worker", "-n", f"{name}@localhost", "-c", str(concurrency), "-l", "INFO"),
            *(*quiet, "--without-mingle", *more, *said),
            module=module,
            **environment,
        )
        return started.wait_ready() if ready else started

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A ``celery`` command, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "celery", "-A", self.name, *arguments],
            cwd=self.folder,
            env={**self.environment, "COLUMNS": "80"},
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def marks(self) -> list[str]:
        return self.marks_file.read_text().splitlines() if self.marks_file.exists() else []

    def marked(self, what: str, seconds: float = 20.0, times: int = 1) -> bool:
        """Whether it is marked so often, within the time."""
        deadline = time.monotonic() + seconds
        while self.marks().count(what) < times:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def logs(self) -> str:
        return "\n".join(one.text()[-4000:] for one in self._started)

    def close(self) -> None:
        for one in self._started:
            if one.alive():
                one.kill()
        if self._app is not None:
            self._app.close()
        for name in [name for name in sys.modules if name == self.name or name.startswith(f"{self.name}.")]:
            del sys.modules[name]
        # A task is shared by default: it would be in each app that is finalized in this process.
        _state._on_app_finalizers.intersection_update(self._finalizers)
        _state.default_app, _state._tls.current_app = self._current


def doctor_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The doctor's command, for the app that stands in ``proj.py`` there."""
    return patterns_in(folder, "doctor", *arguments)


def patterns_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of ours, for the app that stands in ``proj.py`` there."""
    return subprocess.run(
        [sys.executable, "-m", "celery", "-A", "proj", "patterns", *arguments],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
    )
