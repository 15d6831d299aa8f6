"""What a store knows of one key, and what each step makes of it: the claim table, without a clock and without a place.

Each step takes the record as it stands, None where there is none, and answers with the record that is to stand instead,
None where nothing changes. Times are microseconds on the store's clock. A record that has expired is none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from ..typing import Answer, Attempt, Claimed, Done, Ended, KeyRecord, Mismatch, Running
from ._marks import mark_of, marked, run_digest
from ._spans import span

__all__ = [
    "REMEMBERED",
    "STARTS",
    "Record",
    "Spans",
    "claim",
    "complete",
    "count_start",
    "forget",
    "free",
    "release",
    "renew",
    "run_digest",
    "told",
]


#: What a result begins with that is no result, but the failure that is remembered in its place. No JSON text begins so.
REMEMBERED = b"!"
#: What the names of records begin with that count the starts of messages without a key. No task is called so.
STARTS = ":starts:"


class Spans(NamedTuple):
    """How long the lease is, and how long the record outlives it, in microseconds."""

    lease: int
    ttl: int


@dataclass(frozen=True, slots=True)
class Record:
    """One key's record.

    Attributes:
        run: A digest of the run that has the key, and ``number`` its attempt.
        starts: How many runs in a row began without coming to an end.
        marks: Those of attempts that ended, see :mod:`._marks`; or of starts that are counted.
    """

    state: Literal["running", "done", "free"] = "free"
    owner: str = ""
    run: str = ""
    number: int = -1
    fence: int = 0
    starts: int = 0
    fingerprint: str = ""
    lease_ends: int = 0
    expires: int = 0
    marks: str = ""
    result: bytes | None = None

    def held_by(self, owner: str, fence: int | None) -> bool:
        """Whether it is the owner's; its fence is asked for unless it is None."""
        return self.state == "running" and self.owner == owner and fence in (None, self.fence)


def claim(
    record: Record | None, asks: Attempt, fingerprint: str, spans: Spans, now: int
) -> tuple[Record | None, Answer]:
    """Take the key, or say why not."""
    record = record or Record()
    run, running = run_digest(asks.run_id), record.state == "running"
    heir = running and record.owner in asks.heir_of
    if not heir:
        refusal = _refusal(record, asks, run, fingerprint, now)
        if refusal is not None:
            return None, refusal
        if running and record.owner == asks.owner:
            return None, Claimed(record.fence, record.starts)
    # A later attempt exists only once the body of the one before is over, whose release may never come.
    later = running and record.run == run and asks.number > record.number
    taken = replace(
        record,
        state="running",
        owner=asks.owner,
        run=run,
        number=asks.number,
        fence=max(record.fence + 1, now),
        starts=1 if later or not running else record.starts + (not heir),
        fingerprint=fingerprint,
        lease_ends=now + spans.lease,
        expires=now + spans.lease + spans.ttl,
        marks=marked(record.marks, record.run, record.number, failed=False) if later else record.marks,
    )
    return taken, Claimed(taken.fence, taken.starts)


def _refusal(record: Record, asks: Attempt, run: str, fingerprint: str, now: int) -> Answer | None:
    """Why the key cannot be had; None when it can."""
    ended = mark_of(record.marks, run)
    if ended is not None and asks.number <= ended[0]:
        return Ended(failed=ended[1])
    if record.state == "done":
        ours = record.owner == asks.owner
        return Done(record.result, ours=ours) if record.fingerprint == fingerprint else Mismatch()
    if record.state == "running" and record.lease_ends > now:
        if record.owner == asks.owner:
            return None
        if record.fingerprint != fingerprint:
            return Mismatch()
        return Running(span(record.lease_ends - now), same_run=record.run == run)
    return None


def renew(record: Record | None, owner: str, fence: int, spans: Spans, now: int) -> tuple[Record | None, bool]:
    """Hold the key for another lease."""
    if record is None or record.owner != owner or record.fence != fence:
        return None, False
    if record.state == "running":
        return replace(record, lease_ends=now + spans.lease, expires=now + spans.lease + spans.ttl), True
    return None, record.state == "done"


def complete(
    record: Record | None, asks: Attempt, fingerprint: str, fence: int, result: bytes | None, ttl: int, now: int
) -> tuple[Record | None, Answer]:
    """Write that the work is done."""
    record = record or Record(owner=asks.owner, fence=fence)
    if record.owner != asks.owner or record.fence != fence:
        refusal = _refusal(record, asks, run_digest(asks.run_id), fingerprint, now)
        return None, refusal or Running(span(0))
    if record.state == "done":  # the same owner once more, whose first answer was lost: what was recorded first stays
        return None, Done(record.result, ours=True)
    done = replace(
        record, state="done", fingerprint=fingerprint, result=result, run="", number=-1, starts=0, lease_ends=0,
        expires=now + ttl,
    )  # fmt: skip
    return done, Done(result, ours=True)


def committed(record: Record | None, asks: Attempt, fingerprint: str, fence: int, now: int) -> Answer | None:
    """What became of a completion that was part of somebody's transaction.

    Args:
        record: As it stands, expired or not.
    """
    if record is None:
        return None
    if record.owner == asks.owner and record.fence == fence:
        return Claimed(fence, record.starts) if record.state == "running" else Done(record.result, ours=True)
    return _refusal(record, asks, run_digest(asks.run_id), fingerprint, now) or Running(span(0))


def release(
    record: Record | None, owner: str, fence: int | None, ended: Ended | None, ttl: int, now: int
) -> tuple[Record | None, bool]:
    """Give the key back."""
    if record is None or not record.held_by(owner, fence):
        return None, False
    marks = record.marks if ended is None else marked(record.marks, record.run, record.number, failed=ended.failed)
    return Record(fence=record.fence, marks=marks, expires=now + ttl), True


def count_start(record: Record | None, owner: str, ttl: int, now: int) -> tuple[Record, int]:
    """Count one start; an owner without a name stands for a first delivery that was none."""
    owners = {*(record.marks.split(";")[:-1] if record else ()), owner}
    counted = Record(marks="".join(f"{one};" for one in sorted(owners)), expires=now + ttl)
    return counted, len(owners - {""}) + ("" not in owners)


def free(record: Record | None, fence: int, living: bool, now: int) -> tuple[Record | None, bool]:
    """Take the key from the run that has it."""
    if record is None or record.state != "running" or record.fence != fence:
        return None, False
    if record.lease_ends > now and not living:
        return None, False
    return Record(fence=record.fence, marks=record.marks, expires=record.expires), True


def forget(record: Record | None, fence: int | None, beginning: bytes, _now: int) -> tuple[Record | None, bool]:
    """Let finished work be run again; the fence is kept, and what ended stays ended."""
    if record is None or record.state != "done" or fence not in (None, record.fence):
        return None, False
    if not (record.result or b"").startswith(beginning):
        return None, False
    return Record(fence=record.fence, marks=record.marks, expires=record.expires), True


def told(key: str, record: Record, now: int) -> KeyRecord:
    """The record for people."""
    held = record.state == "running"
    failed = record.state == "done" and (record.result or b"").startswith(REMEMBERED)
    return KeyRecord(
        key=key,
        state="failed" if failed else record.state,
        owner=record.owner,
        fence=record.fence,
        starts=record.starts,
        held_for=span(now - record.fence) if held else None,
        lease_left=span(record.lease_ends - now) if held else None,
        expires_in=span(record.expires - now),
    )
