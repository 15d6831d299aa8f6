"""Keys in Redis 6.2 or later: one hash a key, one script a step, a few connections a process."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from redis import ConnectionPool, Redis
from redis.exceptions import AuthenticationError, NoScriptError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..exceptions import ConfigurationError, StoreUnavailable
from ..typing import Answer, Attempt, Claimed, Done, Ended, KeyRecord, Mismatch, Running
from . import _record as rules
from ._marks import KEEP, run_digest
from ._record import Record

__all__ = ["RedisStore"]

# Fields of the hash: s state (r running, d done, f free), o owner, u run and its attempt number, f fence,
# p fingerprint, l end of the lease in ms, n starts, e marks of ended attempts, v result.
# Each script answers with one string, a word and what belongs to it: an array takes its reader four times as long.
_LOOK = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local fields = redis.call('HMGET', key, 's', 'o', 'u', 'f', 'p', 'l', 'n', 'e', 'v')
local state, owner, run, fence, print, lease, starts, ended, value = unpack(fields)
ended = ended or ''

local function done(kept) return kept and 'done ' .. kept or 'done' end
local function number_of(text) return tonumber(string.match(text, ':(%d+)$')) end
local function run_of(text) return string.match(text, '^(%x+):') end

local function mark(run_id, number, how)
  local marks = {}
  for id, n, h in string.gmatch(ended, '(%x+):(%d+):(%a);') do
    if id ~= run_id then marks[#marks + 1] = id .. ':' .. n .. ':' .. h .. ';' end
  end
  marks[#marks + 1] = run_id .. ':' .. number .. ':' .. how .. ';'
  while #marks > KEEP_MARKS do table.remove(marks, 1) end
  ended = table.concat(marks)
end

-- Why the key cannot be had; nil when it can.
local function refusal(me, my_run, my_print)
  local my_id, my_number = run_of(my_run), number_of(my_run)
  for id, n, how in string.gmatch(ended, '(%x+):(%d+):(%a);') do
    if id == my_id and my_number <= tonumber(n) then return 'ended ' .. how end
  end
  if state == 'd' then
    if print ~= my_print then return 'mismatch' end
    return done(value)
  end
  if state == 'r' and tonumber(lease) > now then
    if owner == me then return nil end
    if print ~= my_print then return 'mismatch' end
    return 'running ' .. (tonumber(lease) - now) .. (run_of(run) == my_id and ' same' or ' other')
  end
  return nil
end
""".replace("KEEP_MARKS", str(KEEP))

_CLAIM = (
    """
local key, me, my_run, my_print = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local lease_ms, ttl_ms = tonumber(ARGV[4]), tonumber(ARGV[5])

local function take(time, last_fence, count)
  local next_fence = string.format('%.0f', math.max(last_fence + 1, time[1] * 1000000 + time[2]))
  local lease = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + lease_ms)
  redis.call('HSET', key, 's', 'r', 'o', me, 'u', my_run, 'f', next_fence, 'p', my_print, 'l', lease, 'n', count)
  redis.call('PEXPIRE', key, lease_ms + ttl_ms)
  return 'claimed ' .. next_fence .. ' ' .. count
end

-- Most keys are new: they need no look at what is not there.
if redis.call('EXISTS', key) == 0 then return take(redis.call('TIME'), 0, 1) end
"""
    + _LOOK
    + """
local heir = state == 'r' and string.find(ARGV[6], ' ' .. owner .. ' ', 1, true)
local later = state == 'r' and run_of(run) == run_of(my_run) and number_of(my_run) > number_of(run)
if heir and not later then return take(time, tonumber(fence), tonumber(starts)) end
local why = not heir and refusal(me, my_run, my_print)
if why then return why end
if state == 'r' and owner == me then return 'claimed ' .. fence .. ' ' .. starts end
local crashed = state == 'r'
-- A later attempt exists only once the body of the one before is over, whose release may never come.
if later then
  mark(run_of(run), number_of(run), 'h')
  redis.call('HSET', key, 'e', ended)
  crashed = false
end
return take(time, tonumber(fence) or 0, crashed and tonumber(starts) + 1 or 1)
"""
)

_RENEW = """
local key, me, my_fence, lease_ms, ttl_ms = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local held = redis.call('HMGET', key, 's', 'o', 'f')
if held[2] ~= me or held[3] ~= my_fence then return 0 end
if held[1] == 'd' then return 1 end
local time = redis.call('TIME')
redis.call('HSET', key, 'l', string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + lease_ms))
redis.call('PEXPIRE', key, lease_ms + ttl_ms)
return 1
"""

