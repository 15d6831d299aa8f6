"""The thin path through everything, on real workers."""

from __future__ import annotations

from .harness import Floor


def test_a_flaky_task_is_tried_again_and_succeeds(shop: Floor) -> None:
    """A task that fails twice with a retried error is run three times, and its caller gets the result."""
    shop.worker()
    result = shop.task("flaky").delay("o-1")
    assert result.get(timeout=20) == "done o-1"
    assert shop.traces.all("attempts") == [[1, 3, False], [2, 3, False], [3, 3, True]]


def test_a_key_sent_twice_is_done_once(shop: Floor) -> None:
    """Two messages of one key do the work once, and both callers get its result."""
    shop.worker()
    results = [shop.task("flaky_keyed").delay("o-1") for _ in range(2)]
    assert [result.get(timeout=60) for result in results] == ["done o-1"] * 2
    assert shop.traces.all("effects") == ["o-1"]


def test_a_dead_letter_is_listed_and_replayed(shop: Floor) -> None:
    """What finally fails stands in the dead-letter queue, and a replay runs it again under a new id."""
    from celery_patterns import dead_letters

    shop.worker()
    shop.task("doomed").delay("o-1", kind="mended")
    shop.wait(lambda: len(shop.letters()) == 1, what="a letter")
    letter = shop.letters()[0]
    assert (letter.task, letter.error, letter.reason) == ("doomed", "builtins.ValueError", "failed")
    shop.traces.set("mended")
    result = dead_letters(shop.app, shop.dead).replay(letter)
    shop.wait(lambda: shop.traces.count("mended") == 1, what="the replay")
    assert shop.traces.all("mended") == [["o-1", result.id]]
    assert shop.letters() == []
