"""Where the app's servers are: the broker, the result backend and the store, each with the setting that says so."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from celery.app.backends import by_url
from celery.exceptions import ImproperlyConfigured
from kombu.utils.url import url_to_parts

from .._equipment import equipment_of

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Address", "Kind", "Trouble", "addresses_of"]

Tongue = Literal["amqp", "redis", "sql", "other"]
Kind = Literal[
    "unresolved",
    "refused",
    "silent",
    "protocol",
    "tls",
    "certificate",
    "credentials",
    "place",
    "driver",
    "unreadable",
    "role",
    "blocked",
    "other",
]

_PORTS = {"amqp": 5672, "amqps": 5671, "redis": 6379, "rediss": 6379, "sentinel": 26379}
_TONGUES: dict[str, Tongue] = {
    **dict.fromkeys(("amqp", "amqps", "pyamqp", "librabbitmq"), "amqp"),
    **dict.fromkeys(("redis", "rediss", "unix", "sentinel"), "redis"),
    **dict.fromkeys(("postgresql", "postgres", "mysql", "mariadb", "oracle", "mssql", "sqlite"), "sql"),
}
_DATABASES = {"postgresql": 5432, "postgres": 5432, "mysql": 3306, "mariadb": 3306}
#: What may stand before ``://``; anything else may be a part of a password.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_BEFORE_PATH = re.compile(r"^[^/?#]*")
#: kombu takes a name alone for a host's.
_HOST = re.compile(r"[\w.-]+")
#: A host, or a file, where a backend's scheme should be; Celery takes it for a module's name.
_BARE_HOST = re.compile(r"(localhost|[\w.-]+:\d+|[\d.]+)(/.*)?|[./].*")
_LOGIN = re.compile(r"//[^/\s]*@")
#: So short a password is in any text: of that nothing is shown.
_SHORT = 4


@dataclass(frozen=True)
class Trouble:
    """Why a server cannot be used.

    Attributes:
        kind: Which of the causes it is.
        detail: What was seen, without a password.
    """

    kind: Kind
    detail: str


@dataclass(frozen=True)
class Address:
    """One server.

    Attributes:
        role: What it is for the app: ``broker``, ``result backend`` or ``store``.
        setting: The line that says where it is.
        number: Which it is of several that take over from each other, and how many they are.
        scheme: The URL's.
        tongue: What it is to speak.
        tls: Whether within TLS.
        host: Its name or number; empty for a socket or a file.
        port: Its port.
        user: Who logs in.
        place: The virtual host or the database.
        url: With its password: never shown.
        trouble: Why it cannot be used, where the URL alone says that.
    """

    role: str
    setting: str
    number: tuple[int, int] = (1, 1)
    scheme: str = ""
    tongue: Tongue = "other"
    tls: bool = False
    host: str = ""
    port: int | None = None
    user: str = ""
    password: str = field(default="", repr=False)
    place: str = ""
    url: str = field(default="", repr=False)
    trouble: Trouble | None = None

    @property
    def where(self) -> str:
        """The setting, and which of several it is."""
        number, count = self.number
        return self.setting if count == 1 else f"{self.setting} ({number} of {count})"

    @property
    def shown(self) -> str:
        """Where it is, without a password; a user without one may be a password whose colon was forgotten."""
        if self.trouble is not None and self.trouble.kind == "unreadable":
            return f"{self.scheme}://…" if self.scheme else "…"
        user = f"{self.user if self.password else '**'}@" if self.user else ""  # a password may be its whole login
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = f":{self.port}" if self.port is not None else ""
        if not self.scheme:
            return "…"
        place = self.place if self.place == "…" else quote(self.place, safe="/")
        return f"{self.scheme}://{user}{host}{port}/{place}"

    @property
    def is_local(self) -> bool:
        """Whether nobody else's machine is between it and us."""
        if not self.host or self.host.startswith("/") or self.host == "localhost" or self.host.endswith(".localhost"):
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    def hushed(self, text: str) -> str:
        """A text of the server's or of its driver's, without the password, however that is written."""
        secrets = {self.password, quote(self.password), quote(self.password, safe=""), quote(self.password).lower()}
        if any(secret and len(secret) < _SHORT for secret in secrets) or (self.user and not self.password):
            return text.partition(":")[0]
        for secret in sorted(secrets - {""}, key=len, reverse=True):
            text = text.replace(secret, "**")
        return _LOGIN.sub("//**@", text)


_SEMICOLON = Trouble("unreadable", "the URL cannot be read: what stands behind its ; is no URL")
_AT = Trouble("unreadable", "the URL cannot be read: an @ stands behind what its password seems to be")


