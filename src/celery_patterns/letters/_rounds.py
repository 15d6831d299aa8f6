"""A replay in rounds: what it would do to each letter, then the canaries, then the others."""

from __future__ import annotations

import time
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING

from .._header_values import as_moment
from .._letter import replay_id
from .._message import HEADER
from .._queues import LONGEST_NAME, dead_queue
from ..exceptions import ConfigurationError
from ._canary import Trouble, expect_backend, unhappy
from ._known import dead_queues, refuse_unconsumed
from ._replay import Replayed, Replayer
from ._undisturbed import between_letters, pause, undisturbed
from ._walk import Walk, ledger_in

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from celery import Celery

    from ._entry import Entry

__all__ = ["refuse_canary", "refuse_target", "replayed"]

#: Seconds for which a canary's new letter is looked for: it is written at about the time of the result.
_LOOKED_FOR, _AGAIN = 3.0, 0.2


def refuse_target(walk: Walk, to: str | None) -> None:
    """Refuse what is no queue, and a queue of letters."""
    if to is None:
        return
    if not isinstance(to, str) or not 0 < len(to.encode()) <= LONGEST_NAME:
        raise ConfigurationError(f"expected to to be a queue's name of at most 255 bytes, got {to!r}")
    if to == walk.queue:
        raise ConfigurationError(f"{to} is where the letters are; expected a queue that a worker consumes")
    refuse_unconsumed(walk.app, to)


def refuse_canary(app: Celery, canary: int | None, patience: timedelta) -> None:
    """Refuse a number that is none, and an app that cannot see an outcome."""
    if not isinstance(patience, timedelta) or patience <= timedelta(0):
        raise ConfigurationError(f"expected canary_timeout to be a timedelta over 0, got {patience!r}")
    if canary is None:
        return
    if type(canary) is not int or canary < 1:
        raise ConfigurationError(f"expected canary to be at least 1, or None for none, got {canary!r}")
    expect_backend(app)


def replayed(
    walk: Walk, replayer: Replayer, *, tried_on: bool, canary: int | None, patience: timedelta, to: str | None
) -> Replayed:
    """Replay the letters.

    Args:
        walk: The letters.
        replayer: How.
        tried_on: Whether a correction must fit all of them before one is sent.
        canary: How many are sent first, if any.
        patience: How long those may take.
        to: The queue that all are sent to, if one is named.
    """
    with undisturbed():
        return _rounds(walk, replayer, tried_on=tried_on, canary=canary, patience=patience, to=to)


def _rounds(
    walk: Walk, replayer: Replayer, *, tried_on: bool, canary: int | None, patience: timedelta, to: str | None
) -> Replayed:
    if tried_on:
        _try_on(walk, replayer)
    if canary is not None:
        began = time.time()
        canaries = _send(walk, replayer, canary, watched=True)
        if not canaries:
            # There are no letters, or others hold or took these: what comes free now has no canary before it.
            failed = replayer.report().failed
            return replayer.report(f"none of {canary} canaries could be sent" if failed else None)
        trouble = unhappy(walk.app, canaries, patience, lambda ids: _buried_again(ids, walk, to, began))
        if trouble is not None:
            again = _letters_of(trouble, walk, to) if trouble.died else {}
            return replayer.report(_told(trouble, again), again)
    limit = walk.chosen.limit if walk.chosen is not None else None
    left = None if limit is None else limit - replayer.report().sent
    if left != 0:
        _send(walk, replayer, left)
    return replayer.report()


def _try_on(walk: Walk, replayer: Replayer) -> None:
    with ExitStack() as stack:
        for entry in walk.entries(walk.open(stack), ledger_in(stack)):
            between_letters()
            replayer.message_of(entry)


def _send(walk: Walk, replayer: Replayer, limit: int | None = None, *, watched: bool = False) -> dict[str, str]:
    if limit is not None and walk.chosen is not None:
        walk = walk.only(limit=min(limit, walk.chosen.limit or limit))
    with ExitStack() as stack:
        ledger, shelf = ledger_in(stack), walk.open(stack)
        return replayer.run(shelf, walk.entries(shelf, ledger, copies=True), watched=watched)


def _letters_of(trouble: Trouble, walk: Walk, to: str | None) -> dict[str, str]:
    """The letters that these replays have left, and their queues, as soon as all of them stand there."""
    deadline = time.monotonic() + _LOOKED_FOR
    near = _near(walk, to)
    while True:
        found = _found(walk, near, trouble)
        if len(found) >= len(trouble.died):
            return found
        if time.monotonic() > deadline:
            # Its task may have another name or another dead-letter queue by now.
            return found | _found(walk, {*dead_queues(walk.app)} - near, trouble)
        pause(_AGAIN)


def _found(walk: Walk, queues: Collection[str], trouble: Trouble) -> dict[str, str]:
    return {
        entry.letter.id: queue
        for queue, entry in _entries_in(walk, queues)
        if entry.letter.task_id in trouble.died or _replay_of(entry)[0] in trouble.died
    }


def _buried_again(ids: Collection[str], walk: Walk, to: str | None, began: float) -> set[str]:
    """Which of these replays, begun since then, have left a letter."""
    told = [_replay_of(entry) for _, entry in _entries_in(walk, _near(walk, to))]
    return {one for one, at in told if one is not None and one in ids and at >= began}


def _near(walk: Walk, to: str | None) -> set[str]:
    """Where a replay's letter would be."""
    return {walk.queue} if to is None else {walk.queue, dead_queue(to)}


def _entries_in(walk: Walk, queues: Collection[str]) -> Iterator[tuple[str, Entry]]:
    for queue in queues:
        with ExitStack() as stack:
            whole = Walk(walk.app, queue)
            for entry in whole.entries(whole.open(stack), ledger_in(stack)):
                between_letters()
                yield queue, entry


def _replay_of(entry: Entry) -> tuple[str | None, float]:
    """The replay that a letter's message was sent by, and when: a message that names no task tells nothing else."""
    ours = entry.message.headers.get(HEADER)
    ours = ours if isinstance(ours, dict) else {}
    of, at = ours.get("replay_of"), as_moment(ours.get("replayed"))
    return replay_id(of) if isinstance(of, str) else None, at or 0.0


def _told(trouble: Trouble, again: dict[str, str]) -> str:
    if not trouble.died:
        return trouble.text
    if not again:
        return f"{trouble.text}: task {', '.join(trouble.died)}; no new letter of it was found"
    letters = "letter" if len(again) == 1 else "letters"
    return f"{trouble.text}: {letters} {', '.join(again)} in {', '.join(dict.fromkeys(again.values()))}"
