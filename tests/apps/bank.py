"""Tasks that move money in PostgreSQL: one records its work in its own transaction, the other one afterwards."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from celery import Celery
from sqlalchemy.orm import Session

import celery_patterns as patterns

ACCOUNTS, BALANCE = 20, 1000
#: For how long a body goes on after its transaction, in seconds: an e-mail is sent, say.
AFTERWARDS = 0.03

_SCHEMA = """
CREATE TABLE accounts (task TEXT, id INTEGER, balance INTEGER, PRIMARY KEY (task, id));
CREATE TABLE bookings (task TEXT, transfer INTEGER, pid INTEGER);
"""


class Bank:
    """The database, from whichever process."""

    def __init__(self, url: str) -> None:
        self._url = sa.make_url(url).set(drivername="postgresql+psycopg")
        self._engines: dict[int, sa.Engine] = {}

    @property
    def engine(self) -> sa.Engine:
        return self._engines.setdefault(os.getpid(), sa.create_engine(self._url))

    def open(self, tasks: list[str]) -> None:
        with self.engine.begin() as connection:
            connection.execute(sa.text(_SCHEMA))
            for task in tasks:
                rows = [{"task": task, "id": number, "balance": BALANCE} for number in range(ACCOUNTS)]
                connection.execute(sa.text("INSERT INTO accounts VALUES (:task, :id, :balance)"), rows)

    def balances(self, task: str) -> list[int]:
        with self.engine.connect() as connection:
            asked = sa.text("SELECT balance FROM accounts WHERE task = :task ORDER BY id")
            return list(connection.execute(asked, {"task": task}).scalars())

    def booked(self, task: str) -> list[int]:
        with self.engine.connect() as connection:
            asked = sa.text("SELECT transfer FROM bookings WHERE task = :task ORDER BY transfer")
            return list(connection.execute(asked, {"task": task}).scalars())

    def move(self, session: Session, task: str, number: int) -> None:
        source, target, amount = self.transfer(number)
        # In one order, so that two transfers cannot wait for each other.
        for account in sorted((source, target)):
            change = {"task": task, "id": account, "change": -amount if account == source else amount}
            session.execute(
                sa.text("UPDATE accounts SET balance = balance + :change WHERE task = :task AND id = :id"), change
            )
        booking = {"task": task, "transfer": number, "pid": os.getpid()}
        session.execute(sa.text("INSERT INTO bookings VALUES (:task, :transfer, :pid)"), booking)

    @staticmethod
    def transfer(number: int) -> tuple[int, int, int]:
        """Source, target and amount of a transfer."""
        source = number % ACCOUNTS
        return source, (source + 1 + number % (ACCOUNTS - 1)) % ACCOUNTS, 1 + number % 7


def add_tasks(app: Celery, url: str) -> None:
    app.bank = bank = Bank(url)
    keyed = patterns.idempotent(key="number", ttl=timedelta(hours=1), lease=timedelta(seconds=3))
    unlimited = patterns.dead_letter(f"{app.conf.task_default_queue}.dead", max_crashes=None)

    @app.task(shared=False, name="transfer_together", bind=True)
    @keyed
    @unlimited
    def transfer_together(self: Any, number: int) -> str:
        with Session(bank.engine) as session, session.begin():
            bank.move(session, self.name, number)
            receipt = str(patterns.current_claim().commit_with(session, f"r-{number}"))
        time.sleep(AFTERWARDS)
        return receipt

    @app.task(shared=False, name="transfer_apart", bind=True)
    @keyed
    @unlimited
    def transfer_apart(self: Any, number: int) -> str:
        with Session(bank.engine) as session, session.begin():
            bank.move(session, self.name, number)
        time.sleep(AFTERWARDS)
        return f"r-{number}"
