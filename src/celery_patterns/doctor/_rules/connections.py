"""CP1: the servers. Each cause of a connection that fails has a rule of its own, and so has a door that stands open."""

from __future__ import annotations

import difflib
import shlex
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .._finding import Rule, Sign, rule

if TYPE_CHECKING:
    from .._address import Address, Kind
    from .._case import Case
    from .._servers import Server

#: A broker to begin with.
_BROKER = "redis://localhost:6379/0"
#: How alike two names are of which one is the other misspelt.
_ALIKE = 0.8
_FAILS = {
    "broker": "Each .delay() raises OperationalError after its retries, and no worker starts.",
    "result backend": "A task's result is not stored, and whoever reads it waits or fails.",
    "store": "Tasks with a key are put off, and run again later, until it answers.",
}
#: Celery's extras that are called as their scheme is.
_EXTRAS = frozenset(
    {
        *(
            "sqs",
            "mongodb",
            "zookeeper",
            "consul",
            "couchdb",
            "elasticsearch",
            "cassandra",
            "gcpubsub",
            "dynamodb",
            "s3",
        ),
        *("arangodb", "azureblockblob", "cosmosdbsql", "couchbase", "pyro", "slmq", "redis"),
    }
)
_SPECIAL = " What is special in a password is written as %40 for @, %2F for /, %23 for #, %25 for %, %3B for ;."


def _troubled(case: Case, *kinds: Kind) -> Iterator[tuple[Server, str]]:
    """Those that cannot be used, for such a cause; of several that take over from each other, where none can."""
    for server in case.servers:
        if server.trouble is not None and server.trouble.kind in kinds and not _has_another(case, server):
            yield server, _said(server)


def _said(server: Server) -> str:
    return f"the {server.address.role} at {server.address.shown} cannot be used: {_detail(server)}"


def _detail(server: Server) -> str:
    assert server.trouble is not None
    return server.trouble.detail


def _how_to_set(case: Case) -> str:
    """How to say where the broker is; and how it was perhaps meant to be said."""
    django = sys.modules.get("django.conf")
    if django is not None and not getattr(case.conf, "prefix", None):
        settings = django.settings
        if settings.configured and hasattr(settings, "CELERY_BROKER_URL"):
            return "The settings have CELERY_BROKER_URL: app.config_from_object('django.conf:settings', namespace='CELERY')."
    if "://" in str(case.app.main):
        return "A URL was given as the app's name: write Celery('shop', broker='redis://…')."
    meant = next((one for one in case.conf.maps[0] if difflib.get_close_matches(str(one), ["broker"], 1, _ALIKE)), None)
    if meant is not None:
        return f"{meant} is nothing of Celery's: write broker= in Celery(…), or broker_url in the settings."
    return f"Set {case.line('broker_url', repr(_BROKER))}, for example."


def _has_another(case: Case, server: Server) -> bool:
    return any(one.trouble is None for one in case.servers if one.address.setting == server.address.setting)


def _sign(server: Server, what: str, cure: str) -> Sign:
    return Sign(server.address.where, what, cure, _FAILS[server.address.role])


@rule(
    "CP101",
    "error",
    "A server's name does not resolve",
    "Each .delay() raises OperationalError after its retries, and no worker starts.",
    upstream="celery/celery#5724",
)
def unresolved(case: Case) -> Iterator[Sign]:
    """The name of the host is wrong, or this machine does not know it."""
    for server, what in _troubled(case, "unresolved"):
        yield _sign(
            server,
            what,
            f"Correct the host {server.address.host!r} in {server.address.setting}; inside of Docker it is the name of "
            "the service, and not localhost.",
        )


@rule(
    "CP102",
    "error",
    "Nothing listens at a server's port",
    "Each .delay() raises OperationalError after its retries, and no worker starts.",
    upstream="celery/celery#7451",
)
def refused(case: Case) -> Iterator[Sign]:
    """The server does not run, or it listens elsewhere."""
    for server, what in _troubled(case, "refused"):
        address = server.address
        if address.role == "broker" and not address.url:
            unset = f"{address.setting} is not set, so that RabbitMQ is looked for on this machine: {_detail(server)}"
            yield _sign(server, unset, _how_to_set(case))
            continue
        which = f"host and port in {address.setting}, which say {address.host} and {address.port}"
        yield _sign(
            server,
            what,
            f"Start the server, or correct {which if address.host else f'the path in {address.setting}'}.",
        )


