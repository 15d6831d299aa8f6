"""Two bugs that wait for the wrong order, as in every shop. ``SHOP_RELEASE=2`` is the release without them."""

from __future__ import annotations

import os
import signal
from decimal import Decimal

FIXED = os.environ.get("SHOP_RELEASE", "1") != "1"


def check_amount(amount: Decimal) -> None:
    """Refuse what is no price. The bug: nobody thought that an order could cost a thousand.

    Raises:
        ValueError: When the amount is not above zero; and for a rich customer's order.
    """
    if amount <= 0 or (amount >= 1000 and not FIXED):
        raise ValueError("expected an amount above zero, with at most three digits before the point")


def print_receipt(customer: str) -> None:
    """Print the receipt. The bug: a name outside of ASCII takes the process down, as a bug in a C library does."""
    if not customer.isascii() and not FIXED:
        os.kill(os.getpid(), signal.SIGKILL)