def addresses_of(app: Celery) -> Iterator[Address]:
    """Each server of the app's, the broker's first."""
    conf = app.conf
    for setting in ("broker_url", "broker_write_url", "broker_read_url"):
        wrong = _no_text(conf[setting])
        if wrong is not None:
            yield Address("broker", setting, trouble=wrong)
            return
    same = conf.broker_write_url == conf.broker_read_url
    yield from _brokers("broker_url" if same else "broker_write_url", conf.broker_write_url, app.connection_for_write)
    if not same:
        yield from _brokers("broker_read_url", conf.broker_read_url, app.connection_for_read)
    backend = conf.result_backend
    if isinstance(backend, str) and backend and backend != "disabled":
        yield from _backend(app, backend)
    elif backend is not None and not isinstance(backend, str) and not callable(backend):
        yield Address("result backend", "result_backend", trouble=_no_text(backend))
    store = equipment_of(app).store if equipment_of(app).has_store else None
    url = getattr(store, "url", None)
    if isinstance(url, str):
        yield from _stores(url)


def _no_text(value: Any) -> Trouble | None:
    """Why it is no URL and no list of some; None where it may be."""
    each = value if isinstance(value, list | tuple) else [value]
    wrong = next((type(one).__name__ for one in each if one is not None and not isinstance(one, str)), None)
    said = f"the URL cannot be read: it is of the type {wrong} and no text; str(…) makes one of it"
    return None if wrong is None else Trouble("unreadable", said)


def _has_semicolon(url: str) -> bool:
    """Whether a ; stands in a password: what is behind it is then no URL, or has a login that the first seems to lack."""
    first, *others = url.split(";")
    return any("://" not in one for one in others) or ("@" not in first and any("@" in one for one in others))


def _brokers(setting: str, urls: Any, connect: Any) -> Iterator[Address]:
    """As kombu reads them, with what the app's other settings say beside the URL."""
    whole = [urls] if isinstance(urls, str) else list(urls or [])
    if any(_has_semicolon(one) for one in whole if one):
        yield Address("broker", setting, trouble=_SEMICOLON)
        return
    each = [part for one in whole for part in (one or "").split(";")] or [None]
    each = [url for url in each if url] or [None]
    for number, url in enumerate(each, 1):
        yield _broker(setting, (number, len(each)), url, connect)


def _broker(setting: str, number: tuple[int, int], url: str | None, connect: Any) -> Address:
    scheme = _scheme(url or "amqp://")
    if url and not (_HOST.fullmatch(url) or ("://" in url and scheme)):
        how = "a blank stands before it" if url != url.lstrip() else "it has no scheme, redis:// or amqp:// for example"
        return Address("broker", setting, number, trouble=Trouble("unreadable", f"the URL cannot be read: {how}"))
    if _has_later_at(url or ""):
        return Address("broker", setting, number, trouble=_AT)
    try:
        with connect(url) as connection:
            name = str(connection.transport_cls).lower()
            if "://" in str(connection.hostname or "") or name.partition("+")[0] not in _TONGUES:
                # A socket, or a broker that is none of those we know.
                connection.get_transport_cls()
                tongue: Tongue = _TONGUES.get(name, "other")
                return Address(
                    "broker", setting, number, scheme, tongue, place="…" if tongue == "redis" else "", url=url or ""
                )
            kind = {"pyamqp": "amqp", "librabbitmq": "amqp"}.get(name, name)
            tls = kind in ("amqps", "rediss") or (bool(connection.ssl) and kind != "sentinel")
            if kind == "sentinel":
                tls = bool((connection.transport_options.get("sentinel_kwargs") or {}).get("ssl"))
            tongue = _TONGUES[kind]
            if "@" in str(
                connection.virtual_host or ""
            ):  # a / within the password: what stands before it is a part of it
                return Address("broker", setting, number, trouble=_AT)
            user, password = connection.userid or "", connection.password or ""
            if tongue == "amqp" and not user:
                user, password = "guest", "guest"
            return Address(
                role="broker",
                setting=setting,
                number=number,
                scheme=kind,
                tongue=tongue,
                tls=tls,
                host=connection.hostname or "localhost",
                port=int(connection.port or _PORTS["amqps" if tls and tongue == "amqp" else kind]),
                user=user,
                password=password,
                place=str(connection.virtual_host or ("/" if tongue == "amqp" else "0")),
                url=url or "",
            )
    except (KeyError, ImportError, NameError, ImproperlyConfigured) as error:
        return Address("broker", setting, number, scheme, trouble=_no_driver(error, scheme))
    except Exception as error:  # noqa: BLE001 - whatever is made of a URL that is none
        return Address("broker", setting, number, scheme, trouble=_unreadable(error))


def _has_later_at(url: str) -> bool:
    """Whether an @ stands behind the first / ? or #: one of these is then a part of the password, and what follows, too."""
    rest = url.partition("://")[2]
    behind = _BEFORE_PATH.sub("", rest, count=1)
    path, _, query = behind.partition("?")
    before = query.partition("@")[0]
    # ?client_name=web@host is a query as it should be.
    return "@" in path or ("@" in query and ("=" not in before or "#" in before))