_COMPLETE = (
    """
local key, me, my_run, my_print, my_fence = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local ttl_ms, kept = tonumber(ARGV[5]), ARGV[6] == '1'

local function record()
  if kept then redis.call('HSET', key, 's', 'd', 'o', me, 'f', my_fence, 'p', my_print, 'v', ARGV[7])
  else redis.call('HSET', key, 's', 'd', 'o', me, 'f', my_fence, 'p', my_print) end
  redis.call('HDEL', key, 'u', 'l', 'n')
  redis.call('PEXPIRE', key, ttl_ms)
  return 'recorded'
end

-- Most keys are still held by whom they were given to.
local held = redis.call('HMGET', key, 's', 'o', 'f')
if held[1] == 'r' and held[2] == me and held[3] == my_fence then return record() end
"""
    + _LOOK
    + """
if state and (owner ~= me or fence ~= my_fence) then
  return refusal(me, my_run, my_print) or 'running 0 other'
end
-- The same owner once more, whose first answer was lost: what was recorded first stays.
if state == 'd' then return value and 'again ' .. value or 'again' end
return record()
"""
)

_RELEASE = (
    """
local key, me, my_fence, ttl_ms, how = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
"""
    + _LOOK
    + """
if state ~= 'r' or owner ~= me or (my_fence ~= '' and fence ~= my_fence) then return 0 end
if how ~= '' then
  mark(run_of(run), number_of(run), how)
  redis.call('HSET', key, 'e', ended)
end
redis.call('HSET', key, 's', 'f')
redis.call('HDEL', key, 'o', 'u', 'p', 'l', 'n')
redis.call('PEXPIRE', key, ttl_ms)
return 1
"""
)

_FORGET = """
local key = KEYS[1]
if redis.call('HGET', key, 's') ~= 'd' then return 0 end
redis.call('HSET', key, 's', 'f')
redis.call('HDEL', key, 'o', 'p', 'v')
return 1
"""

# A set of owners; an empty one stands for a first delivery that was no start.
_COUNT = """
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if redis.call('SISMEMBER', KEYS[1], '') == 1 then return redis.call('SCARD', KEYS[1]) - 1 end
return redis.call('SCARD', KEYS[1]) + 1
"""


def _packed(words: tuple[Any, ...]) -> bytes:
    """Words in Redis's protocol, in a third of the time that redis-py takes for words of every kind."""
    packed = []
    for word in words:
        text = word if type(word) is bytes else str(word).encode()
        packed.append(b"$%d\r\n%b\r\n" % (len(text), text))
    return b"".join(packed)


class _Script:
    def __init__(self, source: str) -> None:
        self.source = source
        sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        #: What each question of it begins with.
        self.known, self.unknown = _packed(("EVALSHA", sha, 1)), _packed(("EVAL", source, 1))


_SCRIPTS = {
    name: _Script(source)
    for name, source in {
        "claim": _CLAIM,
        "renew": _RENEW,
        "complete": _COMPLETE,
        "release": _RELEASE,
        "forget": _FORGET,
        "count": _COUNT,
    }.items()
}


#: So many keys are looked at in one question where all are.
LOOKED = 500
_STATES: Mapping[str, Any] = {"r": "running", "d": "done", "f": "free"}
#: What Redis's patterns do not take for itself.
_GLOB = re.compile(r"[\\*?\[\]^-]")

_MILLISECOND = timedelta(milliseconds=1)


