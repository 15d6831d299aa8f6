"""The command line, under Celery's own: ``celery -A proj patterns letters …``.

This module is loaded at every call of ``celery``, so it imports nothing that is heavy.
"""

from __future__ import annotations

import io
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from celery.bin.base import handle_preload_options
from kombu.exceptions import OperationalError

from ._letter import REASONS, Letter
from ._plan import Layer
from ._screens import SHORT_ID, causes_table, letter_page, letters_table, visible
from ._task import PatternTask
from .exceptions import ConfigurationError, LetterNotFound, PatternsError, UnsafeValue
from .letters import CANARY_PATIENCE, DeadLetters, Replayed, dead_letters

if TYPE_CHECKING:
    from celery import Celery

    _Type = click.ParamType[Any]
else:
    _Type = click.ParamType

__all__ = ["patterns"]

_F = TypeVar("_F", bound=Callable[..., Any])

NOT_ALL_DONE, WRONG_USE, STOPPED = 1, 2, 3

#: Seconds that need no bar, and between two looks of one.
_SHORT, _REDRAWN = 1.0, 0.1

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_SPAN = re.compile(r"^(\d+(?:\.\d+)?)([smhdw])$")

_EXITS = """\b
Exit codes:
  0  done
  1  something could not be done; what and why stands on stderr
  2  wrong use; nothing was done
  3  a replay was stopped by its canaries"""


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


