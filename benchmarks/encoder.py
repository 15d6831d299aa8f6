"""The strict encoder beside kombu's, on the body of a task message."""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable
from datetime import date, datetime, timezone
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

from kombu import serialization
from kombu.utils import json as kombu_json

from celery_patterns import _strict_json as strict_json
from celery_patterns._codec import dumps_message
from celery_patterns._republish import STRICT

from .measure import Section, Spread, Table, at_least, interleaved, ratios

EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
SMALL, MIXED, LARGE = "small arguments", "datetime, UUID, Decimal", "large argument"


def _payloads() -> dict[str, tuple[list[Any], dict[str, Any]]]:
    rows = [
        {
            "id": number,
            "sku": f"SKU-{number:06d}",
            "name": f"article number {number}",
            "price": number * 0.5,
            "in_stock": number % 3 > 0,
            "tags": ["new", "sale", f"group-{number % 7}"],
            "parent": None,
        }
        for number in range(620)
    ]
    mixed = {
        "paid_at": datetime(2026, 1, 31, 12, 30, 15, 250_000, tzinfo=timezone.utc),
        "due": date(2026, 2, 28),
        "order": UUID("6f1b0f0e-5c3a-4f0e-9d7e-2b6a1c9e8d70"),
        "amount": Decimal("1249.90"),
        "lines": [{"sku": UUID(int=number), "price": Decimal(number) / 4} for number in range(1, 4)],
    }
    return {
        SMALL: (["order-000001"], {"amount": 990, "currency": "EUR"}),
        MIXED: (["order-000001"], mixed),
        LARGE: ([rows], {}),
    }


def measure(*, quick: bool) -> Section:
    rounds = 11 if quick else 31
    strict_json.register()
    rows: list[tuple[str, ...]] = []
    speed: dict[str, list[float]] = {}
    raw: dict[str, Any] = {}
    for name, (args, kwargs) in _payloads().items():
        body = (args, kwargs, EMBED)
        pairs = {
            name: (partial(kombu_json.dumps, body), partial(dumps_message, *body)),
            f"{name}, as sent": (partial(_sent, body, "json"), partial(_sent, body, STRICT)),
        }
        for what, (kombus, ours) in pairs.items():
            if kombu_json.loads(kombus()) != kombu_json.loads(ours()):
                raise AssertionError(f"the two encoders disagree about: {what}")
            size = len(kombus())
            times = interleaved({"kombu": partial(_microseconds, kombus), "ours": partial(_microseconds, ours)}, rounds)
            speed[what] = ratios(times["kombu"], times["ours"])
            raw[what] = {"bytes": size, "microseconds": times}
            spreads = (times["kombu"], times["ours"], speed[what])
            rows.append((what, str(size), *(Spread.of(values).text(2) for values in spreads)))
    title = f"Encoding one message body, µs of CPU time: median of {rounds} interleaved rounds (quartiles)"
    return Section(
        "encoder",
        [
            Table(
                title,
                ("body", "bytes", "kombu", "strict JSON", "times kombu's speed"),
                rows,
                "As sent: through kombu's registry of serializers, as a producer calls it; there both do more.",
            )
        ],
        [
            at_least("encoding small arguments, times kombu's speed", 2.5, speed[SMALL]),
            at_least("encoding 100 KB, times kombu's speed", 1.0, speed[LARGE]),
        ],
        raw,
    )


def _sent(body: Any, serializer: str) -> Any:
    return serialization.dumps(body, serializer)[2]


def _microseconds(encode: Callable[[], Any]) -> float:
    """One sample of about 20 ms."""
    once = timeit.timeit(encode, timer=time.process_time, number=3) / 3
    calls = max(3, int(0.02 / once))
    return timeit.timeit(encode, timer=time.process_time, number=calls) / calls * 1e6
