"""Each guard of the scripts is needed: without it, a test of the contract fails."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from celery_patterns.stores import _redis

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
    "marks: one for each task": ("release", "    if id ~= run_id then ", "    if true then "),
    "marks: no more than some": ("release", "while #marks > ", "while false and #marks > "),
}  # fmt: skip


def leave_out() -> None:
    """In the child: take the guard out of its script."""
    name, stands, instead = GUARDS[os.environ[WITHOUT]]
    source = _redis._SCRIPTS[name].source
    assert stands in source, f"there is no such guard any more: {stands}"
    _redis._SCRIPTS[name] = _redis._Script(source.replace(stands, instead, 1))


@pytest.mark.parametrize("guard", GUARDS)
def test_a_guard_stands(guard: str) -> None:
    """Each is still in its script, so that the next test leaves out what it says."""
    name, stands, _ = GUARDS[guard]
    assert stands in _redis._SCRIPTS[name].source


@pytest.mark.long
@pytest.mark.parametrize("guard", GUARDS)
def test_without_a_guard_the_contract_is_broken(guard: str) -> None:
    """The contract's own tests, on a store without it."""
    contract = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    with closing(RedisServer()) as server:
        server.start()
        ran = subprocess.run(
            [*contract, "tests/test_stores.py", "-k", "redis or servers_clock"],
            cwd=Path(__file__).parent.parent,
            env={**os.environ, WITHOUT: guard, REDIS: str(server.port)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert ran.returncode == 1, f"nothing fails without it:\n{ran.stdout[-2000:]}{ran.stderr[-1000:]}"
    assert "1 failed" in ran.stdout
