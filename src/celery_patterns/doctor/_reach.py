"""What stands at an address: nothing, something silent, or something that speaks another language."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import time
from typing import TYPE_CHECKING

from ._address import Trouble

if TYPE_CHECKING:
    from ._address import Address

__all__ = ["knock"]

#: How each is greeted, and what it is called; PostgreSQL is asked whether it speaks TLS.
_HELLO = {
    "amqp": (b"AMQP\x00\x00\x09\x01", "AMQP"),
    "redis": (b"PING\r\n", "Redis"),
    "postgresql": (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", "PostgreSQL"),
}
#: To Redis a question, and to others nonsense; RabbitMQ answers with its own name.
_LINE = b"PING / HTTP/1.0\r\n\r\n"
#: How servers begin that are none of ours.
_STRANGERS = (
    (b"HTTP/", "an HTTP server"),
    (b"<!doctype", "an HTTP server"),
    (b"SSH-", "an SSH server"),
    (b"220", "a mail or FTP server"),
    (b"* OK", "a mail server"),
    (b"RFB ", "a VNC server"),
)
_REDIS = (b"+PONG", b"-ERR", b"-NOAUTH", b"-NOPERM", b"-DENIED", b"-LOADING", b"-MASTERDOWN", b"-BUSY")
_ALERT, _RECORD = b"\x15\x03", b"\x16\x03"


def knock(address: Address, deadline: float) -> Trouble | None:
    """Open a connection to the address and hear who answers.

    Args:
        address: One that has a host.
        deadline: The monotonic time by which it is to be known.

    Returns:
        None where the answer is of the language that was expected.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        said = error.strerror if isinstance(error, socket.gaierror) else "it is no name of a host"
        return Trouble("unresolved", f"the name {address.host} does not resolve: {said}")
    trouble: Trouble | None = None
    for *_, place in found:  # a name may have several numbers, as localhost has ::1 and 127.0.0.1
        trouble = _at(address, (str(place[0]), int(place[1])), deadline)
        if trouble is None or trouble.kind not in ("refused", "silent"):
            return trouble
    return trouble


def _at(address: Address, place: tuple[str, int], deadline: float) -> Trouble | None:
    try:
        opened = _open(place, deadline)
    except TimeoutError:
        return _silent(f"{place[0]} port {place[1]} does not answer: no connection is made, and none is refused")
    except OSError as error:
        said = error.strerror or type(error).__name__
        if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
            return _silent(f"there is no way to {place[0]}: {said}")
        return Trouble("refused", f"nothing listens at {place[0]} port {place[1]}: {said}")
    with contextlib.closing(opened):
        if address.tls:
            return _greet_in_tls(place, opened, deadline)
        hello, wanted = _greeting(address)
        if not hello:
            return None
        heard = _hear(opened, hello, _half(deadline))
    return _judge(wanted, place, heard, deadline)


def _greeting(address: Address) -> tuple[bytes, str]:
    kind = "postgresql" if address.scheme.startswith("postgres") else address.tongue
    return _HELLO.get(kind, (b"", "an answer"))


def _open(place: tuple[str, int], deadline: float) -> socket.socket:
    return socket.create_connection(place, timeout=_left(deadline))


def _left(deadline: float) -> float:
    return max(0.05, deadline - time.monotonic())


def _half(deadline: float) -> float:
    """A moment in the middle between now and then."""
    return time.monotonic() + _left(deadline) / 2


def _silent(detail: str) -> Trouble:
    return Trouble("silent", detail)


def _greet_in_tls(place: tuple[str, int], opened: socket.socket, deadline: float) -> Trouble | None:
    """Whether TLS is spoken there; whether its certificate is accepted is the driver's to say."""
    opened.settimeout(_left(_half(deadline)))
    try:
        with _any_certificate().wrap_socket(opened):
            return None
    except TimeoutError:
        # A server that waits for the end of a line takes TLS's first words for the beginning of one.
        if _language_of(place, deadline) is not None:
            return Trouble("tls", f"TLS is asked for, and the server at port {place[1]} speaks in plain text")
        return _silent(f"port {place[1]} takes a connection, and then says nothing")
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "UNEXPECTED_MESSAGE", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
            return Trouble("tls", f"TLS is asked for, and the server at port {place[1]} speaks in plain text")
        # It speaks TLS, and wants a certificate of ours, or another version of TLS.
        return Trouble("certificate", f"TLS fails: {error.reason or type(error).__name__}")
    except OSError:
        return Trouble("tls", f"TLS is asked for, and the server at port {place[1]} hangs up")


def _any_certificate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _hear(opened: socket.socket, hello: bytes, deadline: float) -> bytes | None:
    """The first bytes of an answer; none where the server hangs up, None where it says nothing."""
    opened.settimeout(_left(deadline))
    try:
        opened.sendall(hello)
        return opened.recv(64)
    except TimeoutError:
        return None
    except OSError:
        return b""


def _judge(wanted: str, place: tuple[str, int], heard: bytes | None, deadline: float) -> Trouble | None:
    speaks = _language(heard or b"")
    if speaks == wanted:
        return None
    if not heard:
        speaks = "TLS" if _speaks_tls(place, _half(deadline)) else _language_of(place, deadline)
    if speaks == "TLS":
        return Trouble("tls", f"the server at port {place[1]} speaks TLS, and is spoken to in plain text")
    if speaks is not None:
        return Trouble("protocol", f"at port {place[1]} {speaks} answers, and {wanted} was expected")
    if heard is None:
        return _silent(f"port {place[1]} takes a connection, and then says nothing")
    how = "answers in no language that is known" if heard else "hangs up at once"
    return Trouble("protocol", f"the server at port {place[1]} {how}; {wanted} was expected")


def _language_of(place: tuple[str, int], deadline: float) -> str | None:
    """What a server speaks that is greeted with a line of text, which all know but AMQP's; and that hangs up on it."""
    try:
        with contextlib.closing(_open(place, deadline)) as opened:
            return _language(_hear(opened, _LINE, deadline) or b"")
    except OSError:
        return None


def _language(heard: bytes) -> str | None:
    if heard[:2] in (_ALERT, _RECORD):
        return "TLS"
    for beginning, name in _STRANGERS:
        if heard.lower().startswith(beginning.lower()):
            return name
    if heard[:3] == b"\x01\x00\x00" or heard[:4] == b"AMQP":
        return "AMQP"
    if heard.startswith(_REDIS):
        return "Redis"
    if heard in (b"S", b"N"):
        return "PostgreSQL"
    return None


def _speaks_tls(place: tuple[str, int], deadline: float) -> bool:
    try:
        with contextlib.closing(_open(place, deadline)) as opened:
            opened.settimeout(_left(deadline))
            with _any_certificate().wrap_socket(opened):
                return True
    except (ssl.SSLError, OSError) as error:
        # A server that wants a certificate of ours speaks TLS, too.
        return isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or "")
