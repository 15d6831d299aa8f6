"""What the commands do to letters, with a bar, and what they say when something ends them."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..exceptions import PublishFailed
from ..letters import Cause, Replayed
from ._screens import visible
from ._terminal import NOT_ALL_DONE, WRONG_USE, ask, bar_of, count_of, end, json_line, say, stoppable

if TYPE_CHECKING:
    from pathlib import Path

    from .._letter import Letter
    from ..exceptions import PatternsError
    from ._targets import Target

__all__ = ["Imported", "exported", "imported", "purged", "replayed", "tried", "were"]


def tried(chosen: Target, how: dict[str, Any]) -> tuple[Replayed, list[Cause]]:
    """What a replay would do, and of what causes the letters are."""
    with bar_of(f"Reading {chosen.shown_queue}") as bar:
        report = chosen.letters.watched(bar.look).replay_all(dry_run=True, **how)
    with bar_of(f"Reading {chosen.shown_queue}") as bar:
        return report, chosen.letters.watched(bar.look).stats()


def replayed(chosen: Target, how: dict[str, Any], *, yes: bool, as_json: bool) -> Replayed:
    """Replay the letters, after asking for it; they are counted for the question and for the bar only."""
    count = chosen.counted() if sys.stderr.isatty() or not yes else 0
    if count and not yes:
        to = "" if how["to"] is None else f" to {visible(how['to'])}"
        new = "".join(f", with a new {visible(name)}" for name in how["correct"])
        ask(f"Replay {count_of(count)} of {chosen.shown_queue}{to}{new}?")
    sent = failed = 0
    canaries: list[str] = []

    def so_far(stopped: str) -> str:
        if as_json:
            json_line(asdict(Replayed(sent=sent, failed=failed, stopped=stopped)))
        done = f"{count_of(sent)} of {chosen.shown_queue} {were(sent)} replayed"
        watched = f" Canaries: {', '.join(canaries)}." if canaries and sent == len(canaries) else ""
        return f"{done}. The others stay in the queue; the same command goes on with them.{watched}"

    with stoppable(so_far, lambda: sent + failed), bar_of("Replayed") as bar:

        def step(letter: Letter, error: PatternsError | None) -> None:
            nonlocal sent, failed
            sent, failed = sent + (error is None), failed + (error is not None)
            if error is None and how["canary"] is not None and len(canaries) < how["canary"]:
                canaries.append(letter.replay_id)
                if len(canaries) == how["canary"] and not as_json:
                    waits = f"{how['canary_timeout'].total_seconds():g} s"
                    say(f"Waiting up to {waits} for the canaries, by their task ids: {', '.join(canaries)}", err=True)
            bar.look(sent + failed, max(count, sent + failed))

        return chosen.letters.replay_all(on_each=step, **how)


def purged(chosen: Target, count: int, file: Path | None) -> int:
    """Delete so many letters, of which a copy stands in the file, if there is to be one."""
    done = 0

    def so_far(_: str) -> str:
        kept = "" if file is None else f" {file} holds all that were to be deleted."
        return f"{count_of(done)} of {chosen.shown_queue} {were(done)} deleted. The others stay in the queue.{kept}"

    with stoppable(so_far, lambda: done), bar_of("Deleted") as bar:

        def step(_: Letter) -> None:
            nonlocal done
            done += 1
            bar.look(done, count)

        return chosen.letters.purge(kept_in=file, on_each=step)


def exported(chosen: Target, file: Path | None) -> int:
    """Write the letters to a new file, or to stdout."""
    if file is None:
        with stoppable(lambda _: "what was written ends in the middle. All letters stay in the queue."):
            return chosen.letters.export(sys.stdout)
    with stoppable(lambda _: f"{file} was not written. All letters stay in the queue."), bar_of("Exported") as bar:
        return chosen.letters.watched(bar.look).export(file)


class Imported:
    """How many letters of a file were put back, and how many stood there."""

    def __init__(self, queue: str) -> None:
        self._queue = queue
        self.back = self.there = 0

    def note(self, _: str, put_back: bool) -> None:
        """One letter more."""
        self.back, self.there = self.back + put_back, self.there + (not put_back)

    def __str__(self) -> str:
        there = f"; {self.there:,} stood there already" if self.there else ""
        return f"{count_of(self.back)} {were(self.back)} put back into {self._queue}{there}"


def imported(chosen: Target, file: Path | None) -> Imported:
    """Put the letters of a file, or of stdin, back."""
    count = Imported(chosen.shown_queue)
    try:
        with stoppable(
            lambda _: f"{count}. The same command goes on with the others.", lambda: count.back + count.there
        ):
            chosen.letters.restore(sys.stdin if file is None else file, on_each=count.note)
    except PublishFailed as error:
        end(f"{error}. {count}. The same command goes on with the others", NOT_ALL_DONE)
    if not count.back + count.there:
        end(f"there is no letter in {file or 'the input'}; expected what export has written", WRONG_USE)
    return count


def were(count: int) -> str:
    return "was" if count == 1 else "were"