def _backend(app: Celery, url: str) -> list[Address]:
    found = Address("result backend", "result_backend", scheme=_scheme(url))
    if found.scheme in ("redis", "rediss", "sentinel") and _has_semicolon(url):
        return [replace(found, scheme="", trouble=_SEMICOLON)]
    if _has_later_at(url.partition(";")[0]):
        return [replace(found, scheme="", trouble=_AT)]
    try:
        by_url(url.partition("?")[0], app.loader)
    except (KeyError, ImportError, NameError, ImproperlyConfigured, TypeError, ValueError) as error:
        trouble = _no_driver(error, found.scheme)
        if _TONGUES.get(found.scheme.partition("+")[0]) == "sql":
            trouble = Trouble("driver", f"a database is written as db+{found.scheme}://")
        elif _BARE_HOST.fullmatch(url):
            trouble = Trouble("unreadable", "the URL cannot be read: it has no scheme, redis:// for example")
        return [replace(found, scheme="" if trouble.kind == "unreadable" else found.scheme, trouble=trouble)]
    try:
        if found.scheme in ("redis", "rediss", "sentinel", "socket") or found.scheme.startswith("redis+"):
            return _redis_backend(app, found.scheme, url)
        if found.scheme.partition("+")[0] in ("db", "database"):
            return [_read("result backend", "result_backend", (1, 1), url.partition("+")[2])]
    except Exception as error:  # noqa: BLE001 - as above
        return [replace(found, trouble=_unreadable(error))]
    return [found]


def _redis_backend(app: Celery, scheme: str, url: str) -> list[Address]:
    """As Celery's own backend reads it."""
    told: dict[str, Any] = app.backend.connparams
    hosts = told.get("hosts") or [told]
    return [_redis_at(scheme, url, told, one, (number, len(hosts))) for number, one in enumerate(hosts, 1)]


def _redis_at(
    scheme: str, url: str, told: Mapping[str, Any], first: Mapping[str, Any], number: tuple[int, int]
) -> Address:
    is_path = bool(first.get("path"))
    return Address(
        role="result backend",
        setting="result_backend",
        number=number,
        scheme=scheme,
        tongue="redis",
        tls=scheme == "rediss" or "ssl_cert_reqs" in told,
        host="" if is_path else str(first.get("host") or "localhost"),
        port=None if is_path else int(first.get("port") or _PORTS.get(scheme, 6379)),
        user=str(first.get("username") or ""),
        password=str(first.get("password") or ""),
        place=str(first.get("db") or 0),
        url=url,
    )


def _stores(url: str) -> Iterator[Address]:
    scheme, _, rest = url.partition("://")
    if scheme != "sentinel":
        yield _read("store", "store", (1, 1), url)
        return
    login, at, hosts = rest.rpartition("@")
    each, _, path = hosts.partition("/")
    names = each.split(",")
    for number, host in enumerate(names, 1):
        yield _read("store", "store", (number, len(names)), f"sentinel://{login}{at}{host}/{path}")


def _read(role: str, setting: str, number: tuple[int, int], url: str) -> Address:
    scheme = _scheme(url)
    kind = scheme.partition("+")[0]
    if _has_later_at(url):
        return Address(role, setting, number, trouble=_AT)
    try:
        parts = url_to_parts(url)
        host, port = parts[1] or "", parts[2]
        user, password, place = parts[3] or "", parts[4] or "", parts[5] or ""
    except ValueError as error:
        return Address(role, setting, number, scheme, trouble=_unreadable(error))
    if "@" in place:
        return Address(role, setting, number, trouble=_AT)
    tongue = _TONGUES.get(kind, "other")
    if tongue == "redis" and kind != "unix":
        host, port = host or "localhost", port or _PORTS[kind]
    elif host:
        port = port or _DATABASES.get(kind)
    return Address(role, setting, number, kind, tongue, kind == "rediss", host, port, user, password, place, url)


def _scheme(url: str) -> str:
    found = (url.partition("://")[0] if "://" in url else url).lower()
    return found if _SCHEME.fullmatch(found) and ("://" in url or found.isalpha()) else ""


def _no_driver(error: BaseException, scheme: str) -> Trouble:
    said = str(error.args[0] if error.args else error).partition("\n")[0].rstrip("?.")
    return Trouble(
        "driver", said if scheme and scheme.partition("+")[0] in said else f"{scheme or 'what it names'} is not known"
    )


def _unreadable(error: BaseException) -> Trouble:
    """Its text may quote a part of the password, but this one does not."""
    if str(error).startswith("Port out of range"):
        return Trouble("unreadable", "the URL cannot be read: its port is above 65535")
    return Trouble("unreadable", f"the URL cannot be read ({type(error).__name__})")
