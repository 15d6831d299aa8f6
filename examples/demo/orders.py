"""The orders of one afternoon."""

from __future__ import annotations

import random
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum

from . import service

#: Orders a second: what four processes can do, with some room.
RATE = 25
FEWEST = 20


class Kind(Enum):
    """What is special about an order, in the words of the final table."""

    PLAIN = "nothing special"
    TWICE = "sent twice"
    SLOW = "service stalls"
    FORGETFUL = "answer lost"
    TROUBLE = "service is down"
    DECLINED = "card declined"
    REFUSED = "hits a bug"
    KILLER = "kills a worker"


#: Out of a thousand orders; the plain ones are the rest, and one order is a killer.
SHARES = {
    Kind.TWICE: 120,
    Kind.SLOW: 30,
    Kind.FORGETFUL: 30,
    Kind.TROUBLE: 50,
    Kind.DECLINED: 40,
    Kind.REFUSED: 40,
}

_CARDS = {
    Kind.SLOW: service.SLOW,
    Kind.FORGETFUL: service.FORGETFUL,
    Kind.TROUBLE: service.TROUBLE,
    Kind.DECLINED: service.DECLINED,
}


@dataclass(frozen=True)
class Order:
    """One order, and the arguments of its task."""

    id: str
    kind: Kind
    amount: Decimal
    card: str
    customer: str


@dataclass(frozen=True)
class Sending:
    """One message to send, so many seconds after the first."""

    at: float
    order: Order


def afternoon(count: int, chance: random.Random) -> list[Sending]:
    """What is sent in one afternoon: the killer first, since it has the longest way to go.

    Half of the second copies follow at once, while the first one runs; the others come when it is long done.
    """
    kinds = [kind for kind, share in SHARES.items() for _ in range(max(1, count * share // 1000))]
    kinds += [Kind.PLAIN] * (count - 1 - len(kinds))
    chance.shuffle(kinds)
    orders = [_order(number, kind, chance) for number, kind in enumerate([Kind.KILLER, *kinds], start=1)]
    span = count / RATE
    sendings = [Sending(span * number / count, order) for number, order in enumerate(orders)]
    for number, first in enumerate([sending for sending in sendings if sending.order.kind is Kind.TWICE]):
        sendings.append(Sending(first.at if number % 2 else min(span, first.at + 4), first.order))
    return sorted(sendings, key=lambda sending: sending.at)


def _order(number: int, kind: Kind, chance: random.Random) -> Order:
    amount = Decimal(chance.randrange(500, 99_999)) / 100
    return Order(
        id=f"o-{number:04}",
        kind=kind,
        amount=amount + 1000 if kind is Kind.REFUSED else amount,
        card=_CARDS.get(kind, "card_fine"),
        customer="Zoë Nuñez" if kind is Kind.KILLER else "Ada Byron",
    )
