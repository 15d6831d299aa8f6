"""What a replay says in the end: to people, and to machines."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ._screens import SHORT_ID, causes_table, visible
from ._terminal import console_of, count_of, json_line, say, with_rich

if TYPE_CHECKING:
    from ..letters import Cause, Replayed
    from ._targets import Target

__all__ = ["dry_run_told", "replay_told"]


def dry_run_told(ctx: click.Context, chosen: Target, report: Replayed, causes: list[Cause], *, as_json: bool) -> None:
    """What would be sent: of which causes, to which queues, with which arguments corrected."""
    if as_json:
        json_line({**asdict(report), "causes": [asdict(cause) for cause in causes]})
        return
    if not report.sent and not report.failed:
        say(chosen.nothing())
        return
    console = console_of(ctx)
    console.print(with_rich(causes_table)(causes, console.width))
    say("")
    say(f"Would replay {count_of(report.sent)} of {chosen.shown_queue}:")
    for queue, count in report.queues.items():
        say(f"  {count:,} to {visible(queue)}")
    _corrections_told(report)
    _failures_told(report, "could not be replayed and would stay")


def replay_told(chosen: Target, report: Replayed) -> None:
    """How many were sent, why it stopped, what failed."""
    say(f"Replayed {count_of(report.sent)} of {chosen.shown_queue}.")
    _corrections_told(report)
    if report.stopped is not None:
        say(f"Stopped: {visible(report.stopped)}.", err=True)
        for letter, queue in report.died_again.items():
            say(f"See: celery -A … patterns letters show {visible(letter[:SHORT_ID])} -Q {visible(queue)}", err=True)
        say(f"The other letters stay in {chosen.shown_queue}.", err=True)
    _failures_told(report, "could not be replayed and stay")


def _corrections_told(report: Replayed) -> None:
    if report.corrected:
        say("with these arguments corrected:")
    for change, count in report.corrected.items():
        say(f"  {visible(change)} ({count_of(count)})")


def _failures_told(report: Replayed, what: str) -> None:
    if report.failed:
        say(f"{count_of(report.failed)} {what}:", err=True)
    for failure in report.failures:
        say(f"  {visible(failure.id[:SHORT_ID])}  {visible(failure.error)}", err=True)
    if report.failed > len(report.failures):
        say(f"  … and {report.failed - len(report.failures)} more", err=True)
