"""Which letters were met, and what was done with them: kept where it does not grow in memory."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sqlite3

__all__ = ["Ledger"]

# A hundred thousand ids in a set are 10 MB, and here never more than this.
_CACHE_KIB = 1024


class Ledger:
    """A word for each id, in a file of SQLite's own that is gone when this object is.

    Raises:
        OSError: From each method, where no temporary file can be written.
    """

    def __init__(self) -> None:
        import sqlite3  # noqa: PLC0415 - a producer that only sends tasks does not pay for it

        self._trouble = sqlite3.OperationalError
        # Without a name SQLite keeps its cache in memory and the rest in a file that nobody else can open.
        self._file = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{_CACHE_KIB}"):
            self._file.execute(f"PRAGMA {setting}")
        self._do("CREATE TABLE met (id TEXT PRIMARY KEY, word TEXT NOT NULL) WITHOUT ROWID")

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def get(self, letter_id: str) -> str | None:
        """The word that was written for this id."""
        row = self._do("SELECT word FROM met WHERE id = ?", _key(letter_id)).fetchone()
        return None if row is None else str(row[0])

    def put(self, letter_id: str, word: str) -> None:
        """Write a word for this id, in the place of an earlier one."""
        self._do("INSERT OR REPLACE INTO met VALUES (?, ?)", _key(letter_id), word)

    def _do(self, statement: str, *values: Any) -> sqlite3.Cursor:
        try:
            return self._file.execute(statement, values)
        except self._trouble as error:
            raise OSError(
                errno.EIO,
                f"what was done with which letter cannot be written down ({error}); expected room in the folder for "
                "temporary files: set TMPDIR to one that has it",
            ) from error


def _key(letter_id: str) -> str:
    # An id written by hand may hold half a surrogate pair, which SQLite does not take.
    return letter_id.encode("utf-8", "backslashreplace").decode()
