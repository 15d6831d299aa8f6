"""``celery -A proj patterns letters …``: what a user types about dead letters."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click

from .._letter import Letter
from ..exceptions import LetterNotFound
from ..letters import CANARY_TIMEOUT, DeadLetters, expect_new
from ._acts import exported, imported, purged, replayed, tried
from ._options import FILLED, JSON, QUEUE, REPLAY, SELECTION, YES, Span, once
from ._reports import dry_run_told, replay_told
from ._screens import causes_table, facts_of, letter_page, letters_table
from ._targets import Target, nowhere, queue_to_fill, target, targets
from ._terminal import (
    NOT_ALL_DONE,
    STOPPED,
    Bar,
    ask,
    bar_of,
    console_of,
    count_of,
    json_line,
    say,
    told,
    with_rich,
)

__all__ = ["letters"]


_EXITS = """\b
Exit codes:
  0  done
  1  something could not be done; what and why stands on stderr
  2  wrong use; nothing was done
  3  a replay was stopped by its canaries
  130  interrupted; what was done until then stands on stderr"""


@click.group(epilog=_EXITS)
def letters() -> None:
    """Dead letters: look at them, replay them, keep them in a file.

    Start with "stats": what died, of what, how often.

    On RabbitMQ a command does not see the letters that another one is reading or replaying at that moment.
    """


@letters.command()
@SELECTION
@JSON
@click.pass_context
def stats(ctx: click.Context, /, as_json: bool, **filters: Any) -> None:
    """What the letters died of, queue by queue, the most frequent cause first.

    Letters of one task, one type of error and one place in the code are one cause. Without -Q it shows each of the app's
    dead-letter queues that holds letters.
    """
    with told(ctx):
        table = None if as_json else with_rich(causes_table)
        found = targets(ctx, filters)
        if table is not None and not found:
            say(nowhere(ctx))
        for number, chosen in enumerate(found):
            with bar_of(f"Reading {chosen.shown_queue}") as bar:
                causes = chosen.letters.watched(bar.look).stats()
            if table is None:
                for cause in causes:
                    json_line({"queue": chosen.queue, **asdict(cause)})
                continue
            if number:
                say("")
            if causes:
                console = console_of(ctx)
                console.print(table(causes, console.width))
                say("")
            say(chosen.total(sum(cause.count for cause in causes), bar.length))


@letters.command(name="list")
@SELECTION
@JSON
@click.pass_context
def list_(ctx: click.Context, /, as_json: bool, **filters: Any) -> None:
    """The letters, oldest first."""
    with told(ctx):
        chosen = target(ctx, filters)
        if as_json:
            for letter in chosen.letters:
                json_line(facts_of(letter))
            return
        table, console, count = with_rich(letters_table), console_of(ctx), 0
        bar = Bar(None)  # it is asked how many there are, and not shown: the tables move the screen
        for page in _pages(chosen.letters.watched(bar.look)):
            console.print(table(page, console.width))
            count += len(page)
        say(f"{chr(10) * bool(count)}{chosen.total(count, bar.length)}")


@letters.command()
@click.argument("id_", metavar="ID")
@QUEUE
@click.option("--body", is_flag=True, help="Show its message, too: headers, properties, and the arguments in its body.")
@JSON
@click.pass_context
def show(ctx: click.Context, /, id_: str, queue: str | None, body: bool, as_json: bool) -> None:
    """All about one letter, but its arguments. The first characters of its ID will do."""
    with told(ctx):
        page = None if as_json else with_rich(letter_page)
        chosen = target(ctx, {"queue": queue, "id_": id_})
        message = _message(chosen) if body else None
        letter = _letter(chosen) if message is None else Letter(**message["letter"])
        if page is not None:
            page(console_of(ctx), letter, message)
        else:
            json_line(facts_of(letter) if message is None else message)


@letters.command()
@SELECTION
@REPLAY
@YES
@JSON
@click.pass_context
def replay(ctx: click.Context, /, as_json: bool, yes: bool, canary_timeout: timedelta | None, **options: Any) -> None:
    """Send letters' messages to where they came from, and take each letter out.

    Killed at any time and called again, it loses no letter. On RabbitMQ what was on its way may be sent twice, under the
    same task ids: that a key absorbs. A letter that cannot be sent stays where it is.
    """
    with told(ctx):
        how = {name: options.pop(name) for name in ("rate", "canary", "to")}
        how |= {"correct": _once_each(options.pop("correct")), "canary_timeout": canary_timeout or CANARY_TIMEOUT}
        dry_run = options.pop("dry_run")
        if dry_run and not as_json:
            with_rich(causes_table)
        chosen = target(ctx, options)
        if dry_run:
            report, causes = tried(chosen, how)
            dry_run_told(ctx, chosen, report, causes, as_json=as_json)
        else:
            report = replayed(chosen, how, yes=yes, as_json=as_json)
            if as_json:
                json_line(asdict(report))
            elif report.sent or report.failed:
                replay_told(chosen, report)
            else:
                say(chosen.nothing())
    if report.stopped is not None:
        ctx.exit(STOPPED)
    ctx.exit(NOT_ALL_DONE if report.failed else 0)


@letters.command()
@SELECTION
@once("--older-than", type=Span(), help="Only letters that died longer ago than this, for example 30d.")
@click.option("--no-export", is_flag=True, help="Keep no copy.")
@once("-o", "--output", type=click.Path(), help="The file that keeps the copy; made up by default.")
@YES
@JSON
@click.pass_context
def purge(
    ctx: click.Context,
    /,
    older_than: timedelta | None,
    no_export: bool,
    output: str | None,
    yes: bool,
    as_json: bool,
    **filters: Any,
) -> None:
    """Delete letters for good, after they were exported to a file.

    Only what stands in the file is deleted.
    """
    if no_export and output is not None:
        raise click.UsageError("-o and --no-export contradict each other; expected one of them", ctx)
    if output == "-":
        raise click.BadParameter("expected the name of a file that keeps the copy", ctx, param_hint="-o")
    with told(ctx):
        if output is not None:
            expect_new(Path(output))  # before it asks
        chosen = _older(target(ctx, filters), older_than)
        count = chosen.counted()
        if count and not yes:
            ask(f"Delete {count_of(count)} of {chosen.shown_queue}{' and keep no copy' if no_export else ''}?")
        file = None if no_export or not count else _new_file(chosen.queue) if output is None else Path(output)
        if file is not None:
            exported(chosen, file)
        deleted = purged(chosen, count, file) if count else 0
        kept = "" if file is None else f" A copy is in {file}."
        if as_json:
            json_line({"purged": deleted, "file": None if file is None else str(file)})
        else:
            say(f"Deleted {count_of(deleted)} of {chosen.shown_queue}.{kept}" if count else chosen.nothing())


@letters.command()
@SELECTION
@once("-o", "--output", type=click.Path(), help='A new file; stdout by default, and for "-".')
@click.pass_context
def export(ctx: click.Context, /, output: str | None, **filters: Any) -> None:
    """Write letters, with all of their messages, as JSON: one object a line.

    The letters stay. The file holds the tasks' arguments, and only you can read it.
    """
    file = None if output in (None, "-") else Path(str(output))
    with told(ctx):
        chosen = target(ctx, filters)
        if next(iter(chosen.letters), None) is None:
            say(chosen.nothing(), err=file is None)
        elif file is None:
            exported(chosen, None)
        else:
            say(f"Wrote {count_of(exported(chosen, file))} of {chosen.shown_queue} to {file}.")


@letters.command(name="import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@FILLED
@YES
@JSON
@click.pass_context
def import_(ctx: click.Context, /, file: str, queue: str | None, yes: bool, as_json: bool) -> None:
    """Put letters out of a FILE of "export" back into the queue. "-" is stdin.

    One that stands there already is left out. It asks before it makes a queue that nobody knows.
    """
    with told(ctx):
        chosen = queue_to_fill(ctx, queue, yes=yes)
        count = imported(chosen, None if file == "-" else Path(file))
        if as_json:
            json_line({"imported": count.back, "stood_there": count.there})
        else:
            say(f"{count}.")


def _older(chosen: Target, older_than: timedelta | None) -> Target:
    if older_than is None:
        return chosen
    return Target(chosen.app, chosen.letters.where(until=older_than), chosen.words | {"until"}, chosen.limit)


def _once_each(values: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values:
        if name in found:
            raise click.BadParameter(f"{name} is given twice", param_hint="--set")
        found[name] = value
    return found


def _letter(chosen: Target) -> Letter:
    for letter in chosen.letters:
        return letter
    raise _gone(chosen)


def _gone(chosen: Target) -> LetterNotFound:
    return LetterNotFound(f"the letter has just gone from {chosen.queue}: somebody else replays it, or looks at it")


def _pages(found: DeadLetters) -> Iterator[list[Letter]]:
    """A screen at a time: a table's columns are as wide as what is in it, and a hundred thousand rows are too many."""
    page: list[Letter] = []
    for letter in found:
        page.append(letter)
        if len(page) == 500:  # noqa: PLR2004 - some screens
            yield page
            page = []
    if page:
        yield page


def _message(chosen: Target) -> dict[str, Any]:
    line = io.StringIO()
    if not chosen.letters.export(line):
        raise _gone(chosen)
    told: dict[str, Any] = json.loads(line.getvalue().splitlines()[0])
    return told


def _new_file(queue: str) -> Path:
    now = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    name = re.sub(r"[^\w.-]", "_", queue)
    return Path(f"{name}-{now}.jsonl")
