"""What may stand on the command line, and how it is written there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .._letter import REASONS
from ..letters import Typed

if TYPE_CHECKING:
    _Type = click.ParamType[Any]
else:
    _Type = click.ParamType

__all__ = ["FILLED", "HELP", "JSON", "QUEUE", "REPLAY", "SELECTION", "YES", "NewValue", "Span", "once"]

_F = TypeVar("_F", bound=Callable[..., Any])

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_SPAN = re.compile(r"^(\d+(?:\.\d+)?)([smhdw])$")


class Span(_Type):
    """``90s``, ``15m``, ``2h``, ``30d`` or ``1w``."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        found = _SPAN.match(value) if isinstance(value, str) else None
        if found is None:
            self.fail(f"expected a number and s, m, h, d or w, for example 30d; got {value!r}", param, ctx)
        try:
            return timedelta(**{_UNITS[found[2]]: float(found[1])})
        except OverflowError:
            self.fail(f"{value} is too long", param, ctx)


class Moment(Span):
    """A span ago, or a moment; one without a zone is in the machine's own.

    Args:
        end: Whether a moment without a fraction, as the screens show it, means its second to the end.
    """

    def __init__(self, *, end: bool = False) -> None:
        self._rest = timedelta(microseconds=999_999) if end else timedelta(0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if _SPAN.match(value):
            return super().convert(value, param, ctx)
        try:
            moment = datetime.fromisoformat(value).astimezone()
            return moment if moment.microsecond else moment + self._rest
        except (ValueError, OverflowError):
            self.fail(f"expected a time ago as 2h or 30d, or a moment as 2026-11-25T09:00; got {value!r}", param, ctx)


class NewValue(_Type):
    """``name=value``; what the value means depends on what stands in the letter."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Typed]:
        name, given, text = value.partition("=")
        if not given or not name:
            self.fail(f"expected name=value, for example order_id=o-1; got {value!r}", param, ctx)
        if text in _PYTHONS:
            self.fail(
                f"{text} is Python's; JSON says {_PYTHONS[text]}, and a text needs its quotes: '\"{text}\"'", param, ctx
            )
        if text[:1] in _OPENING and not _is_json(text):
            self.fail(f"the value of {name} begins as JSON and is none; a text needs its quotes", param, ctx)
        return name, Typed(text)


#: What would be taken for a text, and was hardly meant as one.
_PYTHONS = {"True": "true", "False": "false", "None": "null"}
_OPENING = ("[", "{", '"')


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _options(*options: Callable[[Any], Any]) -> Callable[[_F], _F]:
    def put(command: _F) -> _F:
        for option in reversed(options):
            command = option(command)
        return command

    return put


class _Single(click.Option):
    """Of several values in the environment click would make several; it is one, with spaces in it."""

    def value_from_envvar(self, ctx: click.Context) -> Any:
        value = self.resolve_envvar_value(ctx)
        return None if value is None else (value,)


def once(*names: str, **how: Any) -> Callable[[_F], _F]:
    """An option that is given once: click would take the last of several, and not say so."""

    def single(ctx: click.Context, param: click.Parameter, values: tuple[Any, ...]) -> Any:
        if len(values) > 1:
            raise click.BadParameter(f"it is given {len(values)} times; expected it once", ctx, param)
        return values[0] if values else None

    return click.option(*names, cls=_Single, multiple=True, callback=single, **how)


QUEUE = once(
    "-Q",
    "--queue",
    metavar="NAME",
    help="The dead-letter queue. May be left out when only one of the app's holds letters, or the letter that is named.",
)
FILLED = once(
    "-Q",
    "--queue",
    metavar="NAME",
    help="The dead-letter queue. May be left out when the app's tasks name only one.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="For machines: one JSON object a line.")
_FILTERS = (
    once("--task", metavar="NAME", help="Only letters of this task."),
    once(
        "--reason",
        type=click.Choice(sorted(REASONS)),
        metavar="REASON",
        help=f"Only of this reason: {', '.join(sorted(REASONS))}.",
    ),
    once("--error", metavar="TYPE", help="Only of this type of error, with its module or without: ValueError."),
    once("--cause", metavar="CAUSE", help='Only of this cause, as "stats" shows it; the first characters will do.'),
    once("--since", type=Moment(), help="Died since then: 2h (ago), or 2026-11-25T09:00 (local time)."),
    once("--until", type=Moment(end=True), help="Died until then, written in the same way."),
    once("--id", "id_", metavar="ID", help="Only this letter; the first characters will do."),
    once("--root-id", metavar="ID", help="Only of the workflow that began with this task id."),
    once("--limit", type=click.IntRange(1), metavar="N", help="At most N letters, the oldest first."),
)
SELECTION = _options(QUEUE, *_FILTERS)
YES = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
REPLAY = _options(
    click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing."),
    once("--rate", type=click.FloatRange(0, min_open=True), metavar="N", help="At most N letters a second."),
    once(
        "--canary",
        type=click.IntRange(1),
        metavar="N",
        help="Replay the oldest N first, wait for their outcome, and stop if one dies again or takes too long. "
        "Needs a result backend.",
    ),
    once("--canary-timeout", type=Span(), help="How long the canaries may take; 5m by default."),
    once("--to", metavar="QUEUE", help="Send them to this queue, and not to the one they came from."),
    click.option(
        "--set",
        "correct",
        type=NewValue(),
        multiple=True,
        help="Correct an argument. Where the letter holds a Decimal, a date and the like, the value is read as one: "
        "amount=9.90. Elsewhere it is JSON (5, true, [1, 2]), and what is no JSON is a text. "
        "A number that is meant as a text needs its quotes: --set 'code=\"5\"'. "
        "After an interruption go on with the same values: what was on its way is sent once more.",
    ),
)
#: Celery's own commands have no -h; here either will do.
HELP: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
