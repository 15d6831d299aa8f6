"""Letters in a file: one JSON object a line, which holds all of a message, so that it can be put back as it was."""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, TextIO

from ..exceptions import ConfigurationError
from ._entry import Entry
from ._flaws import flaw_of

__all__ = ["Kept", "kept_in", "line_of", "write_lines", "written_whole"]

FORMAT = 1

#: What is the transport's own, and is made anew when the message is put back.
_TRANSPORTS_OWN = frozenset(
    {"body_encoding", "delivery_info", "delivery_tag", "application_headers", "content_type", "content_encoding"}
)
#: A ``user_id`` is its sender's, and RabbitMQ refuses it from another one.
_NOT_PUT_BACK = _TRANSPORTS_OWN | {"user_id"}
#: What JSON has no word for, under a name that a header's own value is not taken for.
_TYPE, _VALUE, _ITSELF = "celery_patterns_type", "value", "itself"


@dataclass(frozen=True)
class Kept:
    """A letter out of a file."""

    id: str
    body: bytes
    headers: dict[str, Any]
    properties: dict[str, Any]
    content_type: str | None
    content_encoding: str | None


def line_of(entry: Entry) -> str:
    """A letter as one line: what is known of it, then its message."""
    stored = entry.stored
    properties = {name: value for name, value in entry.message.properties.items() if name not in _TRANSPORTS_OWN}
    return json.dumps(
        {
            "format": FORMAT,
            "letter": asdict(entry.letter),
            "headers": _told(stored.headers),
            "properties": _told(properties),
            "content_type": stored.content_type,
            "content_encoding": stored.content_encoding,
            **_body_told(stored.body),
        }
    )


def _body_told(body: bytes | str) -> dict[str, str]:
    data = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
    try:
        text = data.decode()
        json.loads(text)
    except (ValueError, RecursionError):
        return {"body_base64": base64.b64encode(data).decode()}
    return {"body": text}


def _told(value: Any) -> Any:
    """A header's value in JSON: AMQP's tables know some that JSON does not."""
    if isinstance(value, dict):
        told = {str(name): _told(item) for name, item in value.items()}
        return {_TYPE: _ITSELF, _VALUE: told} if _TYPE in told else told
    if isinstance(value, list | tuple):
        return [_told(item) for item in value]
    if isinstance(value, datetime):
        moment = value if value.tzinfo is not None else value.replace(tzinfo=timezone.utc)
        return {_TYPE: "moment", _VALUE: moment.timestamp()}
    if isinstance(value, bytes | bytearray | memoryview):
        return {_TYPE: "bytes", _VALUE: base64.b64encode(bytes(value)).decode()}
    if isinstance(value, Decimal):
        return {_TYPE: "decimal", _VALUE: str(value)}
    return value


def _heard(value: Any) -> Any:
    if isinstance(value, list):
        return [_heard(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind: Any = value.get(_TYPE)
    inner: Any = value.get(_VALUE)
    if kind == "moment":
        return datetime.fromtimestamp(float(inner), timezone.utc).replace(tzinfo=None)  # as amqp writes it
    if kind == "bytes":
        return base64.b64decode(inner)
    if kind == "decimal":
        return Decimal(inner)
    if kind == _ITSELF:
        return {name: _heard(item) for name, item in inner.items()}
    return {name: _heard(item) for name, item in value.items()}


def kept_in(file: Path | TextIO) -> Iterator[Kept]:
    """The letters of a file, or of an open one from its beginning.

    Raises:
        ConfigurationError: When the file cannot be read, and at a line that holds no letter, naming it.
    """
    name = str(file) if isinstance(file, Path) else "the input"
    try:
        with _lines(file) as lines:
            for number, line in enumerate(lines, 1):
                yield _kept(name, number, line)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{name} cannot be read: {error}") from None


def _lines(file: Path | TextIO) -> AbstractContextManager[TextIO]:
    if isinstance(file, Path):
        return file.open(encoding="utf-8")
    file.seek(0)
    return nullcontext(file)


def _kept(file: str, number: int, line: str) -> Kept:
    try:
        told = json.loads(line)
        if told["format"] != FORMAT:
            raise ConfigurationError(
                f"line {number} of {file} has format {told['format']!r}; this release reads format {FORMAT}"
            )
        body = told["body"].encode() if "body" in told else base64.b64decode(told["body_base64"], validate=True)
        properties = {name: value for name, value in _heard(told["properties"]).items() if name not in _NOT_PUT_BACK}
        found = Kept(
            str(told["letter"]["id"]),
            body,
            _heard(told["headers"]),
            properties,
            told["content_type"],
            told["content_encoding"],
        )
        flaw = flaw_of(found)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise _no_letter(file, number) from None
    if flaw is not None:
        raise ConfigurationError(f"line {number} of {file} {flaw}; expected a file that export has written")
    return found


def _no_letter(file: str, number: int) -> ConfigurationError:
    return ConfigurationError(f"line {number} of {file} is no letter; expected a file that export has written")


def expect_new(file: Path) -> None:
    """Refuse a name that another file has.

    Raises:
        ConfigurationError: When there is such a file.
    """
    if file.exists():
        raise ConfigurationError(f"{file} is there already; expected the name of a new file")


@contextmanager
def written_whole(file: Path) -> Iterator[TextIO]:
    """A file that appears under its name when all of it is on the disk, and never takes another one's place.

    Only its owner may read it: it holds arguments.

    Raises:
        ConfigurationError: When there is such a file, or it cannot be written.
    """
    expect_new(file)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be written: {error.strerror}") from None
    draft = Path(name)
    try:
        with open(handle, "w", encoding="utf-8") as stream:  # noqa: PTH123 - a number, and no path
            yield stream
            with _refusing(str(file)):
                stream.flush()
                os.fsync(stream.fileno())
        _publish(draft, file)
        _sync_folder(file.parent)
    finally:
        draft.unlink(missing_ok=True)


def _publish(draft: Path, file: Path) -> None:
    """Give the draft its name; unlike a rename, that refuses a name which somebody else took meanwhile."""
    try:
        file.hardlink_to(draft)
    except FileExistsError:
        expect_new(file)
        raise
    except OSError:  # a file system without links
        expect_new(file)
        draft.rename(file)


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """A full disk is not an error of the broker's, whose errors are of the same type."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ConfigurationError(f"{name} cannot be written: {error.strerror}") from None


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_lines(entries: Iterable[Entry], stream: TextIO) -> int:
    """Write a line for each letter, and say how many there were."""
    count = 0
    for entry in entries:
        line = line_of(entry)
        with _refusing("the file"):
            stream.write(f"{line}\n")
        count += 1
    return count
