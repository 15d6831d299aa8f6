"""The command line, under Celery's own: ``celery -A proj patterns letters …``.

This module is loaded at every call of ``celery``, so it imports nothing that is heavy.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import handle_preload_options

from ._letter import Letter
from ._options import JSON, QUEUE, SELECTION, YES, NewValue, Span
from ._plan import Layer
from ._screens import SHORT_ID, causes_table, letter_page, letters_table, visible
from ._task import PatternTask
from ._terminal import NOT_ALL_DONE, STOPPED, ask, console_of, count_of, json_line, progress, told, total, with_rich
from .exceptions import ConfigurationError, LetterNotFound
from .letters import CANARY_PATIENCE, DeadLetters, Replayed, dead_letters

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["patterns"]


_EXITS = """\b
Exit codes:
  0  done
  1  something could not be done; what and why stands on stderr
  2  wrong use; nothing was done
  3  a replay was stopped by its canaries"""


@click.group()
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
def patterns(ctx: click.Context, /, **_: Any) -> None:
    """Reliable tasks: what celery-patterns can do from here."""


@patterns.group(epilog=_EXITS)
def letters() -> None:
    """Dead letters: look at them, replay them, keep them in a file.

    Start with "stats": what died, of what, how often.
    """


@letters.command()
@SELECTION
@JSON
@click.pass_context
def stats(ctx: click.Context, /, as_json: bool, **filters: Any) -> None:
    """What the letters died of, the most frequent cause first.

    Letters of one task, one type of error and one place in the code are one cause.
    """
    with told(ctx):
        found = _chosen(ctx, filters)
        table = None if as_json else with_rich(causes_table)
        with progress(found) as watched:
            causes = watched.stats()
        if table is None:
            for cause in causes:
                json_line(asdict(cause))
            return
        if causes:
            console_of(ctx).print(table(causes))
        total(sum(cause.count for cause in causes), found.queue)


@letters.command(name="list")
@SELECTION
@JSON
@click.pass_context
def list_(ctx: click.Context, /, as_json: bool, **filters: Any) -> None:
    """The letters, oldest first."""
    with told(ctx):
        found = _chosen(ctx, filters)
        if as_json:
            for letter in found:
                json_line(asdict(letter))
            return
        table, console, count = with_rich(letters_table), console_of(ctx), 0
        for page in _pages(found):
            console.print(table(page))
            count += len(page)
        total(count, found.queue)


@letters.command()
@click.argument("id_", metavar="ID")
@QUEUE
@click.option("--body", is_flag=True, help="Show its message, too: headers, properties, and the arguments in its body.")
@JSON
@click.pass_context
def show(ctx: click.Context, /, id_: str, queue: str | None, body: bool, as_json: bool) -> None:
    """All about one letter, but its arguments. The first digits of its ID will do."""
    with told(ctx):
        found = _chosen(ctx, {"queue": queue, "id_": id_})
        page = None if as_json else with_rich(letter_page)
        letter = next(iter(found), None)
        if letter is None:
            raise LetterNotFound(f"no letter {id_} stands in {found.queue}")
        message = _message(found) if body else None
        if page is None:
            json_line(message if message is not None else asdict(letter))
        else:
            page(console_of(ctx), letter, message)


@letters.command()
@SELECTION
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), metavar="N", help="At most N letters a second.")
@click.option(
    "--canary",
    type=click.IntRange(1),
    metavar="N",
    help="Replay N first, wait for their outcome, and stop if one dies again or takes too long. Needs a result backend.",
)
@click.option("--canary-timeout", type=Span(), help="How long the canaries may take; 5m by default.")
@click.option("--to", metavar="QUEUE", help="Send them to this queue, and not to the one they came from.")
@click.option(
    "--set",
    "correct",
    type=NewValue(),
    multiple=True,
    help="Correct an argument. The value is read as JSON (5, true, [1, 2]); what is no JSON is a text. "
    "A number that is meant as a text needs its quotes: --set 'code=\"5\"'.",
)
@YES
@JSON
@click.pass_context
def replay(ctx: click.Context, /, as_json: bool, yes: bool, canary_timeout: timedelta | None, **options: Any) -> None:
    """Send letters' messages to where they came from, and take each letter out.

    Killed at any time and called again, it loses no letter. A letter that cannot be sent stays where it is.
    """
    with told(ctx):
        how = {name: options.pop(name) for name in ("dry_run", "rate", "canary", "to")}
        how |= {"correct": dict(options.pop("correct")), "canary_patience": canary_timeout or CANARY_PATIENCE}
        found = _chosen(ctx, options)
        if not yes and not how["dry_run"]:
            ask(f"Replay {count_of(len(found))} of {found.queue}?")
        with progress(found) as watched:
            report = watched.replay_all(**how)
        if as_json:
            json_line(asdict(report))
        else:
            _report(report, found.queue, dry_run=how["dry_run"])
    if report.stopped is not None:
        ctx.exit(STOPPED)
    ctx.exit(NOT_ALL_DONE if report.failed else 0)


@letters.command()
@SELECTION
@click.option("--older-than", type=Span(), help="Only letters that died longer ago than this, for example 30d.")
@click.option("--no-export", is_flag=True, help="Keep no copy.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The file that keeps the copy; made up by default."
)
@YES
@JSON
@click.pass_context
def purge(
    ctx: click.Context,
    /,
    older_than: timedelta | None,
    no_export: bool,
    output: Path | None,
    yes: bool,
    as_json: bool,
    **filters: Any,
) -> None:
    """Delete letters for good, after they were exported to a file.

    Only what stands in the file is deleted.
    """
    with told(ctx):
        found = _chosen(ctx, filters)
        found = found if older_than is None else found.where(until=older_than)
        if not yes:
            ask(f"Delete {count_of(len(found))} of {found.queue}{' and keep no copy' if no_export else ''}?")
        file = None if no_export else output or _new_file(found.queue)
        if file is not None:
            with progress(found) as watched:
                watched.export(file)
        with progress(found) as watched:
            count = watched.purge(kept_in=file)
        if as_json:
            json_line({"purged": count, "file": None if file is None else str(file)})
        else:
            click.echo(
                f"Deleted {count_of(count)} of {found.queue}." + ("" if file is None else f" They are in {file}.")
            )


@letters.command()
@SELECTION
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A new file; stdout by default.")
@click.pass_context
def export(ctx: click.Context, /, output: Path | None, **filters: Any) -> None:
    """Write letters, with all of their messages, as JSON: one object a line.

    The letters stay. The file holds the tasks' arguments, and only you can read it.
    """
    with told(ctx):
        found = _chosen(ctx, filters)
        if output is None:
            found.export(sys.stdout)
            return
        with progress(found) as watched:
            count = watched.export(output)
        click.echo(f"Wrote {count_of(count)} of {found.queue} to {output}.")


@letters.command(name="import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@QUEUE
@JSON
@click.pass_context
def import_(ctx: click.Context, /, file: Path, queue: str | None, as_json: bool) -> None:
    """Put letters out of a FILE of "export" back into the queue.

    One that stands there already is left out.
    """
    with told(ctx):
        found = _chosen(ctx, {"queue": queue})
        with progress(found) as watched:
            count = watched.restore(file)
        if as_json:
            json_line({"imported": count})
        else:
            click.echo(f"Put {count_of(count)} back into {found.queue}.")


def _chosen(ctx: click.Context, filters: dict[str, Any]) -> DeadLetters:
    queue, short = filters.pop("queue"), filters.pop("id_", None)
    app = _app_of(ctx)
    found = dead_letters(app, queue or _only_queue(app))
    return found.where(id=short and _whole_id(found, short), **filters)


def _app_of(ctx: click.Context) -> Celery:
    """The app that was asked for: without -A, Celery would hand us one that has no broker."""
    if ctx.find_root().params.get("app") is None:
        raise click.UsageError(f"which app? expected celery -A proj {ctx.command_path.partition(' ')[2]}", ctx)
    app: Celery = ctx.obj.app
    app.loader.import_default_modules()
    app.finalize()
    return app


def _whole_id(found: DeadLetters, short: str) -> str:
    """The id that begins like this, or what was given, when none does."""
    ids: list[str] = []
    for letter in found:
        if letter.id == short:
            return short
        if letter.id.startswith(short):
            ids.append(letter.id)
    if len(ids) > 1:
        raise ConfigurationError(f"{len(ids)} letters begin with {short}, for example {ids[0]} and {ids[1]}")
    return ids[0] if ids else short


def _only_queue(app: Celery) -> str:
    queues = dead_queues(app)
    if len(queues) == 1:
        return queues[0]
    known = f"the app's tasks name {', '.join(queues)}" if queues else "none of the app's tasks wears dead_letter"
    raise ConfigurationError(f"which queue? {known}; expected -Q with one")


def dead_queues(app: Celery) -> list[str]:
    """The dead-letter queues that the app's tasks name."""
    found = set()
    for name, task in app.tasks.items():
        plan = task.plan if isinstance(task, PatternTask) else None
        for pattern in () if plan is None else plan.patterns:
            if pattern.layer is Layer.BURY:
                found.add(getattr(pattern, "queue", None) or f"{_queue_of(app, name, task)}.dead")
    return sorted(found)


