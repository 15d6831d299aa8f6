"""The servers that the tests run against: real ones, started here on free ports, ended by their process id."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import amqp
import psycopg
import redis
from kombu import Connection


def free_port() -> int:
    """A port that nobody listens on, below those that the system gives to outgoing connections.

    A server that is stopped and started again must find its port free still.
    """
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def wait_until(condition: Callable[[], object], seconds: float, what: object) -> object:
    """Poll for a condition; what it gave, once that is true."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)


def program(name: str, package: str, *places: str) -> str:
    """Where a server's program is; an error that says what to install when it is nowhere."""
    for place in (*places, shutil.which(name)):
        if place and os.access(place, os.X_OK):
            return place
    raise RuntimeError(f"{name} is not installed; the tests need it: apt-get install {package}, or `make test`")


class Server:
    """A server process in a folder of its own."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="celery-patterns-"))
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.helpers: list[subprocess.Popen[bytes]] = []
        #: The account that runs it, where that is not ours.
        self._as: dict[str, Any] = {}

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        return os.environ

    def answers(self) -> bool:
        raise NotImplementedError

    def start(self) -> None:
        log = (self.folder / "server.log").open("ab")
        self.process = subprocess.Popen(
            self.command(),
            env=dict(self.environment()),
            stdout=log,
            stderr=log,
            start_new_session=True,
            **self._as,
        )
        wait_until(self._up, 60, f"{type(self).__name__} answers; its log is {self.folder / 'server.log'}")

    def _up(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"{type(self).__name__} ended: {(self.folder / 'server.log').read_text()[-2000:]}")
        return self.answers()

    def send(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the process, and nothing else; what it wrote stays for the next start."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.send_signal(number)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def close(self) -> None:
        self.stop()
        for helper in self.helpers:
            helper.terminate()
            helper.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class RedisServer(Server):
    databases = 4096

    def command(self) -> list[str]:
        return [
            program("redis-server", "redis-server"),
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
            "--dir",
            str(self.folder),
            "--databases",
            str(self.databases),
        ]

    def url(self, database: int = 0) -> str:
        return f"redis://127.0.0.1:{self.port}/{database}"

    def answers(self) -> bool:
        try:
            return bool(redis.Redis(port=self.port, socket_timeout=1).ping())
        except (redis.RedisError, OSError):
            return False


class PostgresServer(Server):
    """PostgreSQL, which refuses to be run by root: the account that its package makes runs it then."""

    def __init__(self) -> None:
        super().__init__()
        self._data = self.folder / "data"
        if os.geteuid() == 0:
            self._as = {"user": "postgres", "group": "postgres"}
            shutil.chown(self.folder, **self._as)

    def command(self) -> list[str]:
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": 200,
            "fsync": "off",  # it is killed with its process here, never with its machine
        }
        return [
            self._program("postgres"),
            "-D",
            str(self._data),
            *(f"--{name}={value}" for name, value in settings.items()),
        ]

    def start(self) -> None:
        if not self._data.exists():
            made = [
                self._program("initdb"),
                "-D",
                str(self._data),
                "-U",
                "tests",
                "-A",
                "trust",
                "--no-sync",
                "-E",
                "UTF8",
            ]
            subprocess.run(
                made, check=True, stdout=subprocess.DEVNULL, cwd=self.folder, env=self.environment(), **self._as
            )
        super().start()

    def stop(self, number: int = signal.SIGINT) -> None:
        """At once by default: its gentle end waits for every client to go."""
        super().stop(number)

    def environment(self) -> Mapping[str, str]:
        return {**os.environ, "LC_ALL": "C"}

    @staticmethod
    def _program(name: str) -> str:
        places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
        return program(name, "postgresql", *map(str, places[-1:]))

    def url(self, database: str = "postgres") -> str:
        return postgres_url(self.port, database)

    def answers(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=1).close()
        except psycopg.OperationalError:
            return False
        return True


def postgres_url(port: int, database: str) -> str:
    return f"postgresql://tests@127.0.0.1:{port}/{database}"


def new_database(port: int) -> str:
    """The URL of an empty database on a PostgreSQL server."""
    name = f"t_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url(port, "postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return postgres_url(port, name)


class RabbitServer(Server):
    def __init__(self) -> None:
        super().__init__()
        self.epmd_port, self.dist_port = free_port(), free_port()

    def command(self) -> list[str]:
        return [program("rabbitmq-server", "rabbitmq-server", "/usr/lib/rabbitmq/bin/rabbitmq-server")]

    def environment(self) -> Mapping[str, str]:
        folder = str(self.folder)
        return {
            **os.environ,
            "HOME": folder,
            "ERL_EPMD_PORT": str(self.epmd_port),
            "RABBITMQ_NODENAME": f"t{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self.dist_port),
            "RABBITMQ_MNESIA_BASE": folder,
            "RABBITMQ_LOG_BASE": folder,
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/plugins",
            "RABBITMQ_CONFIG_FILE": f"{folder}/none",
            # Only the name service that was started above: a daemon of Erlang's own would stay.
            "ERL_AFLAGS": "-start_epmd false",
            # Two schedulers that do not spin: the tests need the two cores themselves.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
        }

    def start(self) -> None:
        if not self.helpers:
            (self.folder / "plugins").write_text("[].\n")
            # Erlang would start this name service as a daemon that nobody ends.
            self.helpers.append(
                subprocess.Popen(
                    [program("epmd", "rabbitmq-server"), "-port", str(self.epmd_port), "-address", "127.0.0.1"],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
        super().start()

    def stop(self, number: int = signal.SIGTERM) -> None:
        # The script is the parent of the real server: both are ours, and a SIGKILL must reach the server.
        children = [] if self.process is None else _children(self.process.pid)
        super().stop(number)
        for pid in children:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
            wait_until(lambda pid=pid: not _alive(pid), 30, f"rabbitmq process {pid} ends")

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def answers(self) -> bool:
        try:
            with amqp.Connection(f"127.0.0.1:{self.port}", connect_timeout=1):
                return True
        except (OSError, amqp.AMQPError):
            return False


def queue_length(url: str, name: str) -> int:
    """How many messages stand in a queue of RabbitMQ's."""
    with Connection(url) as connection:
        return int(connection.default_channel.queue_declare(queue=name, passive=True).message_count)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            if parent == pid:
                found += [int(entry.name), *_children(int(entry.name))]
    return found


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
