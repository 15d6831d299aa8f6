"""Where the app's servers are: the broker, the result backend and the store, each with the setting that says so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from kombu.utils.url import url_to_parts

from .._equipment import equipment_of

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Address", "addresses_of"]

Tongue = Literal["amqp", "redis", "sql", "other"]

_PORTS = {("amqp", False): 5672, ("amqp", True): 5671, ("redis", False): 6379, ("redis", True): 6379}
#: What a URL's scheme says of the language that the server speaks, and whether within TLS.
_SCHEMES: dict[str, tuple[Tongue, bool]] = {
    **dict.fromkeys(("amqp", "pyamqp", "librabbitmq"), ("amqp", False)),
    "amqps": ("amqp", True),
    **dict.fromkeys(("redis", "sentinel"), ("redis", False)),
    "rediss": ("redis", True),
    **dict.fromkeys(("postgresql", "postgres", "mysql", "mariadb", "oracle", "mssql", "sqlite", "db"), ("sql", False)),
}
_SENTINELS_PORT = 26379
_DATABASES = {"postgresql": 5432, "postgres": 5432, "mysql": 3306, "mariadb": 3306}


@dataclass(frozen=True)
class Address:
    """One server.

    Attributes:
        role: What it is for the app: ``broker``, ``result backend`` or ``store``.
        setting: The line that says where it is.
        url: With its password: never shown.
        scheme: The URL's.
        tongue: What it is to speak.
        tls: Whether within TLS.
        host: Its name or number; empty for a socket or a file.
        port: Its port.
        user: Who logs in.
        place: The virtual host or the database.
    """

    role: str
    setting: str
    url: str = field(repr=False)
    scheme: str
    tongue: Tongue
    tls: bool
    host: str
    port: int | None
    user: str
    password: str = field(repr=False)
    place: str

    @property
    def shown(self) -> str:
        """Where it is, without a password."""
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = f":{self.port}" if self.port is not None else ""
        return f"{self.scheme}://{user}{host}{port}/{quote(self.place, safe='/') if self.place else ''}"

    @property
    def is_local(self) -> bool:
        """Whether nobody else's machine is between it and us."""
        if not self.host or self.host == "localhost" or self.host.endswith(".localhost"):
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    def hushed(self, text: str) -> str:
        """A text of the server's or of its driver's, without the password, however that is written."""
        for secret in sorted({self.password, quote(self.password), quote(self.password, safe="")}, key=len)[::-1]:
            if secret:
                text = text.replace(secret, "**")
        return text.replace(self.url, self.shown)


def addresses_of(app: Celery) -> Iterator[Address]:
    """Each server of the app's, the broker's first; those that are none, as one in memory, are left out."""
    conf = app.conf
    write, read = conf.broker_write_url, conf.broker_read_url
    yield from _listed("broker", "broker_url" if write == read else "broker_write_url", write, conf.broker_use_ssl)
    if read != write:
        yield from _listed("broker", "broker_read_url", read, conf.broker_use_ssl)
    if isinstance(conf.result_backend, str):
        yield from _listed(
            "result backend",
            "result_backend",
            conf.result_backend.removeprefix("db+"),
            getattr(conf, "redis_backend_use_ssl", None),
        )
    store = equipment_of(app).store if equipment_of(app).has_store else None
    url = getattr(store, "url", None)
    if isinstance(url, str):
        yield from _listed("store", "store", url, None)


def _listed(role: str, setting: str, urls: Any, ssl: Any) -> Iterator[Address]:
    """One for each of several that take over from each other."""
    each = urls.split(";") if isinstance(urls, str) else list(urls or ["amqp://"])
    for number, url in enumerate(each, 1):
        where = setting if len(each) == 1 else f"{setting} ({number} of {len(each)})"
        yield from _read(role, where, url or "amqp://", bool(ssl))


def _read(role: str, setting: str, url: str, ssl: bool) -> Iterator[Address]:
    scheme, _, rest = url.partition("://")
    kind, _, driver = scheme.partition("+")
    tongue, tls = _SCHEMES.get(kind, ("other", False))
    if kind == "sentinel" and "," in rest:  # a store's: one URL for all Sentinels
        login, at, hosts = rest.rpartition("@")
        first, _, path = hosts.partition("/")
        for host in first.split(","):
            yield from _read(role, setting, f"sentinel://{login}{at}{host}/{path}", ssl)
        return
    try:
        parts = url_to_parts(url if driver != "socket" else f"{kind}:///{rest}")
    except ValueError:
        parts = None
    if parts is None:
        yield Address(role, setting, url, kind, "other", False, "", None, "", "", "")
        return
    host, port, user, password, place = parts[1] or "", parts[2], parts[3] or "", parts[4] or "", parts[5] or ""
    tls = tls or ssl
    if tongue == "amqp":
        host, user, place = host or "localhost", user or "guest", place or "/"
        password = password or "guest"
        port = port or _PORTS["amqp", tls]
    elif tongue == "redis" and kind != "unix" and driver != "socket":
        host, port = host or "localhost", port or (_SENTINELS_PORT if kind == "sentinel" else _PORTS["redis", tls])
    elif tongue == "sql" and kind in _DATABASES:
        port = port or _DATABASES[kind]
    yield Address(role, setting, url, kind, tongue, tls, host, port, user, password, place)
