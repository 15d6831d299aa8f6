"""What may stand on the command line, and how it is written there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ._letter import REASONS

if TYPE_CHECKING:
    _Type = click.ParamType[Any]
else:
    _Type = click.ParamType

__all__ = ["JSON", "QUEUE", "SELECTION", "YES", "NewValue", "Span"]

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
    """A span ago, or a moment; one without a zone is in the machine's own."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if _SPAN.match(value):
            return super().convert(value, param, ctx)
        try:
            return datetime.fromisoformat(value).astimezone()
        except (ValueError, OverflowError):
            self.fail(f"expected a time ago as 2h or 30d, or a moment as 2026-11-25T09:00; got {value!r}", param, ctx)


class NewValue(_Type):
    """``name=value``, the value as JSON or else as text."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        name, given, text = value.partition("=")
        if not given or not name:
            self.fail(f"expected name=value, for example order_id=o-1; got {value!r}", param, ctx)
        try:
            return name, json.loads(text)
        except ValueError:
            return name, text


def _options(*options: Callable[[Any], Any]) -> Callable[[_F], _F]:
    def put(command: _F) -> _F:
        for option in reversed(options):
            command = option(command)
        return command

    return put


QUEUE = click.option(
    "-Q",
    "--queue",
    metavar="NAME",
    help="The dead-letter queue. May be left out when the app's tasks name exactly one.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="For machines: one JSON object a line.")
_FILTERS = (
    click.option("--task", metavar="NAME", help="Only letters of this task."),
    click.option("--reason", type=click.Choice(sorted(REASONS)), metavar="REASON", help="Only of this reason."),
    click.option("--error", metavar="TYPE", help="Only of this type of error, for example ValueError."),
    click.option("--since", type=Moment(), help="Died since then: 2h (ago), or 2026-11-25T09:00 (local time)."),
    click.option("--until", type=Moment(), help="Died until then, written in the same way."),
    click.option("--id", "id_", metavar="ID", help="Only this letter; the first digits will do."),
    click.option("--root-id", metavar="ID", help="Only of the workflow that began with this task id."),
    click.option("--limit", type=click.IntRange(1), metavar="N", help="At most so many, the oldest first."),
)
SELECTION = _options(QUEUE, *_FILTERS)
YES = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
