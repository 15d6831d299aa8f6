"""What the command line shows to people: tables for a terminal, in which nothing of a letter's can do harm."""

from __future__ import annotations

import base64
import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from .._letter import LETTER
from ..letters import Cause

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from .._letter import Letter
    from ..typing import KeyRecord

__all__ = [
    "SHORT_ID",
    "causes_table",
    "claim_facts",
    "claim_page",
    "claims_table",
    "facts_of",
    "letter_page",
    "letters_table",
    "state_of",
    "task_id_of",
    "visible",
]

#: How many characters of an id are shown where many letters are; the commands take fewer where they are one letter's alone.
SHORT_ID = 8

_BEYOND = "Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"


def visible(text: str, *, lines: bool = False) -> str:
    """A text without what a terminal would obey: control characters are written as Python writes them.

    Args:
        text: Anybody's.
        lines: Whether line ends and tabs stay.
    """
    kept = "\n\t" if lines else ""
    return "".join(
        one if one in kept or unicodedata.category(one) not in _BEYOND else one.encode("unicode_escape").decode()
        for one in text
    )


def _moment(seconds: float) -> str:
    """A moment in this machine's time, and how far that is from UTC."""
    try:
        return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")
    except (OverflowError, OSError, ValueError):
        return str(seconds)


def _short(error: str) -> str:
    return error.rpartition(".")[2]


def _plain(text: str | None) -> Any:
    from rich.text import Text  # noqa: PLC0415 - an extra, and not paid for by other commands

    return Text(visible(text or "-", lines=True))


def _lines(*parts: str | None) -> Any:
    """A cell of several lines, of which none is empty."""
    return _plain("\n".join(visible(part) for part in parts if part))


