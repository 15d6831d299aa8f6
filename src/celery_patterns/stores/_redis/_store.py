"""The store: one hash a key, one script a step."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from redis import Redis
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ...exceptions import ConfigurationError
from ...typing import Answer, Attempt, Claimed, Done, Ended, KeyRecord, Mismatch, Running
from .. import _record as rules
from .._marks import run_digest
from .._record import Record
from ._server import Server

__all__ = ["RedisStore"]

#: The name of the key that is written to know what replicas have; no task's begins so.
TOUCHED = ":confirmed"
#: So many keys are looked at in one question where all are.
LOOKED = 500
_STATES: Mapping[str, Any] = {"r": "running", "d": "done", "f": "free"}
#: What Redis's patterns do not take for itself.
_GLOB = re.compile(r"[\\*?\[\]^-]")

#: Of a result, which may be large and is the user's, what tells it from a failure.
_FIRST = "return string.sub(redis.call('HGET', KEYS[1], 'v') or '', 1, 1)"

_MILLISECOND = timedelta(milliseconds=1)


def _ms(span: timedelta) -> int:
    return max(1, span // _MILLISECOND)


class RedisStore:
    """Keys in Redis 6.2 or later, under 300 bytes each while a task runs whose name has up to 33 characters.

    It promises each step to be atomic, on the server's clock. It does not promise to survive what the server itself
    loses: run it with ``maxmemory-policy noeviction`` and with persistence, or a key may be forgotten and its work
    done again.

    Args:
        url: ``redis://[user:password@]host[:port][/db]``, ``rediss://…`` or ``unix://…``, as redis-py reads it; or
            ``sentinel://[user:password@]host:port,host:port/service[/db]``. Options in its query, such as
            ``?socket_timeout=2``, are honoured; without one, connecting and each answer take at most 5 seconds.
        prefix: What every key starts with.
        patience: For how long a step is tried again when the server is away; 2 seconds by default.
        replicas: How many replicas must have what a step wrote before it counts; 0 by default. While fewer answer, within a
            second, the store counts as away.

    Raises:
        ConfigurationError: When the URL cannot be read.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "celery-patterns",
        patience: timedelta = timedelta(seconds=2),
        replicas: int = 0,
    ) -> None:
        if not isinstance(prefix, str):
            raise ConfigurationError(f"expected prefix to be a str, got {prefix!r}")
        if not isinstance(patience, timedelta) or patience < timedelta(0):
            raise ConfigurationError(f"expected patience to be a timedelta of 0 or more, got {patience!r}")
        if type(replicas) is not int or replicas < 0:
            raise ConfigurationError(f"expected replicas to be a number of them, 0 or more, got {replicas!r}")
        self._prefix = prefix
        #: Where it is reached, with its password: not to be shown.
        self.url = url
        self.replicas = replicas
        self._server = Server(url, patience.total_seconds(), replicas, f"{prefix}:{TOUCHED}")

    def client(self) -> Redis:
        """redis-py's own client of the same server, for what is no step; to be closed."""
        return self._server.client()

    def claim(self, key: str, attempt: Attempt, fingerprint: str, *, lease: timedelta, ttl: timedelta) -> Answer:
        return self._answer(
            self._server.run(
                "claim",
                self._name(key),
                attempt.owner,
                _run(attempt),
                fingerprint,
                _ms(lease),
                _ms(ttl),
                f" {' '.join(attempt.heir_of)} ",
            ),
        )

    def renew(self, key: str, attempt: Attempt, fence: int, *, lease: timedelta, ttl: timedelta) -> bool:
        return bool(self._server.run("renew", self._name(key), attempt.owner, fence, _ms(lease), _ms(ttl)))

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
        kept = () if result is None else (result,)
        reply = self._server.run(
            "complete",
            self._name(key),
            attempt.owner,
            _run(attempt),
            fingerprint,
            fence,
            _ms(ttl),
            len(kept),
            *kept,
        )
        if reply == b"recorded":
            return Done(result, ours=True)
        return self._answer(reply)

    def release(self, key: str, attempt: Attempt, fence: int | None, *, ended: Ended | None, ttl: timedelta) -> bool:
        how = "" if ended is None else "f" if ended.failed else "h"
        held = "" if fence is None else fence
        return bool(self._server.run("release", self._name(key), attempt.owner, held, _ms(ttl), how))

    def count_start(self, key: str, owner: str, *, ttl: timedelta) -> int:
        return int(self._server.run("count", f"{self._prefix}:{rules.STARTS}{key}", owner, _ms(ttl)))

    def excuse_start(self, key: str, *, ttl: timedelta) -> None:
        self._server.run("count", f"{self._prefix}:{rules.STARTS}{key}", "", _ms(ttl))

    def forget_starts(self, key: str) -> None:
        self._server.delete(f"{self._prefix}:{rules.STARTS}{key}")

    def records(self, beginning: str = "") -> Iterator[KeyRecord]:
        start = self._name("")
        with self._looking() as client:
            pattern = _GLOB.sub(r"\\\g<0>", start + beginning) + "*"
            for names in _batches(client.scan_iter(match=pattern, count=LOOKED, _type="hash"), LOOKED):
                yield from _told(client, names, len(start.encode()))

    def record(self, key: str) -> KeyRecord | None:
        with self._looking() as client:
            return next(_told(client, [self._name(key).encode()], len(self._name("").encode())), None)

    def free(self, key: str, fence: int, *, living: bool = False) -> bool:
        return bool(self._server.run("free", self._name(key), fence, int(living)))

    def forget(self, key: str, *, fence: int | None = None, beginning: bytes = b"") -> bool:
        return bool(self._server.run("forget", self._name(key), "" if fence is None else fence, beginning))

    @contextmanager
    def _looking(self) -> Iterator[Any]:
        try:
            with self._server.client() as client:
                yield client
        except AuthenticationError as error:  # a kind of ConnectionError
            raise self._server.refused(error) from error
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:
            raise self._server.away(error) from error
        except RedisError as error:
            raise self._server.refused(error) from error

    def __repr__(self) -> str:
        return f"<RedisStore prefix={self._prefix!r}>"

    def _name(self, key: str) -> str:
        return f"{self._prefix}:{key}"

    @staticmethod
    def _answer(reply: bytes) -> Answer:
        word, space, rest = reply.partition(b" ")
        if word == b"claimed":
            fence, starts = rest.split()
            return Claimed(int(fence), int(starts))
        if word == b"running":
            left, who = rest.split()
            return Running(timedelta(milliseconds=int(left)), same_run=who == b"same")
        if word in (b"done", b"again"):
            return Done(rest if space else None, ours=word == b"again")
        if word == b"ended":
            return Ended(failed=rest == b"f")
        return Mismatch()


def _batches(names: Iterator[bytes], size: int) -> Iterator[list[bytes]]:
    while batch := list(itertools.islice(names, size)):
        yield batch


def _told(client: Any, names: list[bytes], start: int) -> Iterator[KeyRecord]:
    asked = client.pipeline(transaction=False).time()
    for name in names:
        asked.hmget(name, "s", "o", "f", "n", "l").pttl(name).eval(_FIRST, 1, name)
    (seconds, micros), *answers = asked.execute()
    now = seconds * 1_000_000 + micros
    for name, fields, expires, first in zip(names, answers[::3], answers[1::3], answers[2::3], strict=True):
        state, owner, fence, starts, lease = (one.decode() if one else "" for one in fields)
        if state in _STATES:  # it may have expired meanwhile, or be no record of ours
            record = Record(
                _STATES[state], owner, fence=int(fence), starts=int(starts or 0), lease_ends=int(lease or 0) * 1000,
                expires=now + expires * 1000, result=first,
            )  # fmt: skip
            yield rules.told(name[start:].decode(), record, now)


def _run(attempt: Attempt) -> str:
    return f"{run_digest(attempt.run_id)}:{attempt.number}"
