"""CP11: doors that stand open: accounts that everybody knows, plain text, messages that hold code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .._finding import Rule, Sign, rule

if TYPE_CHECKING:
    from .._case import Case

#: Accounts that everybody knows.
_KNOWN = {("guest", "guest"), ("admin", "admin"), ("root", "root"), ("user", "password"), ("admin", "password")}
#: What a URL may say in place of a password.
_OTHER_PROOFS = ("ssl_certfile", "credential_provider")


@rule(
    "CP111",
    "error",
    "An account that everybody knows, over a network",
    "Whoever reaches the port reads every task's arguments, and sends tasks of their own.",
    upstream="BitTheByte/Monitorizer#20",
)
def known_account(case: Case) -> Iterator[Sign]:
    """RabbitMQ's guest, or another one that is tried first."""
    for address in case.addresses:
        if not address.is_local and (address.user, address.password) in _KNOWN:
            yield Sign(
                address.where,
                f"the {address.role} at {address.shown} is used as {address.user!r} with a password that everybody knows, "
                "and is not on this machine",
                f"Make an account of the app's own, and name it in {address.setting}.",
            )


@rule(
    "CP112",
    "warning",
    "Plain text over a network",
    "Whoever sees the packets reads the password and every task's arguments, and can change them.",
    upstream="celery/celery#2804",
    production=True,
)
def plain_text(case: Case) -> Iterator[Sign]:
    """A server on another machine is spoken to without TLS."""
    for address in case.addresses:
        if address.is_local or address.tls or address.tongue not in ("amqp", "redis"):
            continue
        safe = "amqps://" if address.tongue == "amqp" else "rediss://"
        yield Sign(
            address.where,
            f"the {address.role} at {address.shown} is spoken to without TLS, and is not on this machine",
            f"Write {safe} in {address.setting}, with TLS on the server; or ignore this where the network itself is "
            "encrypted.",
        )


@rule(
    "CP113",
    "error",
    "Messages may hold code",
    "Whoever can put a message into a queue runs any code in the worker, as the worker's own user.",
    upstream="inducer/relate#1504",
)
def takes_code(case: Case) -> Iterator[Sign]:
    """``accept_content`` lets pickle in."""
    for name in ("accept_content", "result_accept_content"):
        takes = {str(one).lower() for one in case.conf[name] or ()}
        bad = takes & {"pickle", "application/x-python-serialize"}
        if bad:
            kept = sorted(takes - bad) or ["json"]
            senders = ("task_serializer", "result_serializer")
            own = [case.line(one, "'json'") for one in senders if case.conf[one] == "pickle"]
            yield Sign(
                case.spelled(name),
                f"{name} takes {' and '.join(sorted(bad))}",
                f"Write {', '.join([case.line(name, repr(kept)), *own])}, once all senders send JSON.",
            )


@rule(
    "CP115",
    "warning",
    "A Redis without a password, over a network",
    "Whoever reaches the port reads every task's arguments, and sends tasks of their own.",
    upstream="BitTheByte/Monitorizer#20",
)
def no_password(case: Case) -> Iterator[Sign]:
    """Neither the URL nor the settings have one, and the server is on another machine."""
    for address in case.addresses:
        asks = address.tongue == "redis" and address.scheme != "sentinel" and not address.is_local
        if (
            asks
            and not address.password
            and not address.user
            and not any(word in address.url for word in _OTHER_PROOFS)
        ):
            yield Sign(
                address.where,
                f"the {address.role} at {address.shown} is used without a password, and is not on this machine",
                f"Set `requirepass` on the server, and write {address.scheme}://:PASSWORD@{address.host} in "
                f"{address.setting}; or ignore this where nobody else is in the network.",
            )


RULES: tuple[Rule, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
