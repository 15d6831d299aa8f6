"""What the shop does on its queue."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

from tenacity import wait_random

from celery_patterns import current_call, current_claim, dead_letter, idempotent, logged, retry

from . import app, bugs, payments


@app.task
@logged("order_id")
@dead_letter("orders.dead")
# The lease: how long an order waits when its worker was killed. While it is charged, the lease is renewed.
@idempotent(key="order_id", ttl=timedelta(days=1), lease=timedelta(seconds=4))
@retry(on=(ConnectionError, TimeoutError), attempts=5, wait=wait_random(0, 2))
def charge(order_id: str, amount: Decimal, card: str, customer: str) -> dict[str, str]:
    """Charge an order, once; the receipt."""
    bugs.check_amount(amount)
    call = current_call()
    receipt = payments.charge(
        order_id,
        amount,
        card,
        # The same for every run of this order: a worker killed after the charge does not charge again.
        key=current_claim().key,
        request_id=f"{call.id}/{call.attempt}",
    )
    bugs.print_receipt(customer)
    return receipt
