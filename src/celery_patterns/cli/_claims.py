"""``celery -A proj patterns claims …``: what a user types about keys."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from .._equipment import equipment_of
from ..exceptions import ConfigurationError
from ..typing import InspectableStore, KeyRecord
from ._keys import expect_text, found
from ._options import JSON, YES, once
from ._screens import SHORT_ID, claim_facts, claim_page, claims_table, state_of, task_id_of, visible
from ._targets import app_of
from ._terminal import NOT_ALL_DONE, ask, brokers_own, console_of, end, json_line, say, told, unreachable, with_rich

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["claims"]

#: Rows of one table: it is shown before the next keys are looked at.
_PAGE = 100
#: For how many seconds workers are asked who runs a task.
_ANSWER = 1.0

_EXITS = """\b
Which key:
  shop.charge order_id=o-1               what the key is made of
  shop.charge idempotency_key=import-17  one that the call brought
  3fa85f64                               as "list" shows it; the first characters will do
\b
Exit codes:
  0  done
  1  something could not be done; what and why stands on stderr
  2  wrong use; nothing was done
  130  interrupted"""

_WHICH = click.argument("which", metavar="TASK NAME=VALUE… | DIGEST", nargs=-1, required=True)


@click.group(epilog=_EXITS)
def claims() -> None:
    """Keys of idempotent tasks: who has them, since when, and for how long.

    Start with "list --state lost": keys whose worker is gone.
    """


@claims.command(name="list")
@once("--task", metavar="NAME", help="Only keys of this task.")
@once(
    "--state",
    type=click.Choice(["running", "lost", "done", "failed", "free"]),
    help="Only these. Lost is one that is held, and its lease is over: its message takes it over when it comes back.",
)
@once("--limit", type=click.IntRange(1), metavar="N", help="At most N keys.")
@JSON
@click.pass_context
def list_(ctx: click.Context, /, task: str | None, state: str | None, limit: int | None, as_json: bool) -> None:
    """The keys that the store knows, in no order."""
    with told(ctx):
        app = app_of(ctx)
        store = _store_of(app)
        expect_text(task or "")
        records = store.records(f"{task}:" if task else "")
        chosen = itertools.islice((one for one in records if _matches(one, task, state)), limit)
        if as_json:
            for record in chosen:
                json_line(claim_facts(record))
            return
        table, console, count = with_rich(claims_table), console_of(ctx), 0
        for page in _pages(chosen):
            console.print(table(page))
            count += len(page)
        strange = f" The app has no task {visible(task)}." if task and not count and task not in app.tasks else ""
        say(f"{chr(10) * bool(count)}{count:,} key{'' if count == 1 else 's'}.{strange}")


@claims.command()
@_WHICH
@JSON
@click.pass_context
def show(ctx: click.Context, /, which: tuple[str, ...], as_json: bool) -> None:
    """All about one key. Of one that runs, the workers are asked which of them runs it."""
    with told(ctx):
        page = None if as_json else with_rich(claim_page)
        app = app_of(ctx)
        record = found(app, _store_of(app), which)
        workers, why_not = _workers(app, record) if record.state == "running" else (None, "")
        if page is None:
            json_line({**claim_facts(record), "workers": workers})
        else:
            page(console_of(ctx), record, workers or ([why_not] if why_not else None))


@claims.command()
@_WHICH
@click.option(
    "--force", is_flag=True, help="Also when its lease holds: whoever runs then can no longer record its work."
)
@YES
@click.pass_context
def release(ctx: click.Context, /, which: tuple[str, ...], force: bool, yes: bool) -> None:
    """Free a key, so that the next message with it runs at once."""
    with told(ctx):
        app = app_of(ctx)
        store = _store_of(app)
        record = found(app, store, which)
        name = _name(record)
        if record.state != "running":
            end(f"nobody holds {name}: it is {record.state}", NOT_ALL_DONE)
        if record.lease_left and not force:
            left = max(1, round(record.lease_left.total_seconds()))
            end(
                f"{name} is held by {_whose(record)}, whose lease is {left} s long still, and is renewed as long "
                "as its body runs. With --force it is taken from it: two may then run at once",
                NOT_ALL_DONE,
            )
        if record.lease_left and not yes:
            ask(f"Take {name} from {visible(_whose(record))}, which runs?")
        if not store.free(record.key, record.fence, living=force):
            end(f"{name} has changed meanwhile; look again", NOT_ALL_DONE)
        say(f"{name} is free.")


@claims.command()
@_WHICH
@YES
@click.pass_context
def forget(ctx: click.Context, /, which: tuple[str, ...], yes: bool) -> None:
    """Forget that a key's work is done: the next message with it does it again."""
    with told(ctx):
        app = app_of(ctx)
        store = _store_of(app)
        record = found(app, store, which)
        name = _name(record)
        if record.state not in ("done", "failed"):
            cure = ' "release" frees it' if record.state == "running" else ""
            end(f"the work of {name} is not done: it is {record.state}.{cure}", NOT_ALL_DONE)
        if not yes:
            ask(f"Let the work of {name} be done again?")
        if not store.forget(record.key, fence=record.fence):
            end(f"{name} has changed meanwhile; look again", NOT_ALL_DONE)
        say(f"The work of {name} is forgotten.")


def _store_of(app: Celery) -> InspectableStore:
    store = equipment_of(app).store
    if not isinstance(store, InspectableStore):
        raise ConfigurationError(
            f"the app's store, {type(store).__name__}, cannot be looked through: it has no records()"
        )
    return store


def _matches(record: KeyRecord, task: str | None, state: str | None) -> bool:
    return task in (None, record.key.rpartition(":")[0]) and state in (None, state_of(record))


def _whose(record: KeyRecord) -> str:
    task_id = task_id_of(record)
    return f"task {task_id}" if task_id else "a task whose id is not kept"


def _name(record: KeyRecord) -> str:
    task, _, digest = record.key.rpartition(":")
    return visible(f"{task} {digest[:SHORT_ID]}")


def _pages(records: Iterator[KeyRecord]) -> Iterator[list[KeyRecord]]:
    while page := list(itertools.islice(records, _PAGE)):
        yield page


def _workers(app: Celery, record: KeyRecord) -> tuple[list[str] | None, str]:
    """The workers that say they run the task, or have it and will; where there are none, why."""
    task_id = task_id_of(record)
    if task_id is None:
        return None, "cannot be asked: the task's id is not kept, since it is long or odd"
    try:
        answers = app.control.inspect(timeout=_ANSWER).query_task([task_id]) or {}
    except brokers_own(app) as error:
        return None, f"cannot be asked: {unreachable(app, error)}"
    told = [(worker, *tasks[task_id]) for worker, tasks in answers.items() if task_id in (tasks or {})]
    running = [f"{worker}, pid {request.get('worker_pid')}, {state}" for worker, state, request in told]
    return running, "none that answers runs its task"
