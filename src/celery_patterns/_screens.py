"""What the command line shows to people: tables for a terminal, in which nothing of a letter's can do harm."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from .letters import Cause

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ._letter import Letter

__all__ = ["SHORT_ID", "causes_table", "letter_page", "letters_table", "visible"]

#: How many digits of an id are shown where many letters are; the commands take as few where they are one letter's alone.
SHORT_ID = 8

_BEYOND = "Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"
_LINES = 40


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
    try:
        return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, OSError, ValueError):
        return str(seconds)


def _short(error: str) -> str:
    return error.rpartition(".")[2]


def _plain(text: str | None) -> Any:
    from rich.text import Text  # noqa: PLC0415 - an extra, and not paid for by other commands

    return Text(visible(text or "-"))


def _table(*columns: tuple[str, dict[str, Any]]) -> Table:
    from rich import box  # noqa: PLC0415 - as above
    from rich.table import Table as Made  # noqa: PLC0415 - as above

    table = Made(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name, options in columns:
        table.add_column(name, **options)
    return table


_WHOLE: dict[str, Any] = {"no_wrap": True}
_FOLDED: dict[str, Any] = {"overflow": "fold"}


def causes_table(causes: Iterable[Cause]) -> Table:
    """Causes, one a row."""
    table = _table(
        ("letters", {**_WHOLE, "justify": "right"}),
        ("task", _FOLDED),
        ("error", _FOLDED),
        ("where", _FOLDED),
        ("first and last death", _WHOLE),
        ("example", _WHOLE),
    )
    for cause in causes:
        table.add_row(
            str(cause.count),
            _plain(cause.task),
            _plain(_short(cause.error) or cause.reason),
            _plain(cause.place or cause.reason),
            _plain(_moment(cause.first_died)) + "\n" + _plain(_moment(cause.last_died)),
            _plain(cause.example[:SHORT_ID]),
        )
    return table


def letters_table() -> Table:
    """The head of a list of letters; :func:`letter_row` gives its rows."""
    return _table(
        ("id", _WHOLE),
        ("died", _WHOLE),
        ("task", _FOLDED),
        ("reason", _FOLDED),
        ("error", {"overflow": "ellipsis", "ratio": 1}),
    )


def letter_row(letter: Letter) -> tuple[Any, ...]:
    """One letter in a list: its first line of text, cut where the room ends."""
    text = (letter.message.splitlines() or [""])[0]
    said = f"{_short(letter.error)}: {text}" if text else _short(letter.error)
    return (
        _plain(letter.id[:SHORT_ID]),
        _plain(_moment(letter.died_at)),
        _plain(letter.task),
        _plain(letter.reason),
        _plain(said),
    )


def letter_page(console: Console, letter: Letter, message: dict[str, Any] | None) -> None:
    """All that is known of one letter.

    Args:
        console: Where to.
        letter: The letter.
        message: Its message as it is exported, when that is asked for.
    """
    table = _table(("", {**_WHOLE, "style": "bold"}), ("", _FOLDED))
    table.show_header = False
    for name, value in asdict(letter).items():
        if name in ("traceback", "message") or value in (None, "", [], {}):
            continue
        told = _moment(value) if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
        table.add_row(name, _plain(told))
    console.print(table)
    console.print()
    _block(console, "message", letter.message)
    _block(console, "traceback", letter.traceback)
    if message is not None:
        for name in ("headers", "properties"):
            _block(console, name, json.dumps(message[name], indent=2, ensure_ascii=False))
        _block(console, "body", message.get("body", message.get("body_base64", "")))


def _block(console: Console, title: str, text: str) -> None:
    from rich.text import Text  # noqa: PLC0415 - an extra, and not paid for by other commands

    if text.strip():
        console.print(Text(title, style="bold"))
        console.print(Text(visible(text.strip("\n"), lines=True)), soft_wrap=True)
        console.print()
