"""Each guard of the stores is needed: without it, a test of the contract fails."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from celery_patterns.stores._redis import _scripts

from .servers import RedisServer

#: Where the child finds its server.
REDIS = "TESTS_REDIS_PORT"
#: The name of a guard to leave out, read by this process's child.
WITHOUT = "TESTS_WITHOUT_GUARD"

#: Script, what stands there, and what stands there without the guard.
GUARDS: dict[str, tuple[str, str, str]] = {
    "claim: only what is not there is new": ("claim", "if redis.call('EXISTS', key) == 0 then", "if true then"),
    "claim: an attempt that has ended is not run": ("claim", "if id == my_id and my_number <= tonumber(n) then", "if false then"),
    "claim: an end is its own task's": ("claim", "if id == my_id and my_number <=", "if my_number <="),
    "claim: an earlier attempt has ended too": ("claim", "my_number <= tonumber(n)", "my_number == tonumber(n)"),
    "claim: a later attempt has not": ("claim", "my_number <= tonumber(n)", "true"),
    "claim: done is final": ("claim", "if state == 'd' then", "if false then"),
    "claim: done for the same arguments": ("claim", "if print ~= my_print then return 'mismatch' end\n    return done", "return done"),
    "claim: a lease that is over binds nobody": ("claim", "if state == 'r' and tonumber(lease) > now then", "if state == 'r' then"),
    "claim: a lease holds": ("claim", "if state == 'r' and tonumber(lease) > now then", "if false then"),
    "claim: an owner asks again": ("claim", "if owner == me then return nil end", ""),
    "claim: a next attempt inherits": ("claim", "not heir and refusal", "(not heir or later) and refusal"),
    "claim: it inherits from another delivery nothing": ("claim", "not heir and refusal", "not heir and not later and refusal"),
    "claim: a next attempt of its own task": ("claim", "run_of(run) == run_of(my_run) and number_of(my_run)", "number_of(my_run)"),
    "claim: a next attempt, not the same": ("claim", "number_of(my_run) > number_of(run)", "number_of(my_run) >= number_of(run)"),
    "claim: a key is its arguments' while it runs": (
        "claim",
        "if print ~= my_print then return 'mismatch' end\n    return 'running",
        "return 'running",
    ),
    "claim: an heir has what it inherits": ("claim", "local heir = state == 'r' and", "local heir = false and"),
    "claim: an heir inherits from its own": ("claim", "string.find(ARGV[6], ' ' .. owner .. ' ', 1, true)", "ARGV[6] ~= '  '"),
    "claim: an heir is no new start": ("claim", "tonumber(fence), tonumber(starts)) end", "tonumber(fence), 1 + tonumber(starts)) end"),
    "claim: asked again, the answer is the same": ("claim", "if state == 'r' and owner == me then return", "if false then return"),
    "claim: a dead owner's start counts": ("claim", "crashed and tonumber(starts) + 1 or 1", "1"),
    "claim: a next attempt is no crash": ("claim", "  crashed = false\n", ""),
    "claim: the attempt before has ended": ("claim", "  mark(run_of(run), number_of(run), 'h')\n", ""),
    "claim: a fence grows against a clock that went back": ("claim", "math.max(last_fence + 1, time[1] * 1000000 + time[2])", "time[1] * 1000000 + time[2]"),
    "claim: a claim is forgotten at last": ("claim", "  redis.call('PEXPIRE', key, lease_ms + ttl_ms)\n", ""),
    "renew: what is done stays so": ("renew", "if held[1] == 'd' then return 1 end\n", ""),
    "renew: its owner": ("renew", "held[2] ~= me or ", ""),
    "renew: with its fence": ("renew", " or held[3] ~= my_fence", ""),
    "renew: the lease is longer": ("renew", "redis.call('HSET', key, 'l'", "redis.call('HSET', key, 'x'"),
    "renew: the record too": ("renew", "redis.call('PEXPIRE', key, lease_ms + ttl_ms)", ""),
    "complete: what runs": ("complete", "if held[1] == 'r' and held[2]", "if held[2]"),
    "complete: its owner": ("complete", "held[2] == me and held[3]", "held[3]"),
    "complete: with its fence": ("complete", "held[2] == me and held[3] == my_fence", "held[2] == me"),
    "complete: nobody else's, looked at closely": ("complete", "if state and (owner ~= me or fence ~= my_fence) then", "if false then"),
    "complete: what was recorded first stays": ("complete", "if state == 'd' then return value and 'again ' .. value or 'again' end", ""),
    "complete: a record is kept for ttl": ("complete", "  redis.call('PEXPIRE', key, ttl_ms)\n", ""),
    "release: what runs": ("release", "if state ~= 'r' or owner", "if owner"),
    "release: its owner": ("release", "owner ~= me or (my_fence", "(my_fence"),
    "release: with its fence": ("release", "(my_fence ~= '' and fence ~= my_fence)", "false"),
    "release: by its owner alone": ("release", "(my_fence ~= '' and fence ~= my_fence)", "fence ~= my_fence"),
    "release: an end is remembered": ("release", "  redis.call('HSET', key, 'e', ended)\n", ""),
    "release: the key is free": ("release", "redis.call('HSET', key, 's', 'f')\n", ""),
    "release: it is forgotten at last": ("release", "redis.call('PEXPIRE', key, ttl_ms)\n", ""),
    "free: what runs": ("free", "state ~= 'r' or ", ""),
    "free: of this claim": ("free", " or fence ~= my_fence", ""),
    "free: a living owner keeps it": ("free", " and not living then return 0 end", " and false then return 0 end"),
    "free: unless that is said": ("free", " and not living then", " then"),
    "free: it is free": ("free", "redis.call('HSET', key, 's', 'f')\n", ""),
    "forget: what is done": ("forget", "state ~= 'd' or ", ""),
    "forget: of this claim": ("forget", "(my_fence ~= '' and fence ~= my_fence)", "false"),
    "forget: what begins so": ("forget", "if string.sub(value or '', 1, #beginning) ~= beginning then return 0 end\n", ""),
    "marks: one for each task": ("release", "    if id ~= run_id then ", "    if true then "),
    "marks: no more than some": ("release", "while #marks > ", "while false and #marks > "),
}  # fmt: skip


_RULES, _MARKS, _TABLE, _STORE = "_record", "_marks", "_sql._table", "_sql._store"

#: Module, what stands there, and what stands there without the guard: those of the stores in memory and in SQL.
IN_PYTHON: dict[str, tuple[str, str, str]] = {
    "rules, claim: an attempt that has ended is not run": (_RULES, "if ended is not None and asks.number <= ended[0]:", "if False:"),
    "rules, claim: an earlier attempt has ended too": (_RULES, "asks.number <= ended[0]", "asks.number == ended[0]"),
    "rules, claim: a later attempt has not": (_RULES, " and asks.number <= ended[0]", ""),
    "rules, claim: an end is its own task's": (_MARKS, "if name == run:", "if True:"),
    "rules, claim: done is final": (_RULES, 'if record.state == "done":\n        ours', "if False:\n        ours"),
    "rules, claim: done for the same arguments": (_RULES, " if record.fingerprint == fingerprint else Mismatch()", ""),
    "rules, claim: a lease that is over binds nobody": (_RULES, 'record.state == "running" and record.lease_ends > now', 'record.state == "running"'),
    "rules, claim: a lease holds": (_RULES, 'record.state == "running" and record.lease_ends > now', "False"),
    "rules, claim: an owner asks again": (_RULES, "        if record.owner == asks.owner:\n            return None\n", ""),
    "rules, claim: a key is its arguments' while it runs": (_RULES, "        if record.fingerprint != fingerprint:\n            return Mismatch()\n", ""),
    "rules, claim: it is told whose the running one is": (_RULES, "same_run=record.run == run)", "same_run=True)"),
    "rules, claim: an heir has what it inherits": (_RULES, "running and record.owner in asks.heir_of", "False"),
    "rules, claim: an heir inherits from its own": (_RULES, "running and record.owner in asks.heir_of", "running and bool(asks.heir_of)"),
    "rules, claim: from what runs": (_RULES, "running and record.owner in asks.heir_of", "record.owner in asks.heir_of"),
    "rules, claim: asked again, the answer is the same": (_RULES, "if running and record.owner == asks.owner:", "if False:"),
    "rules, claim: a next attempt of its own task": (_RULES, "running and record.run == run and asks", "running and asks"),
    "rules, claim: a next attempt, not the same": (_RULES, "asks.number > record.number", "asks.number >= record.number"),
    "rules, claim: a fence grows against a clock that went back": (_RULES, "max(record.fence + 1, now)", "now"),
    "rules, claim: an heir is no new start": (_RULES, "record.starts + (not heir)", "record.starts + 1"),
    "rules, claim: a dead owner's start counts": (_RULES, "record.starts + (not heir)", "1"),
    "rules, claim: a next attempt is no crash": (_RULES, "1 if later or not running", "1 if not running"),
    "rules, claim: the attempt before has ended": (_RULES, "failed=False) if later else record.marks", "failed=False) if False else record.marks"),
    "rules, claim: a claim is forgotten at last": (_RULES, "expires=now + spans.lease + spans.ttl,\n        marks", "expires=10 * now,\n        marks"),
    "rules, renew: its owner": (_RULES, "or record.owner != owner or record.fence != fence", "or record.fence != fence"),
    "rules, renew: with its fence": (_RULES, "or record.owner != owner or record.fence != fence", "or record.owner != owner"),
    "rules, renew: the lease is longer": (_RULES, "replace(record, lease_ends=now + spans.lease, expires", "replace(record, expires"),
    "rules, renew: the record too": (_RULES, "lease_ends=now + spans.lease, expires=now + spans.lease + spans.ttl), True", "lease_ends=now + spans.lease), True"),
    "rules, renew: what is done stays so": (_RULES, 'record.state == "done"\n\n', "False\n\n"),
    "rules, complete: its owner": (_RULES, "if record.owner != asks.owner or record.fence != fence:", "if record.fence != fence:"),
    "rules, complete: with its fence": (_RULES, "if record.owner != asks.owner or record.fence != fence:", "if record.owner != asks.owner:"),
    "rules, complete: what was recorded first stays": (_RULES, 'if record.state == "done":  # the same', "if False:  # the same"),
    "rules, complete: a record is kept for ttl": (_RULES, "lease_ends=0,\n        expires=now + ttl", "lease_ends=0,\n        expires=10 * now"),
    "rules, release: what runs": (_RULES, 'self.state == "running" and self.owner == owner', "self.owner == owner"),
    "rules, release: its owner": (_RULES, "self.owner == owner and fence in", "fence in"),
    "rules, release: with its fence": (_RULES, "fence in (None, self.fence)", "True"),
    "rules, release: by its owner alone": (_RULES, "fence in (None, self.fence)", "fence == self.fence"),
    "rules, release: an end is remembered": (_RULES, "marks = record.marks if ended is None else", "marks = record.marks if True else"),
    "rules, release: no end, none is remembered": (_RULES, "marks = record.marks if ended is None else marked(record.marks, record.run, record.number, failed=ended.failed)", "marks = marked(record.marks, record.run, record.number, failed=True)"),
    "rules, release: it is forgotten at last": (_RULES, "marks=marks, expires=now + ttl", "marks=marks, expires=10 * now"),
    "rules, marks: one for each task": (_MARKS, ' if not mark.startswith(f"{run}:")', ""),
    "rules, marks: no more than some": (_MARKS, "[-KEEP:]", ""),
    "rules, starts: each owner once": (_RULES, "sorted(owners)), expires=now + ttl", "sorted(owners)), expires=now"),
    "rules, free: what runs": (_RULES, 'record is None or record.state != "running" or record.fence != fence', "record is None or record.fence != fence"),
    "rules, free: of this claim": (_RULES, 'record.state != "running" or record.fence != fence', 'record.state != "running"'),
    "rules, free: a living owner keeps it": (_RULES, "if record.lease_ends > now and not living:", "if False:"),
    "rules, free: unless that is said": (_RULES, "if record.lease_ends > now and not living:", "if record.lease_ends > now:"),
    "rules, forget: what is done": (_RULES, 'record.state != "done" or fence not in', "fence not in"),
    "rules, forget: of this claim": (_RULES, " or fence not in (None, record.fence):", ":"),
    "rules, forget: what begins so": (_RULES, 'if not (record.result or b"").startswith(beginning):', "if False:"),
    "SQL: a row is written as it was read": (_TABLE, "as_seen = (row.key == key, row.version == seen)", "as_seen = (row.key == key,)"),
    "SQL: each change is a new version": (_TABLE, '{"version": row.version + 1}', '{"version": row.version}'),
    "SQL: only one inserts": (_TABLE, ".on_conflict_do_nothing()", ""),
    "SQL: whoever inserts looks first": (_TABLE, ".where(~there)", ".where(sa.true())"),
    "SQL: a locked row is waited for by nobody": (_TABLE, "skip_locked=True", "skip_locked=False"),
    "SQL: to complete is its owner's": (_TABLE, "row.owner == owner, row.fence == fence", "row.fence == fence"),
    "SQL: with its fence": (_TABLE, "row.owner == owner, row.fence == fence", "row.owner == owner"),
    "SQL: what runs": (_TABLE, 'row.state == "running", ', ""),
    "SQL: what is recorded is kept for ttl": (_TABLE, '"expires": now + ttl}', '"expires": now + 10 * now}'),
    "SQL: a first claim is forgotten at last": (_TABLE, '"expires": now + lease + ttl}', '"expires": now + 10 * now}'),
    "SQL: a first lease holds": (_TABLE, '"lease_ends": now + lease', '"lease_ends": now'),
    "SQL: only what has expired is purged": (_TABLE, "row.expires <= now, limit", "row.expires <= 10 * now, limit"),
    "SQL: what has expired is not there": (_STORE, "record is None or record.expires <= row.now", "record is None"),
    "SQL: a row of another's transaction is held": (_STORE, "held = locked and locked(record, row.now, asked[0])", "held = None"),
}  # fmt: skip


def leave_out() -> None:
    """In the child: take the guard out of its script, or of its module."""
    guard = os.environ[WITHOUT]
    name, stands, instead = (GUARDS | IN_PYTHON)[guard]
    if guard in GUARDS:
        source = _scripts.SCRIPTS[name].source
        assert stands in source, f"there is no such guard any more: {stands}"
        _scripts.SCRIPTS[name] = _scripts.Script(source.replace(stands, instead, 1))
        return
    module = importlib.import_module(f"celery_patterns.stores.{name}")
    without = dict(vars(module))
    exec(compile(inspect.getsource(module).replace(stands, instead, 1), str(module.__file__), "exec"), without)
    for there, anew in _functions(vars(module), without):
        there.__code__ = anew.__code__  # whoever has imported it has this very function


def _functions(there: dict[str, Any], anew: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    for name, one in list(there.items()):
        if inspect.isfunction(one) and one.__code__.co_freevars == anew[name].__code__.co_freevars:
            yield one, anew[name]
        elif inspect.isclass(one) and one.__module__ == there.get("__name__"):
            yield from _functions(
                {key: value for key, value in vars(one).items() if inspect.isfunction(value)}, dict(vars(anew[name]))
            )


@pytest.mark.parametrize("guard", [*GUARDS, *IN_PYTHON])
def test_a_guard_stands(guard: str) -> None:
    """Each is still where it was, so that the next test leaves out what it says."""
    name, stands, _ = (GUARDS | IN_PYTHON)[guard]
    if guard in GUARDS:
        assert stands in _scripts.SCRIPTS[name].source
    else:
        assert stands in inspect.getsource(importlib.import_module(f"celery_patterns.stores.{name}"))


def _contract(guard: str) -> list[str]:
    """Which tests speak of the guard."""
    if guard in GUARDS:
        return ["tests/test_stores.py", "-k", "redis or fence_grows"]
    if guard.startswith("rules"):
        return ["tests/test_stores.py", "-k", "memory or fence_grows"]
    return [
        *("tests/test_stores.py", "tests/test_commit_with.py", "tests/test_store_steps.py", "tests/test_sql_store.py"),
        *("-k", "sql or two_steps"),
    ]


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("guard", [*GUARDS, *IN_PYTHON])
def test_without_a_guard_the_contract_is_broken(guard: str) -> None:
    """The contract's own tests, on a store without it."""
    contract = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-m",
        "not long",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
    ]
    with closing(RedisServer()) as server:
        server.start()
        ran = subprocess.run(
            [*contract, "--timeout", "60", *_contract(guard)],
            cwd=Path(__file__).parent.parent,
            env={**os.environ, WITHOUT: guard, REDIS: str(server.port)},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
    assert ran.returncode == 1, f"nothing fails without it:\n{ran.stdout[-2000:]}{ran.stderr[-1000:]}"
    assert "1 failed" in ran.stdout
