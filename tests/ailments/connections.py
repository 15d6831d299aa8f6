"""CP1: each cause of a connection that fails, and each door that stands open."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import threading
import time
from typing import Any

import redis

from celery_patterns._equipment import equipment_of
from celery_patterns.exceptions import StoreUnavailable
from celery_patterns.typing import Attempt

from ..projects import Project
from ._ailment import EQUIPPED, HEAD, Ailment, _outcome, cannot_read, cannot_send

WORK = "\n\n@app.task\ndef work(text: str = 'a') -> str:\n    mark('worked')\n    return text\n"
PLAIN = HEAD + WORK


def _broker(url: str) -> str:
    return PLAIN.replace('broker="$broker"', f'broker="{url}"')


def _backend(url: str) -> str:
    return PLAIN.replace('backend="$backend"', f'backend="{url}"')


def _anybody_reads(project: Project) -> bool:
    """Whether a stranger without a password reads the arguments of what is queued."""
    project.send("work", "a secret", ignore_result=True)
    with contextlib.closing(redis.Redis(port=int(project.app.connection_for_write().port))) as stranger:
        try:
            return b"argsrepr" in stranger.lrange(project.values["queue"], 0, -1)[0]
        except redis.AuthenticationError:
            return False


def _everybody_logs_in(project: Project) -> bool:
    """Whether a stranger who tries the first account reads what is queued."""
    project.send("work", "a secret", ignore_result=True)
    port = int(project.app.connection_for_write().port)
    with contextlib.closing(redis.Redis(port=port, username="admin", password="admin")) as stranger:
        try:
            return b"argsrepr" in stranger.lrange(project.values["queue"], 0, -1)[0]
        except redis.AuthenticationError:
            return False


def _is_nowhere(project: Project) -> bool:
    """Whether a message that ``.delay()`` took is in no queue, or it does not come back."""
    if _outcome(lambda: project.send("work", ignore_result=True, retry=False)) != "sent":
        return True
    with project.app.connection_for_read() as connection:
        queue = connection.default_channel.queue_declare(queue=project.values["queue"], passive=True)
        return int(queue.message_count) == 0


def _reaches_no_worker(project: Project) -> bool:
    """Whether a worker that runs never hears of what is sent."""
    project.worker()
    project.send("work", ignore_result=True)
    return not project.marked("worked", 6)


def _none_is_left(project: Project) -> bool:
    """Whether nothing can be sent once the server goes that is left."""
    last = next(one for one in project.values.servers if str(one.port) == project.values["durable"])  # type: ignore[attr-defined]
    last.stop()
    return cannot_send(project)


class _Eye:
    """Sees every byte on its way to a port."""

    def __init__(self, port: int) -> None:
        self.seen = b""
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._door.getsockname()[1])
        threading.Thread(target=self._serve, args=(port,), daemon=True).start()

    def _serve(self, port: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._door.accept()
                server = socket.create_connection(("127.0.0.1", port))
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._hand_on, args=(source, target), daemon=True).start()

    def _hand_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(65536):
                self.seen += part
                target.sendall(part)


def _is_read_on_the_way(project: Project) -> bool:
    """Whether the name of a task can be read between the app and its broker."""
    connection = project.app.connection_for_write()
    eye = _Eye(int(connection.port))
    url = connection.as_uri(include_password=True).replace(f":{connection.port}", f":{eye.port}")
    options = {"connection": project.app.connection_for_write(url, ssl=connection.ssl)}
    project.send("work", ignore_result=True, **options)
    return project.task("work").name.encode() in eye.seen


class _Code:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def _runs_a_strangers_code(project: Project) -> bool:
    """Whether a message of a stranger's makes a folder, in a worker."""
    project.worker(C_FORCE_ROOT="1")
    made = project.folder / "made"
    with project.app.connection_for_write() as connection:
        connection.Producer().publish(
            pickle.dumps(_Code(str(made))),
            routing_key=project.values["queue"],
            content_type="application/x-python-serialize",
            content_encoding="binary",
            headers={"task": project.task("work").name, "id": "a-stranger"},
        )
    project.send("work", ignore_result=True)
    project.wait(lambda: made.exists() or "worked" in project.marks(), 20, "the one or the other")
    return made.exists()