def _queue_of(app: Celery, name: str, task: Any) -> str:
    route = app.amqp.router.route(task._get_exec_options(), name)  # noqa: SLF001 - what apply_async asks, too
    queue = route.get("queue")
    return str(getattr(queue, "name", queue) or app.conf.task_default_queue)


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


def _message(found: DeadLetters) -> dict[str, Any]:
    line = io.StringIO()
    found.export(line)
    told: dict[str, Any] = json.loads(line.getvalue().splitlines()[0])
    return told


def _report(report: Replayed, queue: str, *, dry_run: bool) -> None:
    click.echo(f"{'Would replay' if dry_run else 'Replayed'} {count_of(report.sent)} of {queue}.")
    if report.stopped is not None:
        click.echo(f"Stopped: {visible(report.stopped)}.", err=True)
    if report.failed:
        click.echo(f"{count_of(report.failed)} could not be replayed and stay:", err=True)
    for failure in report.failures:
        click.echo(f"  {visible(failure.id[:SHORT_ID])}  {visible(failure.error)}", err=True)
    if report.failed > len(report.failures):
        click.echo(f"  … and {report.failed - len(report.failures)} more", err=True)


def _new_file(queue: str) -> Path:
    now = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    name = re.sub(r"[^\w.-]", "_", queue)
    return Path(f"{name}-{now}.jsonl")
