"""The payment service, as its clients see it."""

from __future__ import annotations

import http.client
import json
import os
from decimal import Decimal

SERVICE = os.environ.get("SHOP_PAYMENTS", "localhost:8000")
TIMEOUT = 1.0


class CardDeclined(Exception):  # noqa: N818 - it says what happened
    """The bank said no. Asking again does not help."""


class Unavailable(ConnectionError):  # noqa: N818 - the same
    """The service answered that it cannot answer."""


def charge(order_id: str, amount: Decimal, card: str, *, key: str, request_id: str) -> dict[str, str]:
    """Charge a card once for each key.

    Args:
        order_id: What is paid for.
        amount: How much.
        card: The card's token.
        key: The ``Idempotency-Key``: the service charges at its first request, and repeats that answer ever after.
        request_id: What to quote when one asks the service what happened.

    Returns:
        The receipt.

    Raises:
        CardDeclined: When the bank said no.
        ConnectionError: When the service is away or in trouble.
        TimeoutError: When it did not answer in time. Nobody knows then whether it charged.
    """
    connection = http.client.HTTPConnection(SERVICE, timeout=TIMEOUT)
    try:
        connection.request(
            "POST",
            "/charges",
            json.dumps({"order_id": order_id, "amount": str(amount), "card": card}),
            {"Idempotency-Key": key, "Request-Id": request_id, "User-Agent": f"shop/{os.getpid()}"},
        )
        response = connection.getresponse()
        status, answer = response.status, json.loads(response.read())
    finally:
        connection.close()
    if status == http.HTTPStatus.PAYMENT_REQUIRED:
        raise CardDeclined(answer["error"])
    if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        raise Unavailable(answer["error"])
    if status != http.HTTPStatus.OK:
        raise ValueError(answer["error"])
    return {"receipt": str(answer["receipt"])}
