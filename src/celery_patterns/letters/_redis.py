"""Letters on a Redis broker: a list, whose tail is the oldest. A letter leaves it in the step that sends its message."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar

from kombu import serialization
from kombu.exceptions import DecodeError
from kombu.utils.encoding import bytes_to_str
from redis import Redis

from .._header_values import as_moment
from .._message import HEADER
from .._queues import topic_takes
from .._x_death import is_nameless
from ..exceptions import ConfigurationError, PublishFailed
from ._entry import Entry, Look, Told, entry_of
from ._undisturbed import pause, say_gone

if TYPE_CHECKING:
    from celery import Celery
    from kombu.message import Message

    from .._letter import Letter

__all__ = ["OnRedis"]

_T = TypeVar("_T")

_PAGE, _PAGE_BYTES = 100, 4 * 1024 * 1024
#: Seconds that one answer may take, and for how long a server that is away is asked again.
_ANSWER = 30.0
_PATIENCE = timedelta(seconds=30)

#: For how long a second copy of a death that was replayed is taken for one, also by another operator.
_REMEMBERED = timedelta(hours=1)

#: KEYS: the list. ARGV: how many were passed, the last of them, how many are wanted, after how many bytes it is enough.
#: Letters that somebody takes out behind us move the rest, so the place is found by the letter that was passed last; if that
#: is gone, we begin again. A few are asked for at a time, since nobody knows before how long they are.
_PAGE_SCRIPT = """
local passed, last = tonumber(ARGV[1]), ARGV[2]
if passed > 0 and redis.call('LINDEX', KEYS[1], -passed) ~= last then
  local place = redis.call('LPOS', KEYS[1], last, 'RANK', -1)
  passed = place and redis.call('LLEN', KEYS[1]) - place or 0