def _table(*columns: tuple[str, dict[str, Any]]) -> Table:
    from rich import box  # noqa: PLC0415 - as above
    from rich.table import Table as Made  # noqa: PLC0415 - as above

    table = Made(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for name, options in columns:
        table.add_column(name, **options)
    return table


_WHOLE: dict[str, Any] = {"no_wrap": True}
_FOLDED: dict[str, Any] = {"overflow": "fold"}

#: Columns of a terminal that give a letter's moment a column of its own.
_WIDE_LETTERS = 100
#: Columns that stand beside the one that gives way.
_BESIDE_CAUSES, _BESIDE_LETTERS, _MOMENT = 29, 10, 27
#: Characters of an error's text in a table.
_ERROR = 200
#: So many characters of one error's text beside those of the same cause.
_EXAMPLE = 60


def causes_table(causes: Sequence[Cause], width: int) -> Table:
    """Causes, one a row, in so many columns of a terminal; moments have a column of their own where there is room."""
    wide = all(len(visible(line)) <= width - _BESIDE_CAUSES - _MOMENT for cause in causes for line in _what(cause))
    moments = [("first and last death", _WHOLE)] if wide else []
    table = _table(
        ("letters", {**_WHOLE, "justify": "right"}),
        ("task, error, place" if wide else "task, error, place, deaths", _FOLDED),
        *moments,
        ("cause", _WHOLE),
        ("example", _WHOLE),
    )
    table.leading = 1
    room = width - (_BESIDE_CAUSES + wide * _MOMENT)
    for cause in causes:
        task, *others = _what(cause)
        what = [*_broken(task, room), *others]
        when = [_moment(cause.first_died), _moment(cause.last_died)]
        if not wide:
            when = [f"first {when[0]}", f"last  {when[1]}"]
        table.add_row(
            _plain(f"{cause.count:,}"),
            *([_lines(*what), _lines(*when)] if wide else [_lines(*what, *when)]),
            _plain(cause.fingerprint[:SHORT_ID]),
            _plain(cause.example[:SHORT_ID]),
        )
    return table


def _what(cause: Cause) -> tuple[str, str, str]:
    text = _beginning(cause.message, _EXAMPLE)
    return cause.task or "-", ": ".join(filter(None, (_short(cause.error), text))), cause.place or cause.reason


def letters_table(letters: Iterable[Letter], width: int) -> Table:
    """Letters, each in a row of one line or more, in so many columns of a terminal."""
    if width >= _WIDE_LETTERS:
        table = _table(("id", _WHOLE), ("died", _WHOLE), ("task", _FOLDED), ("error", _FOLDED))
        for letter in letters:
            table.add_row(
                _plain(letter.id[:SHORT_ID]),
                _plain(_moment(letter.died_at)),
                _lines(letter.task),
                _lines(_said(letter)),
            )
        return table
    table = _table(("id", _WHOLE), ("died, task, error", _FOLDED))
    table.leading = 1
    room = width - _BESIDE_LETTERS
    for letter in letters:
        table.add_row(
            _plain(letter.id[:SHORT_ID]),
            _lines(_moment(letter.died_at), *_broken(letter.task or "", room), _said(letter)),
        )
    return table


def _broken(name: str, room: int) -> list[str]:
    """A dotted name in lines of so many characters, broken behind a dot where that can be."""
    lines = [""]
    for part in visible(name).split("."):
        if lines[-1] and len(lines[-1]) + len(part) + 1 > room:
            lines.append("")
        lines[-1] += f"{part}."
    return [*lines[:-1], lines[-1][:-1]]


def _said(letter: Letter) -> str:
    """The reason, where it is not the usual one, the error, and the beginning of its text."""
    reason = "" if letter.reason == "failed" else letter.reason
    return ": ".join(filter(None, (reason, _short(letter.error), _beginning(letter.message, _ERROR))))


def _beginning(text: str, length: int) -> str:
    """Its first line, so many characters of it."""
    line = (text.splitlines() or [""])[0]
    return line if len(line) <= length else f"{line[: length - 1]}…"


def facts_of(letter: Letter) -> dict[str, Any]:
    """All that is known of a letter, but for what a corrected argument was."""
    corrected = [{name: value for name, value in one.items() if name != "was"} for one in letter.corrected]
    return {**asdict(letter), "corrected": corrected}


def letter_page(console: Console, letter: Letter, message: dict[str, Any] | None) -> None:
    """All that is known of one letter.

    Args:
        console: Where to.
        letter: The letter.
        message: Its message as it is exported, when that is asked for.
    """
    table = _table(("", {**_WHOLE, "style": "bold"}), ("", _FOLDED))
    table.show_header = False
    for name, value in (facts_of(letter) if message is None else asdict(letter)).items():
        if name in ("traceback", "message") or value in (None, "", [], {}):
            continue
        table.add_row(name, _lines(*_fields(name, value)))
    console.print(table)
    console.print()
    _block(console, "message", letter.message)
    _block(console, "traceback", letter.traceback)
    if message is not None:
        headers = {name: value for name, value in message["headers"].items() if name != LETTER}
        for name, values in (("headers", headers), ("properties", message["properties"])):
            _block(console, name, json.dumps(values, indent=2, ensure_ascii=False))
        _block(console, *_body(message))


def _body(message: dict[str, Any]) -> tuple[str, str]:
    """What stands above a message's body, and the body: as text, where it is one."""
    kind = ", ".join(str(one) for one in ("body", message.get("content_type"), message.get("content_encoding")) if one)
    if "body" in message:
        return kind, message["body"]
    data = base64.b64decode(message.get("body_base64", ""))
    try:
        return kind, data.decode()
    except UnicodeDecodeError:
        return f"{kind}, {len(data):,} bytes in base64", message["body_base64"]


def _fields(name: str, value: Any) -> list[str]:
    """What a letter's field holds, in lines."""
    if name == "history":
        return [_attempt(one) for one in value]
    if name == "corrected":
        return [json.dumps(one, ensure_ascii=False) for one in value]
    if isinstance(value, float):
        return [_moment(value)]
    if not isinstance(value, dict):
        return [str(value)]
    return [f"{key}: {_moment(one) if key == 'timestamp' else one}" for key, one in value.items()]


def _attempt(told: dict[str, Any]) -> str:
    at = told.get("at")
    began = "" if not isinstance(at, int | float) else f" at {_moment(at)}"
    return f"attempt {told.get('attempt')}{began}: {told.get('error')}"


def _block(console: Console, title: str, text: str) -> None:
    from rich.text import Text  # noqa: PLC0415 - an extra, and not paid for by other commands

    if text.strip():
        console.print(Text(visible(title), style="bold"))
        console.print(Text(visible(text.strip("\n"), lines=True)), soft_wrap=True)
        console.print()


def claims_table(records: Iterable[KeyRecord]) -> Table:
    """Keys, each in a row of two lines."""
    table = _table(("key", _FOLDED), ("state", _WHOLE), ("of the task", _FOLDED))
    table.leading = 1
    for record in records:
        task, _, digest = record.key.rpartition(":")
        table.add_row(_lines(task, digest[:SHORT_ID]), _lines(*_state(record)), _plain(task_id_of(record)))
    return table


def _state(record: KeyRecord) -> list[str]:
    """In words, and for how long."""
    if record.held_for is None:
        return [record.state, f"kept for {_span(record.expires_in)}"]
    crashed = f", start {record.starts}" if record.starts > 1 else ""
    return [state_of(record), f"held for {_span(record.held_for)}{crashed}"]


def _span(length: timedelta) -> str:
    """A span of time in its largest two units."""
    seconds = int(length.total_seconds())
    for unit, size, smaller in (("d", 86400, "h"), ("h", 3600, "m"), ("m", 60, "s")):
        if seconds >= size:
            rest = seconds % size // {"h": 3600, "m": 60, "s": 1}[smaller]
            return f"{seconds // size}{unit} {rest}{smaller}"
    return f"{seconds}s"


def task_id_of(record: KeyRecord) -> str | None:
    """Which task's delivery has the key, or has done its work; None where nobody has, or its id was not kept."""
    task_id = record.owner.rpartition(".")[0]
    return None if not task_id or task_id.startswith("?") else task_id


def state_of(record: KeyRecord) -> str:
    """``lost`` is what is held, and its lease is over."""
    return "lost" if record.state == "running" and not record.lease_left else record.state


def claim_facts(record: KeyRecord) -> dict[str, Any]:
    """All that is known of a key; spans in seconds."""
    task, _, digest = record.key.rpartition(":")
    told = {name: one.total_seconds() if isinstance(one, timedelta) else one for name, one in asdict(record).items()}
    return {"task": task, "digest": digest, "task_id": task_id_of(record), **told, "state": state_of(record)}


def claim_page(console: Console, record: KeyRecord, workers: list[str] | None) -> None:
    """All that is known of one key.

    Args:
        console: Where to.
        record: What the store says of it.
        workers: Who says that it runs the task, or why that is not known; None where nobody is to be asked.
    """
    table = _table(("", {**_WHOLE, "style": "bold"}), ("", _FOLDED))
    table.show_header = False
    for name, value in claim_facts(record).items():
        if value in (None, ""):
            continue
        span = isinstance(getattr(record, name, None), timedelta)
        table.add_row(name, _plain(_span(timedelta(seconds=value)) if span else str(value)))
    if workers is not None:
        table.add_row("worker", _lines(*workers))
    console.print(table)