_QUEUE = click.option(
    "-Q",
    "--queue",
    metavar="NAME",
    help="The dead-letter queue. May be left out when the app's tasks name exactly one.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="For machines: one JSON object a line.")
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
_SELECTION = _options(_QUEUE, *_FILTERS)
_YES = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


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
@_SELECTION
@_JSON
@click.pass_context
def stats(ctx: click.Context, /, as_json: bool, **filters: Any) -> None:
    """What the letters died of, the most frequent cause first.

    Letters of one task, one type of error and one place in the code are one cause.
    """
    with _told(ctx):
        found = _chosen(ctx, filters)
        table = None if as_json else _rich(causes_table)
        with _progress(found) as watched:
            causes = watched.stats()
        for cause in causes if as_json else ():
            _json_line(asdict(cause))
        if table is not None and causes:
            _console(ctx).print(table(causes))
        if table is not None:
            click.echo(
                f"\n{_count(sum(cause.count for cause in causes))} in {found.queue}.".lstrip("\n" * (not causes))
            )


@letters.command(name="list")
@_SELECTION
@_JSON
@click.pass_context
def list_(ctx: click.Context, /, as_json: bool, **filters: Any) -> None:
    """The letters, oldest first."""
    with _told(ctx):
        found = _chosen(ctx, filters)
        if as_json:
            for letter in found:
                _json_line(asdict(letter))
            return
        table, console, count = _rich(letters_table), _console(ctx), 0
        for page in _pages(found):
            console.print(table(page))
            count += len(page)
        click.echo(f"\n{_count(count)} in {found.queue}." if count else f"{_count(0)} in {found.queue}.")


@letters.command()
@click.argument("id_", metavar="ID")
@_QUEUE
@click.option("--body", is_flag=True, help="Show its message, too: headers, properties, and the arguments in its body.")
@_JSON
@click.pass_context
def show(ctx: click.Context, /, id_: str, queue: str | None, body: bool, as_json: bool) -> None:
    """All about one letter, but its arguments. The first digits of its ID will do."""
    with _told(ctx):
        found = _chosen(ctx, {"queue": queue, "id_": id_})
        page = None if as_json else _rich(letter_page)
        letter = next(iter(found), None)
        if letter is None:
            raise LetterNotFound(f"no letter {id_} stands in {found.queue}")
        message = _message(found) if body else None
        if page is None:
            _json_line(message if message is not None else asdict(letter))
        else:
            page(_console(ctx), letter, message)


@letters.command()
@_SELECTION
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
@_YES
@_JSON
@click.pass_context
def replay(ctx: click.Context, /, as_json: bool, yes: bool, canary_timeout: timedelta | None, **options: Any) -> None:
    """Send letters' messages to where they came from, and take each letter out.

    Killed at any time and called again, it loses no letter. A letter that cannot be sent stays where it is.
    """
    with _told(ctx):
        how = {name: options.pop(name) for name in ("dry_run", "rate", "canary", "to")}
        how |= {"correct": dict(options.pop("correct")), "canary_patience": canary_timeout or CANARY_PATIENCE}
        found = _chosen(ctx, options)
        if not yes and not how["dry_run"]:
            _ask(f"Replay {_count(len(found))} of {found.queue}?")
        with _progress(found) as watched:
            report = watched.replay_all(**how)
        if as_json:
            _json_line(asdict(report))
        else:
            _report(report, found.queue, dry_run=how["dry_run"])
    if report.stopped is not None:
        ctx.exit(STOPPED)
    ctx.exit(NOT_ALL_DONE if report.failed else 0)


@letters.command()
@_SELECTION
@click.option("--older-than", type=Span(), help="Only letters that died longer ago than this, for example 30d.")
@click.option("--no-export", is_flag=True, help="Keep no copy.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The file that keeps the copy; made up by default."
)
@_YES
@_JSON
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
    with _told(ctx):
        found = _chosen(ctx, filters)
        found = found if older_than is None else found.where(until=older_than)
        if not yes:
            _ask(f"Delete {_count(len(found))} of {found.queue}{' and keep no copy' if no_export else ''}?")
        file = None if no_export else output or _new_file(found.queue)
        if file is not None:
            with _progress(found) as watched:
                watched.export(file)
        with _progress(found) as watched:
            count = watched.purge(kept_in=file)
        if as_json:
            _json_line({"purged": count, "file": None if file is None else str(file)})
        else:
            click.echo(f"Deleted {_count(count)} of {found.queue}." + ("" if file is None else f" They are in {file}."))


@letters.command()
@_SELECTION
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A new file; stdout by default.")
@click.pass_context
def export(ctx: click.Context, /, output: Path | None, **filters: Any) -> None:
    """Write letters, with all of their messages, as JSON: one object a line.

    The letters stay. The file holds the tasks' arguments, and only you can read it.
    """
    with _told(ctx):
        found = _chosen(ctx, filters)
        if output is None:
            found.export(sys.stdout)
            return
        with _progress(found) as watched:
            count = watched.export(output)
        click.echo(f"Wrote {_count(count)} of {found.queue} to {output}.")


@letters.command(name="import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_QUEUE
@_JSON
@click.pass_context
def import_(ctx: click.Context, /, file: Path, queue: str | None, as_json: bool) -> None:
    """Put letters out of a FILE of "export" back into the queue.

    One that stands there already is left out.
    """
    with _told(ctx):
        found = _chosen(ctx, {"queue": queue})
        with _progress(found) as watched:
            count = watched.restore(file)
        if as_json:
            _json_line({"imported": count})
        else:
            click.echo(f"Put {_count(count)} back into {found.queue}.")


@contextmanager
def _told(ctx: click.Context) -> Iterator[None]:
    """Whatever goes wrong is one line, without a password."""
    try:
        yield
    except (ConfigurationError, UnsafeValue) as error:
        _end(str(error), WRONG_USE)
    except PatternsError as error:
        _end(str(error), NOT_ALL_DONE)
    except BrokenPipeError:
        raise
    except (OperationalError, OSError) as error:
        _end(_unreachable(ctx.obj.app, error), NOT_ALL_DONE)
    except Exception as error:
        if not isinstance(error, _brokers_own(ctx.obj.app)):
            raise
        _end(_unreachable(ctx.obj.app, error), NOT_ALL_DONE)


def _end(text: str, code: int) -> None:
    click.echo(f"Error: {visible(text)}", err=True)
    raise click.exceptions.Exit(code)


def _brokers_own(app: Celery) -> Any:
    connection = app.connection_for_read()
    return (*connection.connection_errors, *connection.channel_errors)


def _unreachable(app: Celery, error: BaseException) -> str:
    connection = app.connection_for_read()
    text = f"the broker at {connection.as_uri()}: {str(error) or type(error).__name__}"
    return text.replace(connection.password, "**") if connection.password else text


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


def _rich(screen: _F) -> _F:
    """A screen that needs rich."""
    try:
        import rich  # noqa: F401, PLC0415 - an extra
    except ImportError:
        _end('tables need rich: pip install "celery-patterns[cli]"; --json works without', NOT_ALL_DONE)
    return screen


def _console(ctx: click.Context) -> Any:
    from rich.console import Console  # noqa: PLC0415 - an extra

    return Console(no_color=bool(ctx.obj.no_color) or None, highlight=False)


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


@contextmanager
def _progress(found: DeadLetters) -> Iterator[DeadLetters]:
    """A bar on stderr, when somebody looks at it and the work is long."""
    if not sys.stderr.isatty():
        yield found
        return
    began = drawn = time.monotonic()
    with ExitStack() as stack:
        bars: list[Any] = []

        def look(looked: int, standing: int) -> None:
            nonlocal drawn
            now = time.monotonic()
            if now - began < _SHORT or (now - drawn < _REDRAWN and looked < standing):
                return
            drawn = now
            if not bars:
                bars.append(stack.enter_context(click.progressbar(length=standing, file=sys.stderr, show_pos=True)))
            bars[0].update(looked - bars[0].pos)

        yield found.watched(look)


def _message(found: DeadLetters) -> dict[str, Any]:
    line = io.StringIO()
    found.export(line)
    told: dict[str, Any] = json.loads(line.getvalue().splitlines()[0])
    return told


def _report(report: Replayed, queue: str, *, dry_run: bool) -> None:
    click.echo(f"{'Would replay' if dry_run else 'Replayed'} {_count(report.sent)} of {queue}.")
    if report.stopped is not None:
        click.echo(f"Stopped: {visible(report.stopped)}.", err=True)
    if report.failed:
        click.echo(f"{_count(report.failed)} could not be replayed and stay:", err=True)
    for failure in report.failures:
        click.echo(f"  {visible(failure.id[:SHORT_ID])}  {visible(failure.error)}", err=True)
    if report.failed > len(report.failures):
        click.echo(f"  … and {report.failed - len(report.failures)} more", err=True)


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise ConfigurationError("nobody is there to be asked; expected --yes")
    if not click.confirm(question):
        _end("nothing was done", NOT_ALL_DONE)


def _new_file(queue: str) -> Path:
    now = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    name = re.sub(r"[^\w.-]", "_", queue)
    return Path(f"{name}-{now}.jsonl")


def _count(number: int) -> str:
    return f"{number:,} letter{'' if number == 1 else 's'}"


def _json_line(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value))