def _no_key_is_claimed(project: Project) -> bool:
    store = equipment_of(project.app).store
    spans: dict[str, Any] = {
        "lease": project.task("work").plan.patterns[0].lease,
        "ttl": project.task("work").plan.patterns[0].ttl,
    }
    try:
        store.claim("work:a", Attempt("run", 0, "owner"), "print", **spans)
    except StoreUnavailable:
        return True
    return False


def _waits_for_ever(project: Project) -> bool:
    began = time.monotonic()
    return (
        _outcome(lambda: project.send("work", ignore_result=True, retry=False), 5.0) != "sent"
        and time.monotonic() - began > 2.0
    )


KEYED = (
    EQUIPPED + "\n\n@app.task(time_limit=60)\n@patterns.idempotent(key='text', ttl=timedelta(days=1))\n"
    "def work(text: str = 'a') -> str:\n    return text\n"
)

AILMENTS = (
    Ailment(
        "CP101",
        _broker("redis://no-such-host.invalid:$redis_port/0"),
        (("no-such-host.invalid", "127.0.0.1"),),
        cannot_send,
        where="broker_url",
        how={"ignore": ("CP115",)},
    ),
    Ailment(
        "CP102",
        _broker("redis://127.0.0.1:$closed/0"),
        (("redis://127.0.0.1:$closed/0", "$broker"),),
        cannot_send,
        where="broker_url",
        name="broker",
    ),
    Ailment(
        "CP102",
        _backend("redis://127.0.0.1:$closed/0?socket_connect_timeout=1"),
        (("redis://127.0.0.1:$closed/0?socket_connect_timeout=1", "$backend"),),
        cannot_read,
        where="result_backend",
        name="backend",
    ),
    Ailment(
        "CP102",
        KEYED.replace('"$store"', '"redis://127.0.0.1:$closed/0"'),
        (("redis://127.0.0.1:$closed/0", "$store"),),
        _no_key_is_claimed,
        where="store",
        name="store",
    ),
    Ailment(
        "CP102",
        _broker("amqp://guest:guest@127.0.0.1:$closed//"),
        (("$closed", "$rabbit_port"),),
        cannot_send,
        where="broker_url",
        name="rabbitmq",
    ),
    Ailment("CP103", _broker("redis://127.0.0.1:$mute/0"), (("$mute", "$redis_port"),), _waits_for_ever, name="redis"),
    Ailment(
        "CP103", _broker("amqp://127.0.0.1:$mute//"), (("$mute", "$rabbit_port"),), _waits_for_ever, name="rabbitmq"
    ),
    Ailment(
        "CP104",
        _broker("amqp://guest:wrong-secret@127.0.0.1:$rabbit_port//"),
        (("wrong-secret", "guest"),),
        cannot_send,
        name="rabbitmq",
    ),
    Ailment(
        "CP104",
        _broker("redis://:wrong-secret@127.0.0.1:$locked/0"),
        (("wrong-secret", "a-secret"),),
        cannot_send,
        name="redis",
    ),
    Ailment(
        "CP104", _broker("redis://127.0.0.1:$locked/0"), (("redis://", "redis://:a-secret@"),), cannot_send, name="none"
    ),
    Ailment(
        "CP104",
        KEYED.replace('"$store"', '"redis://:wrong-secret@127.0.0.1:$locked/0"'),
        (("wrong-secret", "a-secret"),),
        _no_key_is_claimed,
        where="store",
        name="store",
    ),
    Ailment(
        "CP105",
        _broker("amqp://guest:guest@127.0.0.1:$rabbit_port/nowhere"),
        (("/nowhere", "//"),),
        cannot_send,
        name="rabbitmq",
    ),
    Ailment(
        "CP105",
        _broker("redis://:a-secret@127.0.0.1:$locked/77"),
        (("/77", "/7"),),
        cannot_send,
        name="redis",
    ),
    Ailment(
        "CP105",
        KEYED.replace('"$store"', '"postgresql://tests@127.0.0.1:$postgres_port/nowhere"'),
        (("postgresql://tests@127.0.0.1:$postgres_port/nowhere", "$store"),),
        _no_key_is_claimed,
        where="store",
        name="postgresql",
    ),
    Ailment("CP106", _broker("amqp://127.0.0.1:$web//"), (("$web", "$rabbit_port"),), cannot_send, name="web"),
    Ailment(
        "CP106",
        _broker("amqp://127.0.0.1:$redis_port//"),
        (("$redis_port", "$rabbit_port"),),
        cannot_send,
        name="redis",
    ),
    Ailment(
        "CP106",
        _broker("redis://127.0.0.1:$rabbit_port/0"),
        (("$rabbit_port", "$redis_port"),),
        cannot_send,
        name="rabbitmq",
    ),
    Ailment(
        "CP107",
        _broker("redis://127.0.0.1:$tls/0"),
        (("redis://127.0.0.1:$tls/0", "rediss://127.0.0.1:$tls/0?ssl_cert_reqs=required&ssl_ca_certs=$ca"),),
        cannot_send,
        name="server",
    ),
    Ailment(
        "CP107",
        _broker("rediss://127.0.0.1:$redis_port/0?ssl_cert_reqs=none"),
        (("rediss://127.0.0.1:$redis_port/0?ssl_cert_reqs=none", "$broker"),),
        cannot_send,
        name="client",
    ),
    Ailment("CP107", _broker("amqps://127.0.0.1:$rabbit_port//"), (("amqps", "amqp"),), cannot_send, name="rabbitmq"),
    Ailment(
        "CP108",
        _broker("rediss://127.0.0.1:$tls/0?ssl_cert_reqs=required"),
        (("required", "required&ssl_ca_certs=$ca"),),
        cannot_send,
    ),
    Ailment("CP109", _broker("redsi://127.0.0.1:$redis_port/0"), (("redsi", "redis"),), cannot_send, name="broker"),
    Ailment(
        "CP109",
        _backend("rediz://127.0.0.1:$redis_port/0"),
        (("rediz", "redis"),),
        cannot_read,
        where="result_backend",
        name="backend",
    ),
    # 127.1 is this machine, and does not look like it.
    Ailment(
        "CP111",
        _broker("redis://admin:admin@127.1:$known/0"),
        (("redis://admin:admin@127.1:$known/0", "redis://:a-secret@127.1:$locked/0"),),
        _everybody_logs_in,
    ),
    Ailment(
        "CP115",
        _broker("redis://127.1:$redis_port/0"),
        (("redis://127.1:$redis_port/0", "redis://:a-secret@127.1:$locked/0"),),
        _anybody_reads,
    ),
    Ailment(
        "CP116",
        _broker("redis://127.0.0.1:$closed/0;redis://127.0.0.1:$durable/0"),
        (("$closed", "$spare"),),
        _none_is_left,
        where="(1 of 2)",
    ),
    Ailment("CP117", _broker("redis://127.0.0.1:$replica/0"), (("$replica", "$redis_port"),), cannot_send),
    Ailment(
        "CP112",
        _broker("redis://:a-secret@127.1:$locked/0"),
        (
            (
                "redis://:a-secret@127.1:$locked/0",
                "rediss://:a-secret@127.1:$locked_tls/0?ssl_cert_reqs=required&ssl_ca_certs=$ca",
            ),
        ),
        _is_read_on_the_way,
        how={"profile": "production"},
    ),
    Ailment(
        "CP113",
        PLAIN + '\napp.conf.accept_content = ["json", "pickle"]\n',
        (('["json", "pickle"]', '["json"]'),),
        _runs_a_strangers_code,
        long=True,
    ),
    Ailment(
        "CP114",
        KEYED.replace('"$store"', 'store := patterns.stores.SQLStore("sqlite:///$folder/keys.db")')
        + "\n\nstore.table\n",
        (("store.table", "store.create_table()"),),
        _no_key_is_claimed,
        where="store",
    ),
    Ailment(
        "CP119",
        _broker("memory://"),
        (("memory://", "$broker"),),
        _reaches_no_worker,
        where="broker_url",
        how={"ignore": ("CP201",)},
        long=True,
    ),
    Ailment(
        "CP118",
        _broker("amqp://guest:guest@127.0.0.1:$alarmed//"),
        (("$alarmed", "$rabbit_port"),),
        _is_nowhere,
        where="broker_url",
        long=True,
        slow=True,
    ),
)
