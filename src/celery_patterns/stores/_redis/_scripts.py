"""What runs on the server: one script a step, each of them atomic."""

from __future__ import annotations

import hashlib
from typing import Any

from .._marks import KEEP

__all__ = ["SCRIPTS", "Script", "packed"]

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

_FREE = """
local key, my_fence, living = KEYS[1], ARGV[1], ARGV[2] == '1'
local state, fence, lease = unpack(redis.call('HMGET', key, 's', 'f', 'l'))
if state ~= 'r' or fence ~= my_fence then return 0 end
local time = redis.call('TIME')
if tonumber(lease) > time[1] * 1000 + math.floor(time[2] / 1000) and not living then return 0 end
redis.call('HSET', key, 's', 'f')
redis.call('HDEL', key, 'o', 'u', 'p', 'l', 'n')
return 1
"""

_FORGET = """
local key, my_fence, beginning = KEYS[1], ARGV[1], ARGV[2]
local state, fence, value = unpack(redis.call('HMGET', key, 's', 'f', 'v'))
if state ~= 'd' or (my_fence ~= '' and fence ~= my_fence) then return 0 end
if string.sub(value or '', 1, #beginning) ~= beginning then return 0 end
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


def packed(words: tuple[Any, ...]) -> bytes:
    """Words in Redis's protocol, in a third of the time that redis-py takes for words of every kind."""
    packed = []
    for word in words:
        text = word if type(word) is bytes else str(word).encode()
        packed.append(b"$%d\r\n%b\r\n" % (len(text), text))
    return b"".join(packed)


class Script:
    def __init__(self, source: str) -> None:
        self.source = source
        sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        #: What each question of it begins with.
        self.known, self.unknown = packed(("EVALSHA", sha, 1)), packed(("EVAL", source, 1))


SCRIPTS = {
    name: Script(source)
    for name, source in {
        "claim": _CLAIM,
        "renew": _RENEW,
        "complete": _COMPLETE,
        "release": _RELEASE,
        "free": _FREE,
        "forget": _FORGET,
        "count": _COUNT,
    }.items()
}
