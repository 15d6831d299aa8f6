"""The tables at the end."""

from __future__ import annotations

from collections import Counter

from rich import box
from rich.console import Console
from rich.table import Table

from .orders import Kind
from .verdict import Evidence, Promise


def show_orders(evidence: Evidence, console: Console) -> None:
    """What became of the orders, kind by kind."""
    table = Table(box=box.SIMPLE_HEAD, title="What became of the orders", title_justify="left", show_footer=True)
    orders = evidence.orders
    requests = Counter(orders[request.order_id].kind for request in evidence.requests)
    letters = Counter(orders[death.order_id].kind for death in evidence.deaths)
    why: dict[Kind, Counter[str]] = {kind: Counter() for kind in Kind}
    for death in evidence.deaths:
        why[orders[death.order_id].kind][death.error] += 1
    rows = []
    for kind in Kind:
        mine = [order for order in orders.values() if order.kind is kind]
        charges = sum(evidence.charges.get(order.id, 0) for order in mine)
        finished = sum(evidence.finished(order) for order in mine)
        rows.append((kind, len(mine), requests[kind], charges, letters[kind], finished))
    table.add_column("", "all")
    names = ("orders", "requests", "charges", "dead letters", "finished")
    for place, name in enumerate(names, start=1):
        table.add_column(name, str(sum(row[place] for row in rows)), justify="right")
    table.add_column("died of", style="dim")
    for kind, *numbers in rows:
        table.add_row(kind.value, *(str(number) if number else "·" for number in numbers), ", ".join(why[kind]))
    console.print()
    console.print(table)


def show_promises(promises: list[Promise], console: Console) -> None:
    """Whether each promise held."""
    table = Table(box=box.SIMPLE, show_header=False, title="What was promised", title_justify="left")
    for promise in promises:
        mark = "[bold green]held[/]" if promise.held else "[bold red]BROKEN[/]"
        table.add_row(mark, promise.text, f"[dim]{promise.numbers}[/]")
    console.print(table)
