"""One letter where it stands: the message of the broker's, and what must be known to take it out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from .._envelope import unwrapped
from .._letter import Letter
from .._x_death import letter_of
from ..exceptions import PublishFailed

if TYPE_CHECKING:
    from kombu.message import Message

__all__ = ["Entry", "Look", "Shelf", "Stored", "Told", "entry_of"]

#: Told of each message that is looked at: how many there were so far, and how many stood there at the start.
Look = Callable[[int, int], object]


@dataclass(frozen=True)
class Stored:
    """A message to the last byte, for whoever puts it back as it was."""

    body: bytes | str
    headers: dict[str, Any]
    content_type: str | None
    content_encoding: str | None


@dataclass
class Entry:
    """A letter's message.

    Attributes:
        letter: The letter.
        message: The message that died, its body decompressed.
        stored: The same as it stands in the queue.
        place: How its shelf finds it again.
        round: How often its shelf had begun at the first letter: within one round no letter is shown twice.
        gone: Whether it is out of the queue, by us or by somebody else.
        again: Whether nothing could be done with it, so that the walk is to show it again.
    """

    letter: Letter
    message: Message
    stored: Stored
    place: Any
    round: int = 1
    gone: bool = False
    again: bool = False


#: Told of a letter that was dealt with: whether its message was sent by us, and what went wrong.
Told = Callable[[Entry, bool, PublishFailed | None], object]


def entry_of(message: Message, body: bytes | str, place: Any, round: int = 1) -> Entry | None:  # noqa: A002 - as there
    """The entry of a message; None for what is no letter."""
    stored = Stored(body, dict(message.headers or {}), message.content_type, message.content_encoding)
    letter = letter_of(unwrapped(message))
    return None if letter is None else Entry(letter, message, stored, place, round)


class Shelf(Protocol):
    """A dead-letter queue on a broker of one kind, with a connection of its own while it is open."""

    def standing(self) -> int | None:
        """How many messages stand there now; None when the broker has no such queue."""
        ...

    def walk(self) -> Iterator[Entry]:
        """The letters that stand there now, oldest first; one may be shown again after trouble with the connection."""
        ...

    def remove(self, entry: Entry) -> bool:
        """Take a letter out for good; False when it was not there any more, or could not be taken out now."""
        ...

    def resend(
        self, entry: Entry, message: dict[str, Any], target: tuple[str, str], told: Told, *, keyed: bool
    ) -> bool:
        """Send a letter's message on its way and take the letter out.

        A letter whose message the broker did not take stays. One that somebody else has dealt with is not sent.

        Args:
            entry: The letter.
            message: The arguments of ``Producer.publish``, but for exchange and routing key.
            target: Exchange and routing key.
            told: Called when that is done, at once or in a later call.
            keyed: Whether a key absorbs a message that is sent twice: it need not be confirmed before the next one is sent.

        Returns:
            False when nothing was done, since the letter is not held any more: the walk shows it again.
        """
        ...

    def settle(self) -> None:
        """Wait until all that was sent is done."""
        ...

    def target_of(self, letter: Letter) -> tuple[str, str]:
        """Exchange and routing key by which a message reaches the one queue that it came from.

        Raises:
            PublishFailed: When there is no way.
        """
        ...

    def target_named(self, queue: str) -> tuple[str, str]:
        """The same for a queue of the user's choice.

        Raises:
            ConfigurationError: When nobody knows this queue.
        """
        ...

    def forget(self, letter_id: str) -> None:
        """Let a letter that is put back be replayed again."""
        ...
