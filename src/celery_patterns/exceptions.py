"""Everything this library raises.

.. code-block:: text

    PatternsError
    ├── ConfigurationError      a pattern, a task or an app is put together wrongly   (also ValueError)
    ├── UnsafeValue             an argument would not arrive as it was sent          (also EncodeError)
    ├── InvalidKey              a key cannot be made from these arguments             (also ValueError)
    ├── StoreUnavailable        the store did not answer
    ├── BackendUnavailable      the result backend did not answer
    ├── PublishFailed           the broker did not confirm a message
    ├── KeyMismatch             the key was used before, with other arguments
    ├── InProgress              another run of the key is not over
    ├── ClaimLost               the run does not know that its key is still its own
    ├── NotCommitted            the body ended before its own transaction did
    ├── ResultNotKept           the work is done, but its result was not stored
    ├── FailedBefore            the key's work failed before, and that is remembered
    ├── AlreadyFailed           this very attempt has failed before
    ├── AttemptTooLate          the attempt was delivered after the retry's deadline
    ├── TooManyCrashes          the task took down its worker too often
    ├── OutOfMemory             the body raised MemoryError
    ├── BodyAborted             the body raised what is no Exception
    ├── NotInTask               there is no running call, or no claim, to ask about
    ├── KeyNotFound             no such key                                          (also LookupError)
    └── LetterNotFound          no such dead letter                                  (also LookupError)

Every one of them survives pickle: ``args`` are the arguments of ``__init__``.
"""

from __future__ import annotations

from kombu.exceptions import EncodeError

__all__ = [
    "AlreadyFailed",
    "AttemptTooLate",
    "BackendUnavailable",
    "BodyAborted",
    "ClaimLost",
    "ConfigurationError",
    "FailedBefore",
    "InProgress",
    "InvalidKey",
    "KeyMismatch",
    "KeyNotFound",
    "LetterNotFound",
    "NotCommitted",
    "NotInTask",
    "OutOfMemory",
    "PatternsError",
    "PublishFailed",
    "ResultNotKept",
    "StoreUnavailable",
    "TooManyCrashes",
    "UnsafeValue",
]


class PatternsError(Exception):
    """The root of the tree: catch it to catch everything of ours."""


class ConfigurationError(PatternsError, ValueError):
    """A pattern, a task or an app is put together wrongly.

    Raised when the pattern is built, when the task is created, or when the worker starts.
    """


class UnsafeValue(PatternsError, EncodeError):  # type: ignore[misc]
    """An argument would not arrive as it was sent. Nothing was published.

    Attributes:
        path: Where the value stands, for example ``args[1].items[3].price``.
        problem: What is wrong with it and what to do instead. The value itself is never shown.
        task: The task's name, where it is known.
    """

    def __init__(self, path: str, problem: str, task: str | None = None) -> None:
        self.path = path
        self.problem = problem
        self.task = task
        super().__init__(path, problem, task)

    def __str__(self) -> str:
        where = f"{self.task}(): " if self.task else ""
        return f"{where}{self.path} {self.problem}"


class InvalidKey(PatternsError, ValueError):
    """A key cannot be made from these arguments."""


class StoreUnavailable(PatternsError):
    """The store did not answer, or answered with an error of its own.

    Attributes:
        locked: True when it answers, and the record of the key is part of a transaction that has not ended.
    """

    def __init__(self, message: str = "", locked: bool = False) -> None:
        self.locked = locked
        super().__init__(message, locked)

    def __str__(self) -> str:
        return str(self.args[0])


class BackendUnavailable(PatternsError):
    """The app's result backend did not answer, which a replay with canaries asks for their outcome."""


class PublishFailed(PatternsError):
    """The broker did not confirm a message.

    Attributes:
        transient: True when trying later may help: the broker is away, full or slow. False when it never will: the
            queue does not exist, or the message cannot be encoded.
    """

    def __init__(self, message: str, transient: bool = False) -> None:
        self.transient = transient
        super().__init__(message, transient)

    def __str__(self) -> str:
        return str(self.args[0])


class KeyMismatch(PatternsError):
    """The key was used before, with other arguments."""


class InProgress(PatternsError):
    """Another run of the key did not end within ``wait_within``, or is not over and ``when_running="raise"`` was said."""


class ClaimLost(PatternsError):
    """The run does not know that its key is still its own.

    Raise it in a body when ``current_claim().still_mine()`` is False: it is no failure. The message waits for the run that
    has the key, and returns its result; where nobody has it, the task runs again. No attempt is used.
    """


class NotCommitted(PatternsError):
    """The body called ``commit_with()``, and ended before that transaction was committed, or after it was rolled back.

    Nothing was recorded. Commit it before the body returns.
    """


class ResultNotKept(PatternsError):
    """The key's work is done and is not run again, but its result was no JSON, or too large, and so was not stored."""


class FailedBefore(PatternsError):
    """The key's work failed before, with an error that ``remember`` names, and was not run again.

    It is never the first error itself: that one may hold more than its text, and a task that did not run is told apart.

    Attributes:
        task: The task's name.
        error: The first error's type, with its module, as a letter says it.
        message: The first error's text, of which at most 2,000 characters are kept.
    """

    def __init__(self, task: str, error: str, message: str) -> None:
        self.task = task
        self.error = error
        self.message = message
        super().__init__(task, error, message)

    def __str__(self) -> str:
        told = f"{self.error}: {self.message}" if self.message else self.error
        return f"{self.task}: the key's work failed before, and was not run again: {told}"


class AlreadyFailed(PatternsError):
    """This very attempt has failed before; the message was delivered once more afterwards."""


class AttemptTooLate(PatternsError):
    """The attempt was delivered after the retry's ``within`` had passed, so it was not run."""


class TooManyCrashes(PatternsError):
    """The task was started ``max_crashes`` times and never came to an end, so it was not run again."""


class OutOfMemory(PatternsError):
    """The body raised MemoryError.

    Celery ends the whole worker on a ``MemoryError``, and with late acknowledgement the next worker too. This error
    takes its place: the task fails, the worker lives.
    """


class BodyAborted(PatternsError):
    """The body raised something that is no Exception, such as ``asyncio.CancelledError``.

    Celery knows no end for it: the task would stay pending, and with the solo pool the worker would end.
    """


class NotInTask(PatternsError):
    """There is no running call, or no claim, to ask about."""


class KeyNotFound(PatternsError, LookupError):
    """The store knows no such key."""


class LetterNotFound(PatternsError, LookupError):
    """No such dead letter stands in the queue."""
