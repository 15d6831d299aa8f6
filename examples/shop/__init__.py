"""A small shop that charges orders on a queue. Its worker: ``celery -A examples.shop worker``.

Everything it needs to know stands in the environment:

==========================  ============================================  ================================
``SHOP_BROKER``             where the orders wait                         ``redis://localhost:6379/0``
``SHOP_STORE``              where an order's key is claimed               ``redis://localhost:6379/1``
``SHOP_RESULTS``            where the receipts are kept                   ``redis://localhost:6379/2``
``SHOP_PAYMENTS``           the payment service, host and port            ``localhost:8000``
``SHOP_VISIBILITY_TIMEOUT`` seconds until a killed worker's orders are    ``3600``
                            given out again (Redis as broker only)
``SHOP_RELEASE``            1 has two bugs, 2 has them fixed              ``1``
==========================  ============================================  ================================
"""

from __future__ import annotations

import os

from celery import Celery

import celery_patterns as patterns

app = Celery(
    "shop",
    broker=os.environ.get("SHOP_BROKER", "redis://localhost:6379/0"),
    backend=os.environ.get("SHOP_RESULTS", "redis://localhost:6379/2"),
    include=["examples.shop.tasks"],
)
patterns.equip(app, store=os.environ.get("SHOP_STORE", "redis://localhost:6379/1"))

app.conf.update(
    task_default_queue="orders",
    # What a worker took and has not begun goes down with it, and comes back late: let it take little.
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
)

if app.conf.broker_url.startswith("redis"):
    # Redis does not notice that a worker is gone. It gives a message out again when this many seconds have passed since
    # it was taken, finished or not: keep it well above the longest task and the longest countdown.
    app.conf.broker_transport_options = {
        "visibility_timeout": float(os.environ.get("SHOP_VISIBILITY_TIMEOUT", "3600")),
        # Look for such messages every second, instead of every hundred; and when a worker is killed while it looks, keep
        # the others from it for ten seconds, instead of five minutes.
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 10,
    }
