"""Tables of the documentation that are made from what the code or the tests say."""

from __future__ import annotations


def with_table(page: str, begin: str, table: str, end: str) -> str:
    """The page with the table between these two lines."""
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise AssertionError(f"the page has no place for the table: {begin.strip()} … {end.strip()}")
    return before + begin + table + end + after