end
local page, bytes, wanted, step = {}, 0, tonumber(ARGV[3]), 1
while #page < wanted and bytes < tonumber(ARGV[4]) do
  local from = passed + #page
  local some = redis.call('LRANGE', KEYS[1], -(from + math.min(step, wanted - #page)), -(from + 1))
  if #some == 0 then break end
  for place = #some, 1, -1 do
    page[#page + 1] = some[place]
    bytes = bytes + #some[place]
  end
  step = 8
end
return {passed, page}
"""

#: KEYS: the list, the target's list, the mark of this death. ARGV: the letter, the message, seconds, which life of its task
#: this was, who asks.
#: The letter is taken out last: what the server refuses before has changed nothing. A mark that another entry left says
#: that this one is a copy of a death that was replayed, if it was the same life; the same entry again was put back by hand.
#: Asked once more by a client that was cut off from its answer, it gives the same answer.
_RESEND_SCRIPT = """
local this, mark = redis.sha1hex(ARGV[1]), redis.call('GET', KEYS[3]) or ''
local entry, life, asker = string.match(mark, '^(%S+) (%S+) (%S+)$')
if not redis.call('LPOS', KEYS[1], ARGV[1], 'RANK', -1) then
  return entry == this and asker == ARGV[5] and 'sent' or 'taken'
end
local known = entry and entry ~= this and life == ARGV[4]
if known and life == '-' then return 'unsure' end
if not known then
  redis.call('SET', KEYS[3], this .. ' ' .. ARGV[4] .. ' ' .. ARGV[5], 'EX', ARGV[3])
  redis.call('LPUSH', KEYS[2], ARGV[2])
end
redis.call('LREM', KEYS[1], -1, ARGV[1])
return known and 'taken' or 'sent'
"""


class OnRedis:
    """The shelf of a Redis broker.

    Args:
        app: The app on whose broker the queue is.
        queue: The dead-letter queue.
        look: Told of each message that is looked at.
    """

    def __init__(self, app: Celery, queue: str, look: Look) -> None:
        self._app = app
        self._queue = queue
        self._look = look
        self._connection = self._app.connection_for_write()  # where the letters were written, and go back to
        options = self._connection.transport_options
        options.setdefault("socket_timeout", _ANSWER)
        options.setdefault("socket_connect_timeout", _ANSWER)
        self._channel: Any = self._connection.default_channel
        # The channel's own client puts kombu's global_keyprefix before the keys of some commands, and not of others.
        self._client: Any = Redis(connection_pool=self._channel.pool)
        self._page = self._client.register_script(_PAGE_SCRIPT)
        self._resend = self._client.register_script(_RESEND_SCRIPT)
        self._list = self._key(str(self._channel._q_for_pri(self._queue, 0)))  # noqa: SLF001 - nothing else tells
        self._desk: _Desk | None = None
        self._asker = secrets.token_hex(8)

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.release()

    def _key(self, name: str) -> str:
        return f"{self._channel.global_keyprefix}{name}"

    def standing(self) -> int | None:
        # A list that is empty is not there.
        return int(self._asked(lambda: self._client.llen(self._list))) or None

    def walk(self) -> Iterator[Entry]:
        # Those that stand there now: a worker that still has the bug may write new ones as fast as we send.
        standing = left = int(self._asked(lambda: self._client.llen(self._list)))
        passed, last, looked, rounds = 0, b"", 0, 1
        while passed < left:
            size = min(_PAGE, left - passed)
            wanted: list[Any] = [passed, last, size, _PAGE_BYTES]
            began = not passed
            passed, page = self._asked(partial(self._page, [self._list], wanted))
            rounds += not (passed or began)  # the last one is gone, and it begins again
            for raw in page:
                looked += 1
                self._look(min(looked, standing), standing)
                entry = self._entry(raw, rounds)
                if entry is not None:
                    yield entry
                if entry is not None and entry.gone:
                    left -= 1
                else:
                    passed, last = passed + 1, raw
            if not page:
                return

    def _entry(self, raw: bytes, rounds: int) -> Entry | None:
        """One entry of the list; None for what no broker of kombu's wrote, and for what is no letter."""
        try:
            payload: Any = serialization.loads(
                bytes_to_str(raw), "application/json", "utf-8", accept=["application/json"]
            )
            message: Message = self._channel.Message(payload, channel=self._channel)
            body = self._channel.decode_body(payload["body"], message.properties.get("body_encoding"))
        except (DecodeError, KeyError, TypeError, ValueError, AttributeError):
            return None
        return entry_of(message, body, raw, rounds)

    def remove(self, entry: Entry) -> bool:
        removed = self._asked(lambda: self._client.lrem(self._list, -1, entry.place)) > 0
        entry.gone = True
        return bool(removed)

    def resend(
        self, entry: Entry, message: dict[str, Any], target: tuple[str, str], told: Told, *, keyed: bool
    ) -> bool:
        del keyed  # it leaves in one step, with a key or without
        try:
            sent = self._moved(entry, message, target[1])
        except PublishFailed as error:
            told(entry, False, error)
        else:
            entry.gone = True
            told(entry, sent, None)
        return True

    def settle(self) -> None:
        """All is done at once."""

    def _moved(self, entry: Entry, message: dict[str, Any], queue: str) -> bool:
        if self._desk is None:
            self._desk = _Desk(self._connection.channel())
        name, payload = self._desk.drafted(self._app, message, queue)
        keys = [self._list, self._key(name), self._mark(_death(entry))]
        arguments = [entry.place, payload, int(_REMEMBERED.total_seconds()), _life(entry), self._asker]
        try:
            answer = self._asked(lambda: self._resend(keys, arguments))
        except self._connection.connection_errors:
            raise
        except self._connection.channel_errors as error:
            raise PublishFailed(f"the broker refused the message: {type(error).__name__}: {error}") from error
        if answer == b"unsure":
            raise PublishFailed(
                f"a letter of this id was replayed less than {_REMEMBERED} ago, and whether this one is a copy of it cannot "
                "be told; export, purge and import it to send it again"
            )
        return bool(answer == b"sent")

    def forget(self, letter_id: str) -> None:
        self._asked(lambda: self._client.delete(self._mark(letter_id)))

    def _mark(self, letter_id: str) -> str:
        return self._key(f"_celery_patterns.replayed.{letter_id}")

    def target_of(self, letter: Letter) -> tuple[str, str]:
        known = self._app.amqp.queues.get(letter.queue)
        if known is not None:
            return "", self._unless_to_all(letter.queue)
        return "", letter.queue if not letter.exchange else self._taker(letter)

    def target_named(self, queue: str) -> tuple[str, str]:
        known = queue in self._app.amqp.queues
        if not known and not self._asked(lambda: self._client.exists(*self._traces_of(queue))):
            raise ConfigurationError(
                f"nobody knows a queue {queue!r}: the app does not name it, no message stands in it, and no worker has "
                "declared it; expected the name of a queue that a worker consumes"
            )
        try:
            return "", self._unless_to_all(queue) if known else queue
        except PublishFailed as error:
            raise ConfigurationError(str(error)) from None

    def _traces_of(self, queue: str) -> list[str]:
        lists = {str(self._channel._q_for_pri(queue, step)) for step in self._channel.priority_steps}  # noqa: SLF001
        return [self._key(name) for name in (*lists, self._channel.keyprefix_queue % queue)]

    def _unless_to_all(self, queue: str) -> str:
        exchange = self._app.amqp.queues[queue].exchange
        if exchange is not None and exchange.type == "fanout":
            raise PublishFailed(
                f"{queue} takes what is sent to all, and nothing that is sent to it alone; expected to= with another queue"
            )
        return queue

    def _taker(self, letter: Letter) -> str:
        """The queue that takes a letter's key from its exchange: Redis knows the bindings, but not the exchange's type."""
        rows = self._channel.get_table(letter.exchange) if self._bound(letter.exchange) else []
        words = letter.routing_key.split(".")
        takers = sorted(queue for key, pattern, queue in rows if pattern and topic_takes(key.split("."), words))
        if letter.queue in takers or takers:
            return str(letter.queue if letter.queue in takers else takers[0])
        what = (
            f"this app does not know {letter.queue}, and whether {letter.exchange!r} sends to one queue or to all"
            if rows
            else f"no queue is known to take {letter.routing_key!r} from the exchange {letter.exchange!r}"
        )
        raise PublishFailed(f"{what}; expected an app that declares it, or to= with the queue to send it to")

    def _bound(self, exchange: str) -> bool:
        name = self._key(self._channel.keyprefix_queue % exchange)
        return bool(self._asked(lambda: self._client.exists(name)))

    def _asked(self, ask: Callable[[], _T]) -> _T:
        """Ask the server, again while it is away; the connection is opened anew by itself."""
        deadline, gap, said = time.monotonic() + _PATIENCE.total_seconds(), 0.1, False
        while True:
            try:
                return ask()
            except self._connection.connection_errors:
                if time.monotonic() + gap > deadline:
                    raise
            if not said:
                say_gone(_PATIENCE.total_seconds())
                said = True
            pause(gap)
            gap = min(gap * 2, 2.0)


def _death(entry: Entry) -> str:
    """The letter's id; of equal ones without a name the entry itself."""
    return sha256(entry.place).hexdigest() if is_nameless(entry.letter) else entry.letter.id


def _life(entry: Entry) -> str:
    """What differs between two deaths of one id: the replay that the message was sent by. ``-`` where it does not tell.

    A first life is told apart by the id itself, if its sender said when it began.
    """
    letter = entry.letter
    if not letter.replay:
        return "-" if letter.first_published is None else "first"
    ours = entry.message.headers.get(HEADER)
    replayed = as_moment(ours.get("replayed")) if isinstance(ours, dict) else None
    return "-" if replayed is None else repr(replayed)


class _Desk:
    """Where kombu writes its message, and we take it from its hand: it is in the list's form to the last byte.

    Args:
        channel: A channel for this alone. Where it expects its client, it finds this desk.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._written: tuple[str, str] = ("", "")
        channel.conn_or_acquire = self._lent

    def drafted(self, app: Celery, message: dict[str, Any], queue: str) -> tuple[str, str]:
        """The list and the entry that kombu would have pushed."""
        producer = app.amqp.Producer(self._channel, auto_declare=False)
        producer.publish(exchange="", routing_key=queue, retry=False, **message)
        return self._written

    @contextmanager
    def _lent(self, client: Any = None) -> Iterator[_Desk]:
        assert client is None
        yield self

    def lpush(self, name: str, payload: str) -> None:
        self._written = (name, payload)
