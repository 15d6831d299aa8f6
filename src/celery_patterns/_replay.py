"""Reading dead letters, and sending them on their way again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from kombu import serialization
from kombu.exceptions import DecodeError, InconsistencyError
from kombu.utils.encoding import bytes_to_str

from ._equipment import equipment_of
from ._fit import expect_app
from ._letter import Letter, replay_id, replayed_headers
from ._publish import CONFIRM
from ._queues import fitting, queue_length, topic_takes
from ._wrap import unwrapped
from ._x_death import letter_of
from .exceptions import ConfigurationError, LetterNotFound, PublishFailed

if TYPE_CHECKING:
    from celery import Celery
    from celery.result import AsyncResult
    from kombu.connection import Connection
    from kombu.message import Message
    from kombu.messaging import Producer

__all__ = ["DeadLetters", "dead_letters"]

_PAGE = 200


def dead_letters(app: Celery, queue: str) -> DeadLetters:
    """The letters that stand in a dead-letter queue.

    Args:
        app: The app on whose broker the queue is.
        queue: The queue's name, for example ``orders.dead``.

    Raises:
        ConfigurationError: When the app's broker is neither RabbitMQ nor Redis, and when an argument is neither an app nor
            a name.
    """
    expect_app(app, "dead_letters()")
    if not isinstance(queue, str) or not queue:
        raise ConfigurationError(
            f'expected the queue\'s name, for example dead_letters(app, "orders.dead"); got {queue!r}'
        )
    return DeadLetters(app, queue)


@dataclass
class _Held:
    """A letter's message, and how to take it out of the queue for good."""

    letter: Letter
    message: Message
    place: Any = None
    removed: bool = False


class DeadLetters:
    """The letters in one queue, oldest first.

    Iterating promises to neither lose nor reorder a letter, also when it is killed, and shows one letter for each id.
    It does not promise a frozen picture: letters that are written or replayed meanwhile may or may not be seen. On
    RabbitMQ a letter that another reader is looking at is not seen.

    Args:
        app: The app on whose broker the queue is.
        queue: The queue's name.
    """

    def __init__(self, app: Celery, queue: str) -> None:
        self._app = app
        self.queue = fitting(queue)
        with self._connected() as connection:
            kind = connection.transport.driver_type
        if kind not in ("amqp", "redis"):
            raise ConfigurationError(f"dead_letters() reads RabbitMQ and Redis brokers; this app's broker is {kind!r}")
        self._on_redis = kind == "redis"

    def __iter__(self) -> Iterator[Letter]:
        seen: set[str] = set()
        with self._connected() as connection:
            for held in self._held(connection):
                if held.letter.id not in seen:
                    seen.add(held.letter.id)
                    yield held.letter

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, letter_id: str) -> Letter:
        """The letter of this id.

        Raises:
            LetterNotFound: When none stands in the queue.
        """
        for letter in self:
            if letter.id == letter_id:
                return letter
        raise LetterNotFound(f"no letter {letter_id} stands in {self.queue}")

    def replay(self, letter: Letter | str) -> AsyncResult[Any]:
        """Send one letter's message to the queue it came from, and take the letter out.

        The message gets a task id made from the letter's id, a fresh budget of attempts, its own key and root id, and no
        ETA or expiry. Its chain and links go with it; the chord it may have been a member of is not told again. The
        letter is taken out once the broker has confirmed the message; killed in between, a second replay sends the same
        task id, which a key absorbs.

        Args:
            letter: The letter, or its id.

        Returns:
            The replayed task's result.

        Raises:
            LetterNotFound: When none stands in the queue.
            PublishFailed: When the broker did not take the message; the letter stays.
        """
        wanted = letter.id if isinstance(letter, Letter) else letter
        results = self._replay(wanted)
        if not results:
            raise LetterNotFound(f"no letter {wanted} stands in {self.queue}")
        return results[0]

    def replay_all(self) -> list[AsyncResult[Any]]:
        """Replay every letter that stands in the queue now, oldest first.

        Returns:
            The replayed tasks' results.

        Raises:
            PublishFailed: When the broker did not take a message; that letter and those after it stay.
        """
        return self._replay(None)

    def _replay(self, wanted: str | None) -> list[AsyncResult[Any]]:
        sent: dict[str, AsyncResult[Any]] = {}
        with self._connected() as connection:
            # Those that stand there now: a worker that still has the bug may write new ones as fast as we send.
            for held in islice(self._held(connection), self._standing(connection)):
                letter = held.letter
                if wanted is not None and letter.id != wanted:
                    continue
                if letter.id not in sent:  # a letter that was written twice is one death, and is replayed once
                    self._send(connection, held)
                    sent[letter.id] = self._app.AsyncResult(replay_id(letter))
                self._remove(connection, held)
        return list(sent.values())

    def _send(self, connection: Connection, held: _Held) -> None:
        letter, message = held.letter, held.message
        headers = replayed_headers(letter, message.headers)
        body = _without_chord(message)
        properties = {"correlation_id": headers["id"], "reply_to": message.properties.get("reply_to") or ""}
        if letter.priority is not None:
            properties["priority"] = letter.priority

        exchange, key = letter.exchange, letter.routing_key
        if self._on_redis:
            exchange, key = "", self._queue_on_redis(letter, connection.default_channel)

        def send(producer: Producer) -> None:
            producer.publish(
                body,
                exchange=exchange,
                routing_key=key,
                headers=headers,
                content_type=message.content_type,
                content_encoding=message.content_encoding,
                delivery_mode=2,
                **properties,
                **CONFIRM,
            )

        equipment_of(self._app).publisher.publish(send)

    def _queue_on_redis(self, letter: Letter, channel: Any) -> str:
        """The queue to send to by name: kombu hands what comes by an exchange to no queue when it does not know its type.

        Raises:
            PublishFailed: When no queue is known, so that the letter stays.
        """
        known = self._app.amqp.queues.get(letter.queue)
        if known is not None and known.exchange is not None and known.exchange.type == "fanout":
            raise PublishFailed(f"{letter.queue} takes what is sent to all, and nothing that is sent to it alone")
        if not letter.exchange or known is not None:
            return letter.queue
        try:
            rows = channel.get_table(letter.exchange)
        except InconsistencyError:  # nobody ever bound a queue to it
            rows = []
        words = letter.routing_key.split(".")
        takers = sorted(queue for key, _, queue in rows if topic_takes(key.split("."), words))
        for queue in (letter.queue, *takers):
            if queue in takers or any(queue == bound for *_, bound in rows):
                return str(queue)
        raise PublishFailed(
            f"no queue is known to take {letter.routing_key!r} from the exchange {letter.exchange!r}; expected an app that "
            "declares it, or a worker that consumes it"
        )

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        with self._app.connection_for_read() as connection:
            yield connection

    def _held(self, connection: Connection) -> Iterator[_Held]:
        return self._held_on_redis(connection) if self._on_redis else self._held_on_amqp(connection)

    def _standing(self, connection: Connection) -> int:
        if not self._on_redis:
            return queue_length(connection, self.queue) or 0
        channel: Any = connection.default_channel
        return int(channel.client.llen(_list_of(channel, self.queue)))

    def _held_on_amqp(self, connection: Connection) -> Iterator[_Held]:
        """Take the letters unacknowledged. Closing the channel puts each back where it stood."""
        if queue_length(connection, self.queue) is None:
            return
        channel = connection.channel()
        try:
            while True:
                raw = channel.basic_get(self.queue, no_ack=False)
                if raw is None:
                    return
                message = _unpacked(channel.message_to_python(raw))
                letter = letter_of(message)
                if letter is not None:
                    yield _Held(letter, message)
        finally:
            if channel.connection is not None:
                channel.close()

    def _held_on_redis(self, connection: Connection) -> Iterator[_Held]:
        """Look at the list without taking anything: a basic_get would move letters, and a kill would lose their order."""
        channel: Any = connection.default_channel
        # The tail is the oldest. What is written meanwhile goes to the head, and what we take out was at the tail.
        client, passed = channel.client, 0
        while True:
            page = client.lrange(_listed_as(channel, "LRANGE", self.queue), -(passed + _PAGE), -(passed + 1))
            for raw in reversed(page):
                passed += 1
                message = _parsed(channel, raw)
                letter = None if message is None else letter_of(_unpacked(message))
                if letter is not None and message is not None:
                    held = _Held(letter, message, raw)
                    yield held
                    passed -= held.removed
            if len(page) < _PAGE:
                return

    def _remove(self, connection: Connection, held: _Held) -> None:
        if not self._on_redis:
            held.message.ack()
            return
        channel: Any = connection.default_channel
        held.removed = channel.client.lrem(_listed_as(channel, "LREM", self.queue), -1, held.place) > 0


