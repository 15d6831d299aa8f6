"""CP4, where it is a Redis: what it keeps, for how long, and what a killed worker held."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .._finding import Rule, Sign, rule

if TYPE_CHECKING:
    from .._case import Case
    from .._servers import RedisFacts, Server


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


RULES: tuple[Rule, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
