"""Keys in memory, for tests and for a single process, with a clock that a test can turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

from ..typing import Answer, Attempt, Ended, KeyRecord
from . import _record as rules
from ._record import STARTS, Record, Spans
from ._spans import microseconds

__all__ = ["MemoryStore"]

_A = TypeVar("_A")


class MemoryStore:
    """Keys in a dict. It promises all that :class:`~celery_patterns.typing.Store` does, to the threads of one process.

    It does not promise anything to a second process: use it in tests, not with a prefork worker.

    Args:
        clock: Seconds since any fixed moment; give your own to turn it in a test.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}

    def claim(self, key: str, attempt: Attempt, fingerprint: str, *, lease: timedelta, ttl: timedelta) -> Answer:
        return self._apply(key, rules.claim, attempt, fingerprint, Spans(microseconds(lease), microseconds(ttl)))

    def renew(self, key: str, attempt: Attempt, fence: int, *, lease: timedelta, ttl: timedelta) -> bool:
        return self._apply(key, rules.renew, attempt.owner, fence, Spans(microseconds(lease), microseconds(ttl)))

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
        return self._apply(key, rules.complete, attempt, fingerprint, fence, result, microseconds(ttl))

    def release(self, key: str, attempt: Attempt, fence: int | None, *, ended: Ended | None, ttl: timedelta) -> bool:
        return self._apply(key, rules.release, attempt.owner, fence, ended, microseconds(ttl))

    def count_start(self, key: str, owner: str, *, ttl: timedelta) -> int:
        return self._apply(f"{STARTS}{key}", rules.count_start, owner, microseconds(ttl))

    def excuse_start(self, key: str, *, ttl: timedelta) -> None:
        self.count_start(key, "", ttl=ttl)

    def forget_starts(self, key: str) -> None:
        with self._lock:
            self._records.pop(f"{STARTS}{key}", None)

    def records(self, beginning: str = "") -> Iterator[KeyRecord]:
        with self._lock:
            now, records = self._now(), dict(self._records)
        for key, record in records.items():
            if record.expires > now and key.startswith(beginning) and not key.startswith(STARTS):
                yield rules.told(key, record, now)

    def record(self, key: str) -> KeyRecord | None:
        return next((one for one in self.records(key) if one.key == key), None)

    def free(self, key: str, fence: int, *, living: bool = False) -> bool:
        return self._apply(key, rules.free, fence, living)

    def forget(self, key: str, *, fence: int | None = None, beginning: bytes = b"") -> bool:
        return self._apply(key, rules.forget, fence, beginning)

    def _now(self) -> int:
        return int(self._clock() * 1_000_000)

    def _apply(self, key: str, rule: Callable[..., tuple[Record | None, _A]], *asked: Any) -> _A:
        with self._lock:
            now = self._now()
            record = self._records.get(key)
            if record is not None and record.expires <= now:
                record = None
                del self._records[key]
            stands, answer = rule(record, *asked, now)
            if stands is not None:
                self._records[key] = stands
            return answer