@rule(
    "CP103",
    "error",
    "A server does not answer",
    "What is sent there waits without an end, unless it has a time-out of its own.",
    upstream="celery/celery#4296",
)
def silent(case: Case) -> Iterator[Sign]:
    """A firewall drops the packets, the server is frozen, or it has lost its network."""
    for server, what in _troubled(case, "silent"):
        yield _sign(
            server,
            what,
            f"Look for a firewall before {server.address.host or 'it'}, and for a server that hangs.",
        )


@rule(
    "CP104",
    "error",
    "A server refuses the user or the password",
    "Each .delay() raises after its retries, and no worker starts.",
    upstream="codalab/codabench#1175",
)
def refuses_login(case: Case) -> Iterator[Sign]:
    """The account is not known, its password is another, or it may not log in from here."""
    for server, what in _troubled(case, "credentials"):
        address = server.address
        more = " RabbitMQ lets guest in from its own machine only." if address.user == "guest" else ""
        if address.user and not address.password:
            # It may be no user, but a password whose colon was forgotten: it is not shown.
            more = f" The URL has a user and no password; a password alone is written as {address.scheme}://:PASSWORD@host."
            who = "a user without a password"
        elif address.user:
            who = f"the user {address.user!r}"
        else:
            who = "the usual user" if address.password else "nobody: there is no password"
            more = "" if address.password else f" It wants one: {address.scheme}://:PASSWORD@host."
        yield _sign(server, f"{what} (as {who})", f"Correct user and password in {address.setting}.{more}{_SPECIAL}")


@rule(
    "CP105",
    "error",
    "A server has no such virtual host or database",
    "Each .delay() raises after its retries, and no worker starts.",
    upstream="gjedeer/celery-php#60",
)
def no_such_place(case: Case) -> Iterator[Sign]:
    """The virtual host or the database does not exist, or the user has no rights in it."""
    for server, what in _troubled(case, "place"):
        address = server.address
        place = shlex.quote(address.place)
        if address.scheme == "sentinel":
            cure = "Correct the name of the service: master_name in broker_transport_options, or the store's URL."
        elif address.tongue == "amqp":
            cure = (
                f"Make it with `rabbitmqctl add_vhost {place}` and `rabbitmqctl set_permissions -p {place} "
                f"{shlex.quote(address.user)} '.*' '.*' '.*'`, or correct the part behind the last / in "
                f"{address.setting}; the virtual host / is written as //."
            )
        elif address.tongue == "redis":
            cure = f"Take a database below the server's `databases`, 16 by default, in {address.setting}."
        else:
            cure = f"Create the database {address.place!r}, or correct its name in {address.setting}."
        yield _sign(server, what, cure)


@rule(
    "CP106",
    "error",
    "A server of another kind answers",
    "Each .delay() raises after its retries, or waits for an answer that does not come.",
    upstream="alanxz/rabbitmq-c#284",
)
def stranger(case: Case) -> Iterator[Sign]:
    """The port is that of something else: of RabbitMQ's web page (15672), for example."""
    for server, what in _troubled(case, "protocol"):
        address = server.address
        usual = {"amqp": "5672, or 5671 with TLS", "redis": "6379", "sql": "the database's own"}.get(
            address.tongue, "another one"
        )
        yield _sign(server, what, f"Correct the port in {address.setting}: the usual one is {usual}.")


@rule(
    "CP107",
    "error",
    "One side speaks TLS and the other does not",
    "Each .delay() raises after its retries, or waits for an answer that does not come.",
    upstream="celery/celery#6455",
)
def half_tls(case: Case) -> Iterator[Sign]:
    """The scheme of the URL does not suit the port."""
    for server, what in _troubled(case, "tls"):
        address = server.address
        plain, safe = ("amqp://", "amqps://") if address.tongue == "amqp" else ("redis://", "rediss://")
        if address.tongue == "sql":
            yield _sign(server, what, f"Take sslmode=prefer in {address.setting}, or switch TLS on on the server.")
            continue
        if address.tls and not address.url.startswith(("amqps", "rediss")):
            name = "broker_use_ssl" if address.role == "broker" else "redis_backend_use_ssl"
            yield _sign(server, what, f"Take {case.spelled(name)} away, or take the server's other port.")
            continue
        cure = f"Write {plain} in place of {safe}" if address.tls else f"Write {safe} in place of {plain}"
        yield _sign(server, what, f"{cure} in {address.setting}, or take the server's other port.")


@rule(
    "CP108",
    "error",
    "A server's certificate is not accepted",
    "Each .delay() raises after its retries, and no worker starts.",
    upstream="celery/py-amqp#349",
)
def certificate(case: Case) -> Iterator[Sign]:
    """Its authority is not known here, it names another host, it is over, or it wants one of ours."""
    for server, what in _troubled(case, "certificate"):
        address = server.address
        before = "ssl_" if address.tongue == "redis" else ""
        yield _sign(
            server,
            what,
            f"Say {before}cert_reqs=required, name the authority that signed it with {before}ca_certs, a file that is "
            f"there, and where the server wants a certificate of ours, too, {before}certfile and {before}keyfile: in the "
            f"URL of {address.setting}, behind a ?, or in broker_use_ssl. Do not switch the check off.",
        )