def _ms(span: timedelta) -> int:
    return max(1, span // _MILLISECOND)


class RedisStore:
    """Keys in Redis 6.2 or later, under 300 bytes each while a task runs.

    It promises each step to be atomic, on the server's clock. It does not promise to survive what the server itself
    loses: run it with ``maxmemory-policy noeviction`` and with persistence, or a key may be forgotten and its work
    done again.

    Args:
        url: ``redis://[user:password@]host[:port][/db]``, ``rediss://…`` or ``unix://…``, as redis-py reads it. Options
            in its query, such as ``?socket_timeout=2``, are honoured; without one, connecting and each answer take at
            most 5 seconds.
        prefix: What every key starts with.
        patience: For how long a step is tried again when the server is away; 2 seconds by default.

    Raises:
        ConfigurationError: When the URL cannot be read.
    """

    def __init__(
        self, url: str, *, prefix: str = "celery-patterns", patience: timedelta = timedelta(seconds=2)
    ) -> None:
        if not isinstance(prefix, str):
            raise ConfigurationError(f"expected prefix to be a str, got {prefix!r}")
        if not isinstance(patience, timedelta) or patience < timedelta(0):
            raise ConfigurationError(f"expected patience to be a timedelta of 0 or more, got {patience!r}")
        self._prefix = prefix
        self._patience = patience.total_seconds()
        try:
            self._pool = pool = ConnectionPool.from_url(url)
            given = pool.connection_kwargs
            options = {"socket_timeout": 5.0, "socket_connect_timeout": 5.0, **given, "decode_responses": False}
            pool.connection_kwargs = options
            # The steps use redis-py's connections alone: its pool would count those that we let go.
            self._connection = functools.partial(pool.connection_class, **options)
            self._connection()  # connects nothing, and refuses an option that it does not know
        except (ValueError, TypeError, RedisError) as error:
            raise ConfigurationError(
                "expected the store's URL to be redis://host:port/db, with options that redis-py knows; it cannot read "
                f"this one: {type(error).__name__}"
            ) from None  # its text may quote a part of the password
        self._pid, self._free = os.getpid(), deque[Any]()

    def claim(self, key: str, attempt: Attempt, fingerprint: str, *, lease: timedelta, ttl: timedelta) -> Answer:
        return self._answer(
            self._run(
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
        return bool(self._run("renew", self._name(key), attempt.owner, fence, _ms(lease), _ms(ttl)))

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
        reply = self._run(
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
        return bool(self._run("release", self._name(key), attempt.owner, held, _ms(ttl), how))

    def count_start(self, key: str, owner: str, *, ttl: timedelta) -> int:
        return int(self._run("count", f"{self._prefix}:{rules.STARTS}{key}", owner, _ms(ttl)))

    def excuse_start(self, key: str, *, ttl: timedelta) -> None:
        self._run("count", f"{self._prefix}:{rules.STARTS}{key}", "", _ms(ttl))

    def forget_starts(self, key: str) -> None:
        self._command("DEL", b"*2\r\n" + _packed(("DEL", f"{self._prefix}:{rules.STARTS}{key}")))

    def records(self, beginning: str = "") -> Iterator[KeyRecord]:
        start = f"{self._prefix}:"
        try:
            with Redis(connection_pool=self._pool) as client:
                pattern = _GLOB.sub(r"\\\g<0>", start + beginning) + "*"
                for names in _batches(client.scan_iter(match=pattern, count=LOOKED, _type="hash"), LOOKED):
                    yield from _told(client, names, len(start.encode()))
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"redis did not answer: {type(error).__name__}") from error

    def forget(self, key: str) -> bool:
        return bool(self._run("forget", self._name(key)))

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

    def _run(self, name: str, key: str, *args: Any) -> Any:
        script, rest = _SCRIPTS[name], _packed((key, *args))
        count = b"*%d\r\n" % (len(args) + 4)  # the command, the script, the number of keys, and the key
        try:
            return self._command(name, count + script.known + rest)
        except NoScriptError:
            return self._command(name, count + script.unknown + rest)

    def _command(self, name: str, question: bytes) -> Any:
        """Send one command; ask again for a lost answer, which every script allows the same owner."""
        deadline = time.monotonic() + self._patience
        pause = 0.0
        while True:
            connection = self._take()
            try:
                connection.send_packed_command([question])
                answer = connection.read_response()
            except NoScriptError:
                self._free.append(connection)
                raise
            except AuthenticationError as error:  # a kind of ConnectionError, which no second try cures
                connection.disconnect()
                raise StoreUnavailable(f"redis refused {name}: {type(error).__name__}: {error}") from error
            except (RedisConnectionError, RedisTimeoutError, OSError) as error:
                connection.disconnect()
                self._free.clear()  # the others were opened to the same server, which hung up
                if time.monotonic() + pause > deadline:
                    raise StoreUnavailable(
                        f"redis did not answer within its time-outs: {type(error).__name__}",
                    ) from error
            except RedisError as error:
                connection.disconnect()
                raise StoreUnavailable(f"redis refused {name}: {type(error).__name__}: {error}") from error
            except BaseException:
                # A time limit may strike between question and answer: the answer must not become the next question's.
                connection.disconnect()
                raise
            else:
                self._free.append(connection)
                return answer
            time.sleep(pause)
            pause = min(max(pause * 2, 0.05), 0.5)

    def _take(self) -> Any:
        # redis-py's connection without its client: a tenth more tasks a second. As many are kept as are used at once, so
        # threads and greenlets share them. A forked child must not speak on its parent's sockets.
        if self._pid != os.getpid():
            self._free, self._pid = deque(), os.getpid()  # in this order: another thread looks at the id first
        try:
            return self._free.pop()
        except IndexError:
            return self._connection()


def _batches(names: Iterator[bytes], size: int) -> Iterator[list[bytes]]:
    while batch := list(itertools.islice(names, size)):
        yield batch


def _told(client: Any, names: list[bytes], start: int) -> Iterator[KeyRecord]:
    asked = client.pipeline(transaction=False).time()
    for name in names:
        asked.hmget(name, "s", "o", "f", "n", "l").pttl(name)
    (seconds, micros), *answers = asked.execute()
    now = seconds * 1_000_000 + micros
    for name, fields, expires in zip(names, answers[::2], answers[1::2], strict=True):
        state, owner, fence, starts, lease = (one.decode() if one else "" for one in fields)
        if state in _STATES:  # it may have expired meanwhile, or be no record of ours
            record = Record(
                _STATES[state], owner, fence=int(fence), starts=int(starts or 0), lease_ends=int(lease or 0) * 1000,
                expires=now + expires * 1000,
            )  # fmt: skip
            yield rules.told(name[start:].decode(), record, now)


def _run(attempt: Attempt) -> str:
    return f"{run_digest(attempt.run_id)}:{attempt.number}"
