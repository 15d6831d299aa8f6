"""CP4, where it is a Redis: what it keeps, for how long, and what a killed worker held."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .._finding import Rule, Sign, rule

if TYPE_CHECKING:
    from .._case import Case
    from .._servers import RedisFacts, Server

#: So many workers that gossip are many.
_MANY = 10


@rule(
    "CP401",
    "error",
    "A Redis that forgets when it is full",
    "At its limit it throws away what it likes: queues with their tasks, keys of work that was done, results.",
    upstream="celery/kombu#1063",
)
def evicts(case: Case) -> Iterator[Sign]:
    """``maxmemory`` is set, and its policy evicts what is there."""
    for server, facts in _redises(case):
        # A queue never expires, so only what takes any key takes it.
        takes = facts.policy.startswith("allkeys") if server.address.role == "broker" else facts.policy != "noeviction"
        if facts.maxmemory and takes:
            yield Sign(
                server.address.where,
                f"the {server.address.role} at {server.address.shown} has maxmemory={facts.maxmemory:,} bytes with "
                f"maxmemory-policy={facts.policy}",
                "Set `maxmemory-policy noeviction` there, or give the cache a Redis of its own.",
            )


@rule(
    "CP402",
    "warning",
    "A Redis that keeps nothing on disk",
    "A restart empties it: tasks that wait are lost, and keys of work that was done.",
    upstream="open-formulieren/open-forms#2514",
)
def forgets(case: Case) -> Iterator[Sign]:
    """Neither ``appendonly`` nor ``save`` is on."""
    for server, facts in _redises(case):
        if facts.keeps is False and server.address.role != "result backend":
            yield Sign(
                server.address.where,
                f'the {server.address.role} at {server.address.shown} has appendonly=no and save=""',
                "Set `appendonly yes` there.",
            )


@rule(
    "CP414",
    "hint",
    "What a killed worker held comes back late",
    "After the visibility timeout Redis is looked through about every 100 seconds: so much later is it delivered again.",
    upstream="celery/kombu#2558",
    production=True,
)
def late_sweep(case: Case) -> Iterator[Sign]:
    """Kombu's restore interval is at its default."""
    late = [task for task in case.tasks if task.late]
    if case.transport == "redis" and late and "unacked_restore_interval" not in case.transport_options:
        yield Sign(
            case.spelled("broker_transport_options"),
            f"{late[0].name} is acknowledged late, {case.visibility_line}, and unacked_restore_interval is not set",
            'Add "unacked_restore_interval": 2 to it (kombu 5.6).',
        )


@rule(
    "CP415",
    "warning",
    "Keys that a failover may lose",
    "A replica that takes over has not heard of the last moment: work that was done in it is done again.",
    upstream="redis/redis#4819",
    production=True,
)
def forgets_at_failover(case: Case) -> Iterator[Sign]:
    """The store's Redis has replicas, and no step waits for them."""
    for server, facts in _redises(case):
        if server.address.role == "store" and facts.replicas and not getattr(case.store, "replicas", 0):
            yield Sign(
                server.address.where,
                f"the store at {server.address.shown} has {facts.replicas} "
                f"{'replica' if facts.replicas == 1 else 'replicas'}, and replicas=0",
                f'Write use_store(app, RedisStore("{server.address.scheme}://…", replicas=1)), or keep the keys in SQL.',
            )


def _redises(case: Case) -> Iterator[tuple[Server, RedisFacts]]:
    for server in case.servers:
        if server.redis is not None:
            yield server, server.redis


@rule(
    "CP424",
    "hint",
    "Workers that gossip",
    "Each hears each other's heartbeat, every two seconds: of n workers the server sends n x n / 2 messages a second, for "
    "nothing where no code of yours asks for an election.",
    upstream="celery/celery#2005",
    production=True,
)
def gossip(case: Case) -> Iterator[Sign]:
    """Many workers listen to each other's events, as they do unless they are told not to."""
    if isinstance(case.answered, str):
        return
    for server in case.servers:
        if server.redis is None or server.redis.listening is None:
            continue
        # Each worker has one connection for what it is asked, and one more where it gossips; a monitor has one, too.
        number = server.redis.listening - len(case.answered)
        if number >= _MANY:
            yield Sign(
                "workers",
                f"about {number} workers here hear each other's events, some {number * number // 2} messages a second",
                "Start them with --without-gossip.",
            )


RULES: tuple[Rule, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