@rule(
    "CP109",
    "error",
    "A server's kind is not known, or its driver is not installed",
    "Each .delay() raises, or each result is lost, from the first one on.",
    upstream="celery/kombu#1501",
)
def no_driver(case: Case) -> Iterator[Sign]:
    """The scheme of the URL is misspelt, or a package is missing."""
    for server, what in _troubled(case, "driver"):
        address = server.address
        yield _sign(
            server,
            what,
            f"Correct the scheme in {address.setting}, or install the package that brings it"
            f"{_package(str(case.conf.result_backend), address)}.",
        )


def _package(backend: str, address: Address) -> str:
    if address.role == "result backend" and backend.startswith("django-"):
        return ", django-celery-results, and add django_celery_results to INSTALLED_APPS"
    return f': pip install "celery[{address.scheme}]"' if address.scheme in _EXTRAS else ""


@rule(
    "CP110",
    "error",
    "A server cannot be used",
    "What the app sends there fails.",
    upstream="celery/kombu#1582",
)
def other_trouble(case: Case) -> Iterator[Sign]:
    """Its URL cannot be read, or for a reason that has no rule of its own."""
    for server, what in _troubled(case, "unreadable") if not case.malformed else ():
        # Where other settings are of a wrong kind, the URL may be well.
        yield _sign(server, what, f"Correct {server.address.setting}.{_SPECIAL}")
    for server, what in _troubled(case, "other"):
        yield _sign(server, what, f"Correct {server.address.setting}, or the server.")


@rule(
    "CP114",
    "error",
    "The store has no table",
    "Tasks with a key are put off for ever: no key can be claimed.",
    upstream="celery/django-celery#62",
)
def no_table(case: Case) -> Iterator[Sign]:
    """The database answers, and what the keys stand in was not made."""
    for server in case.servers:
        if server.lacks:
            yield Sign(
                server.address.where,
                f"the database at {server.address.shown} has no table {server.lacks}",
                "Make it once with `store.create_table()`, or with a migration.",
            )


@rule(
    "CP116",
    "warning",
    "One of several servers cannot be used",
    "The others are used meanwhile; when they go, too, none is left. What is sent waits for this one first.",
    upstream="celery/celery#6348",
)
def one_of_several(case: Case) -> Iterator[Sign]:
    """The setting names several, which take over from each other."""
    for server in case.servers:
        if server.trouble is not None and _has_another(case, server):
            yield Sign(server.address.where, _said(server), "Mend it, or take it out of the list.")


@rule(
    "CP117",
    "error",
    "A Redis of another role",
    "Nothing can be written there, or not as Celery does it.",
    upstream="celery/celery#7946",
)
def wrong_role(case: Case) -> Iterator[Sign]:
    """It is a replica, a Sentinel, or a part of a cluster."""
    for server, what in _troubled(case, "role"):
        cure = f"Name the primary in {server.address.setting}; Sentinels are named by sentinel://."
        yield _sign(server, what, f"{cure} A cluster is no broker of Celery's.")


@rule(
    "CP118",
    "error",
    "A RabbitMQ that takes no messages",
    "A .delay() returns and its message is nowhere, or it hangs; those behind it hang.",
    upstream="celery/celery#2689",
)
def blocked(case: Case) -> Iterator[Sign]:
    """An alarm is on, for want of memory or of room on the disk: the server reads nothing of who sends."""
    for server, what in _troubled(case, "blocked"):
        yield Sign(
            server.address.where,
            what,
            "Look into `rabbitmq-diagnostics alarms`; give the server memory or room on its disk, or let workers empty its "
            "queues. With confirm_publish and a confirm_timeout .delay() raises meanwhile.",
        )


@rule(
    "CP119",
    "warning",
    "A broker within one process",
    "What is sent stays in the process that sent it: no worker takes it, and with the process it is gone.",
    upstream="celery/celery#2799",
)
def within_a_process(case: Case) -> Iterator[Sign]:
    """``memory://``, which is for tests."""
    if case.transport == "memory" and not case.conf.task_always_eager:
        yield Sign(
            "broker_url",
            "broker_url is memory://, which is another one in each process",
            f"Set {case.line('broker_url', repr(_BROKER))}, for example; in tests, ignore this.",
        )


RULES: tuple[Rule, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
