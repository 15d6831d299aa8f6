"""The tables at the end."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from .orders import Kind
from .verdict import Evidence, Promise, reasons_for_repeats

_NUMBERS = ("orders", "requests", "charges", "letters", "finished")


def show_orders(evidence: Evidence, console: Console) -> None:
    """What became of the orders, kind by kind."""
    rows = {kind: _numbers(evidence, kind) for kind in Kind}
    table = _table("What became of the orders")
    table.show_header = table.show_footer = True
    table.add_column("", "all", no_wrap=True)
    for place, name in enumerate(_NUMBERS):
        table.add_column(name, str(sum(numbers[place] for numbers in rows.values())), justify="right")
    table.add_column("died of", style="dim")
    for kind, numbers in rows.items():
        mine = {death.error for death in evidence.deaths if evidence.orders[death.order_id].kind is kind}
        table.add_row(kind.value, *(str(number) if number else "·" for number in numbers), ", ".join(sorted(mine)))
    console.print()
    console.print(table)
    processes = sum(kill.pid is not None for kill in evidence.kills)
    console.print(
        f"  {processes} processes and {len(evidence.kills) - processes} whole workers were killed, "
        f"in the middle of {reasons_for_repeats(evidence)['killed']} runs\n",
        highlight=False,
    )


def show_promises(promises: list[Promise], console: Console) -> None:
    """Whether each promise held."""
    table = _table("What was promised")
    for promise in promises:
        mark = "[bold green]held[/]" if promise.held else "[bold red]BROKEN[/]"
        table.add_row(mark, promise.text, f"[dim]{promise.numbers}[/]")
    console.print(table)


def _table(title: str) -> Table:
    return Table(box=box.SIMPLE, title=title, title_justify="left", show_header=False, padding=(0, 1, 0, 0))


def _numbers(evidence: Evidence, kind: Kind) -> tuple[int, ...]:
    """One row, in the order of the columns."""
    mine = {order.id: order for order in evidence.orders.values() if order.kind is kind}
    return (
        len(mine),
        sum(request.order_id in mine for request in evidence.requests),
        sum(evidence.charges.get(order_id, 0) for order_id in mine),
        sum(death.order_id in mine for death in evidence.deaths),
        sum(evidence.finished(order) for order in mine.values()),
    )