def _list_of(channel: Any, queue: str) -> str:
    """The list that kombu keeps a queue's messages of no priority in; it has one for each of its ``priority_steps``."""
    return str(channel._q_for_pri(queue, 0))  # noqa: SLF001 - nothing else tells


def _listed_as(channel: Any, command: str, queue: str) -> str:
    """The list's name: kombu puts its ``global_keyprefix`` before the keys of some commands, and not of others."""
    name = _list_of(channel, queue)
    if command in getattr(channel.client, "PREFIXED_SIMPLE_COMMANDS", ()):
        return name
    return f"{channel.global_keyprefix}{name}"


def _parsed(channel: Any, raw: bytes) -> Message | None:
    """One entry of the list; None for what no broker of kombu's wrote."""
    try:
        payload = _payload(raw)
        message: Message = channel.Message(payload, channel=channel)
    except (DecodeError, KeyError, TypeError, ValueError):
        return None
    return message


def _unpacked(message: Message) -> Message:
    if isinstance(message.headers, dict) and not message.errors:
        message.headers.pop("compression", None)  # kombu has unpacked the body
    return unwrapped(message)


def _payload(raw: bytes) -> Any:
    return serialization.loads(bytes_to_str(raw), "application/json", "utf-8", accept=["application/json"])


def _without_chord(message: Message) -> Any:
    """The body, whose chord is not to be told a second time; bytes that cannot be read go as they are."""
    if "json" not in (message.content_type or ""):
        return message.body
    try:
        body: Any = serialization.loads(
            message.body,
            message.content_type,
            message.content_encoding,
            accept=[message.content_type],
        )
        args, kwargs, embed = body
        chord = embed.get("chord")
    except (AttributeError, DecodeError, TypeError, ValueError):
        return message.body
    if not chord:
        return message.body
    return serialization.dumps([args, kwargs, {**embed, "chord": None}], "json")[2]
