"""What the command line shows to people: tables for a terminal, in which nothing of a letter's can do harm."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ._letter import LETTER
from .letters import Cause

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ._letter import Letter

__all__ = ["SHORT_ID", "causes_table", "letter_page", "letters_table", "visible"]

#: How many digits of an id are shown where many letters are; the commands take as few where they are one letter's alone.
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
    try:
        return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, OSError, ValueError):
        return str(seconds)


def _short(error: str) -> str:
    return error.rpartition(".")[2]


def _plain(text: str | None) -> Any:
    from rich.text import Text  # noqa: PLC0415 - an extra, and not paid for by other commands

    return Text(visible(text or "-", lines=True))


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
        ("task, error, place", _FOLDED),
        ("first and last death", _WHOLE),
        ("example", _WHOLE),
    )
    table.leading = 1
    for cause in causes:
        what = [cause.task or "-", _short(cause.error), cause.place or cause.reason]
        table.add_row(
            f"{cause.count:,}",
            _plain("\n".join(map(visible, filter(None, what)))),
            _plain(f"{_moment(cause.first_died)}\n{_moment(cause.last_died)}"),
            _plain(cause.example[:SHORT_ID]),
        )
    return table


def letters_table(letters: Iterable[Letter]) -> Table:
    """Letters, one a line: its text is cut where the room ends."""
    table = _table(
        ("id", _WHOLE),
        ("died", _WHOLE),
        ("task", {**_FOLDED, "max_width": 30}),
        ("error", {**_WHOLE, "overflow": "ellipsis", "ratio": 1}),
    )
    table.expand = True
    for letter in letters:
        table.add_row(
            _plain(letter.id[:SHORT_ID]),
            _plain(_moment(letter.died_at)),
            _plain(visible(letter.task or "-")),
            _plain(visible(_said(letter))),
        )
    return table


def _said(letter: Letter) -> str:
    """The reason, where it is not the usual one, the error, and the first line of its text."""
    reason = "" if letter.reason == "failed" else letter.reason
    text = (letter.message.splitlines() or [""])[0]
    return ": ".join(filter(None, (reason, _short(letter.error), text)))


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
        headers = {name: value for name, value in message["headers"].items() if name != LETTER}
        for name, values in (("headers", headers), ("properties", message["properties"])):
            _block(console, name, json.dumps(values, indent=2, ensure_ascii=False))
        _block(console, "body", message.get("body", message.get("body_base64", "")))


def _block(console: Console, title: str, text: str) -> None:
    from rich.text import Text  # noqa: PLC0415 - an extra, and not paid for by other commands

    if text.strip():
        console.print(Text(title, style="bold"))
        console.print(Text(visible(text.strip("\n"), lines=True)), soft_wrap=True)
        console.print()
