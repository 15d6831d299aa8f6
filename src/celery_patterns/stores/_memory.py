"""A store in this process's memory, for tests and for eager development; its clock can be turned."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from ..typing import Answer, Attempt, Claimed, Done, Ended, Mismatch, Running
from ._marks import KEEP

__all__ = ["MemoryStore"]


@dataclass(slots=True)
class _Record:
    state: str = "free"  # free, running, done
    owner: str = ""
    run: tuple[str, int] = ("", -1)
    fence: int = 0
    starts: int = 0
    fingerprint: str = ""
    lease_ends: float = 0.0
    expires: float = 0.0
    result: bytes | None = None
    ended: dict[str, tuple[int, bool]] = field(default_factory=dict)

    def held_by(self, owner: str, fence: int | None) -> bool:
        """Whether it is the owner's; its fence is asked for unless it is None."""
        return self.state == "running" and self.owner == owner and fence in (None, self.fence)

    def run_before(self, attempt: Attempt) -> bool:
        """Whether an earlier attempt of the same run holds the key."""
        return self.state == "running" and self.run[0] == attempt.run_id and attempt.number > self.run[1]

    def mark(self, run_id: str, number: int, failed: bool) -> None:
        self.ended.pop(run_id, None)
        self.ended[run_id] = (number, failed)
        while len(self.ended) > KEEP:
            del self.ended[next(iter(self.ended))]


class MemoryStore:
    """Keys in a dict. It promises all that :class:`~celery_patterns.typing.Store` does, to the threads of one process.

    It does not promise anything to a second process: use it in tests, not with a prefork worker.

    Args:
        clock: Seconds since any fixed moment; give your own to turn it in a test.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._records: dict[str, _Record] = {}
        self._starts: dict[str, tuple[frozenset[str], float]] = {}

    def claim(self, key: str, attempt: Attempt, fingerprint: str, *, lease: timedelta, ttl: timedelta) -> Answer:
        with self._lock:
            now = self._clock()
            record = self._live(key, now) or _Record()
            inherited = record.state == "running" and record.owner in attempt.heir_of
            refusal = None if inherited else self._refusal(record, attempt, fingerprint, now)
            if refusal is not None:
                return refusal
            repeated = record.state == "running" and record.owner == attempt.owner
            if not repeated:
                starts = record.starts if inherited and not record.run_before(attempt) else None
                self._take(record, attempt, fingerprint, now + lease.total_seconds(), now)
                record.starts = record.starts if starts is None else starts
            record.expires = now + lease.total_seconds() + ttl.total_seconds()
            self._records[key] = record
            return Claimed(record.fence, record.starts)

    def renew(self, key: str, attempt: Attempt, fence: int, *, lease: timedelta, ttl: timedelta) -> bool:
        with self._lock:
            now = self._clock()
            record = self._live(key, now)
            if record is None or not record.held_by(attempt.owner, fence):
                return False
            record.lease_ends = now + lease.total_seconds()
            record.expires = record.lease_ends + ttl.total_seconds()
            return True

    def complete(
        self,
        key: str,
        attempt: Attempt,
        fingerprint: str,
        fence: int,
        result: bytes | None,
        *,
        ttl: timedelta,
    ) -> Answer:
        with self._lock:
            now = self._clock()
            record = self._live(key, now)
            if record is None:
                record = self._records[key] = _Record(owner=attempt.owner, fence=fence)
            elif record.owner != attempt.owner or record.fence != fence:
                return self._refusal(record, attempt, fingerprint, now) or Running(timedelta(0))
            if record.state == "done":
                return Done(record.result, ours=True)
            record.state, record.fingerprint, record.result, record.starts = "done", fingerprint, result, 0
            record.expires = now + ttl.total_seconds()
            return Done(result, ours=True)

    def release(self, key: str, attempt: Attempt, fence: int | None, *, ended: Ended | None, ttl: timedelta) -> bool:
        with self._lock:
            now = self._clock()
            record = self._live(key, now)
            if record is None or not record.held_by(attempt.owner, fence):
                return False
            if ended is not None:
                record.mark(*record.run, ended.failed)
            record.state, record.owner, record.fingerprint, record.starts = "free", "", "", 0
            record.run = ("", -1)
            record.expires = now + ttl.total_seconds()
            return True

    def count_start(self, key: str, owner: str, *, ttl: timedelta) -> int:
        with self._lock:
            now = self._clock()
            owners, expires = self._starts.get(key, (frozenset(), now))
            owners = owners | {owner} if expires > now else frozenset({owner})
            self._starts[key] = (owners, now + ttl.total_seconds())
            return len(owners - {""}) + ("" not in owners)

    def excuse_start(self, key: str, *, ttl: timedelta) -> None:
        self.count_start(key, "", ttl=ttl)

    def forget_starts(self, key: str) -> None:
        with self._lock:
            self._starts.pop(key, None)

    def _live(self, key: str, now: float) -> _Record | None:
        record = self._records.get(key)
        if record is not None and record.expires <= now:
            del self._records[key]
            return None
        return record

    @staticmethod
    def _refusal(record: _Record, attempt: Attempt, fingerprint: str, now: float) -> Answer | None:
        ended = record.ended.get(attempt.run_id)
        if ended is not None and attempt.number <= ended[0]:
            return Ended(failed=ended[1])
        if record.state == "done":
            return Done(record.result) if record.fingerprint == fingerprint else Mismatch()
        if record.state == "running" and record.lease_ends > now:
            if record.owner == attempt.owner:
                return None
            if record.fingerprint != fingerprint:
                return Mismatch()
            return Running(timedelta(seconds=record.lease_ends - now), same_run=record.run[0] == attempt.run_id)
        return None

    @staticmethod
    def _take(record: _Record, attempt: Attempt, fingerprint: str, lease_ends: float, now: float) -> None:
        crashed = record.state == "running"
        if record.run_before(attempt):
            # A later attempt exists only once the earlier one's body is over: it ended, its release never came.
            record.mark(attempt.run_id, record.run[1], False)
            crashed = False
        record.starts = record.starts + 1 if crashed else 1
        record.state, record.owner = "running", attempt.owner
        record.run = (attempt.run_id, attempt.number)
        record.fence = max(record.fence + 1, int(now * 1_000_000))
        record.fingerprint, record.lease_ends = fingerprint, lease_ends
