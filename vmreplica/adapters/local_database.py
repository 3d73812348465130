"""The standalone node's store as tables: keys, leases and history in one SQLite file.

Synchronous; used by one thread at a time. Every write is one SQLite transaction, on disk when the
method returns (WAL, synchronous=FULL). The file is held exclusively: a second process is refused.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from vmreplica.adapters.local_guards import check_branch, check_compares, holds
from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.cluster_store import (
    Compacted,
    Compare,
    Delete,
    Get,
    KeyValue,
    Operation,
    OutcomeUnknown,
    Put,
    RangeResult,
    StoreRefused,
    StoreUnavailable,
    TransactionResult,
    WatchBatch,
    WatchEvent,
)

T = TypeVar("T")

HISTORY_KEPT = 10_000
HISTORY_SLACK = 1_000
WATCH_PAGE = 500
_COLUMNS = "key, value, create_revision, mod_revision, version, lease_id"
_INSERT_HISTORY = f"INSERT INTO history ({_COLUMNS}, deleted, number) VALUES (?,?,?,?,?,?,?,?)"  # noqa: S608
# The columns of a primary key come first: quick_check of SQLite 3.40 reports damage otherwise.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS live (
  key TEXT PRIMARY KEY, value TEXT NOT NULL, create_revision INTEGER NOT NULL,
  mod_revision INTEGER NOT NULL, version INTEGER NOT NULL, lease_id INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS live_lease ON live (lease_id) WHERE lease_id != 0;
CREATE TABLE IF NOT EXISTS history (
  mod_revision INTEGER NOT NULL, number INTEGER NOT NULL, deleted INTEGER NOT NULL,
  key TEXT NOT NULL, value TEXT NOT NULL, create_revision INTEGER NOT NULL,
  version INTEGER NOT NULL, lease_id INTEGER NOT NULL,
  PRIMARY KEY (mod_revision, number)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS history_key ON history (key, mod_revision);
CREATE TABLE IF NOT EXISTS lease (lease_id INTEGER PRIMARY KEY, ttl_ms INTEGER NOT NULL);
INSERT OR IGNORE INTO meta VALUES
  ('format', 1), ('revision', 1), ('compact_revision', 0), ('next_lease', 1);
"""


class LocalDatabase:
    """One open file.

    :raises Problem: STORE_UNAVAILABLE: damaged, in use, or not accessible; names the file.
    """

    def __init__(self, path: Path, *, history_kept: int = HISTORY_KEPT) -> None:
        self._path = path
        self._history_kept = history_kept
        try:
            path.touch(mode=0o600, exist_ok=True)
            self._db = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False, timeout=1.0
            )
        except (OSError, sqlite3.Error) as error:
            raise self._problem(f"cannot be opened: {error}") from error
        try:
            self._prepare()
        except sqlite3.OperationalError as error:
            self._db.close()
            if "locked" in str(error):
                raise self._problem("is in use by another process", in_use=True) from error
            raise self._problem(f"cannot be used: {error}") from error
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise self._problem(f"is damaged: {error}") from error

    def _prepare(self) -> None:
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}COMMIT;")
        (verdict,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        self._load()

    def _load(self) -> None:
        values = dict(self._db.execute("SELECT name, value FROM meta").fetchall())
        self.revision: int = values["revision"]
        self.compact_revision: int = values["compact_revision"]

    def _problem(self, what: str, *, in_use: bool = False) -> Problem:
        remedy = (
            "Stop the other process that uses it."
            if in_use
            else "Restore the file from a backup, or move it away and start again: replicas are "
            "then rebuilt from their folders with `vmrctl store adopt`."
        )
        return Problem(
            Reason.STORE_UNAVAILABLE,
            f"The node's store {self._path} {what}.",
            field="store.path",
            value=str(self._path),
            remedy=remedy,
            retryable=False,
        )

    # ---- reading ----

    def get(self, key: str) -> KeyValue | None:
        """One key. :raises StoreUnavailable:"""
        return self._reading(lambda: self._live(key))

    def _live(self, key: str) -> KeyValue | None:
        row = self._db.execute(f"SELECT {_COLUMNS} FROM live WHERE key=?", (key,)).fetchone()  # noqa: S608
        return KeyValue(*row) if row else None

    def range(
        self,
        prefix: str,
        limit: int,
        after_key: str,
        revision: int,
        min_mod_revision: int,
        count_only: bool,
    ) -> RangeResult:
        """Keys under a prefix. :raises StoreUnavailable, StoreRefused, Compacted:"""
        if revision > self.revision:
            raise StoreRefused("required revision is a future revision")
        if 0 < revision < self.compact_revision:
            raise Compacted(self.compact_revision)
        at = revision or self.revision
        table, values = _table_at(at, self.revision)
        where = "key > ? AND substr(key, 1, ?) = ?"
        values = [*values, after_key, len(prefix), prefix]
        if not after_key or after_key < prefix:
            where = "key >= ? AND substr(key, 1, ?) = ?"
            values[-3] = prefix
        end = _behind(prefix)
        if end:
            where += " AND key < ?"
            values.append(end)

        def read() -> RangeResult:
            (count,) = self._db.execute(
                f"SELECT count(*) FROM {table} WHERE {where}",  # noqa: S608 - our own text
                values,
            ).fetchone()
            if count_only:
                return RangeResult(at, (), count)
            rows = self._db.execute(
                f"SELECT {_COLUMNS} FROM {table} WHERE {where} AND mod_revision >= ?"  # noqa: S608
                " ORDER BY key LIMIT ?",
                [*values, min_mod_revision, limit + 1 if limit else -1],
            ).fetchall()
            more = bool(limit) and len(rows) > limit
            items = tuple(KeyValue(*row) for row in (rows[:limit] if limit else rows))
            return RangeResult(at, items, count, more)

        return self._reading(read)

    def changes(self, prefix: str, from_revision: int) -> list[WatchBatch]:
        """Whole revisions from one on, oldest first; not all at once, so ask again.

        :raises Compacted, StoreUnavailable:
        """
        if from_revision < self.compact_revision:
            raise Compacted(self.compact_revision)

        def read() -> list[WatchBatch]:
            rows = self._db.execute(
                f"SELECT {_COLUMNS}, deleted FROM history"  # noqa: S608 - our own text
                " WHERE mod_revision >= ? AND substr(key, 1, ?) = ?"
                " AND mod_revision IN (SELECT DISTINCT mod_revision FROM history"
                "   WHERE mod_revision >= ? AND substr(key, 1, ?) = ?"
                "   ORDER BY mod_revision LIMIT ?)"
                " ORDER BY mod_revision, number",
                (from_revision, len(prefix), prefix) * 2 + (WATCH_PAGE,),
            ).fetchall()
            by_revision: dict[int, list[WatchEvent]] = {}
            for *columns, deleted in rows:
                kv = KeyValue(*columns)
                by_revision.setdefault(kv.mod_revision, []).append(WatchEvent(kv, bool(deleted)))
            return [WatchBatch(revision, tuple(e)) for revision, e in by_revision.items()]

        return self._reading(read)

    def leases(self) -> list[tuple[int, int]]:
        """All leases as (id, TTL in ms)."""
        return self._reading(
            lambda: self._db.execute("SELECT lease_id, ttl_ms FROM lease").fetchall()
        )

    def _reading(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{self._path}: {error}") from error

    # ---- writing ----

    def transaction(
        self,
        compares: Sequence[Compare],
        success: Sequence[Operation],
        failure: Sequence[Operation],
    ) -> TransactionResult:
        """:raises StoreRefused, StoreUnavailable, OutcomeUnknown:"""
        check_compares(compares)
        check_branch(success)
        check_branch(failure)

        def write() -> tuple[TransactionResult, int]:
            succeeded = all(holds(c, self._live(c.key)) for c in compares)
            operations = success if succeeded else failure
            reads, number = self._perform(operations, self.revision + 1)
            revision = self.revision + 1 if number else self.revision
            return TransactionResult(succeeded, revision, tuple(reads)), number

        return self._writing(write)

    def _perform(
        self, operations: Sequence[Operation], revision: int
    ) -> tuple[list[KeyValue | None], int]:
        reads: list[KeyValue | None] = []
        number = 0
        for operation in operations:
            match operation:
                case Get(key=key):
                    reads.append(self._live(key))
                case Put():
                    self._put(operation, revision, number)
                    number += 1
                case Delete(key=key):
                    if self._live(key) is not None:
                        self._delete(key, revision, number)
                        number += 1
        return reads, number

    def _put(self, put: Put, revision: int, number: int) -> None:
        if put.lease_id and not self._has_lease(put.lease_id):
            raise StoreRefused("requested lease not found")
        old = self._live(put.key)
        row = (
            put.key,
            put.value,
            old.create_revision if old else revision,
            revision,
            old.version + 1 if old else 1,
            put.lease_id,
        )
        self._db.execute("INSERT OR REPLACE INTO live VALUES (?,?,?,?,?,?)", row)
        self._db.execute(_INSERT_HISTORY, (*row, 0, number))

    def _delete(self, key: str, revision: int, number: int) -> None:
        self._db.execute("DELETE FROM live WHERE key=?", (key,))
        self._db.execute(_INSERT_HISTORY, (key, "", 0, revision, 0, 0, 1, number))

    def _has_lease(self, lease_id: int) -> bool:
        row = self._db.execute("SELECT 1 FROM lease WHERE lease_id=?", (lease_id,)).fetchone()
        return row is not None

    def grant(self, ttl_ms: int) -> int:
        """A new lease id, never used before in this file. :raises StoreUnavailable:"""

        def write() -> tuple[int, int]:
            (lease_id,) = self._db.execute(
                "UPDATE meta SET value=value+1 WHERE name='next_lease' RETURNING value-1"
            ).fetchone()
            self._db.execute("INSERT INTO lease VALUES (?,?)", (lease_id, ttl_ms))
            return int(lease_id), 0

        return self._writing(write)

    def end_leases(self, lease_ids: Sequence[int]) -> None:
        """End leases: each deletes its keys at one revision; unknown ones are no error."""
        for lease_id in lease_ids:
            self._writing(lambda lease_id=lease_id: self._end_lease(lease_id))  # type: ignore[misc]

    def _end_lease(self, lease_id: int) -> tuple[None, int]:
        rows = self._db.execute(
            "SELECT key FROM live WHERE lease_id=? AND lease_id!=0 ORDER BY key", (lease_id,)
        ).fetchall()
        for number, (key,) in enumerate(rows):
            self._delete(key, self.revision + 1, number)
        self._db.execute("DELETE FROM lease WHERE lease_id=?", (lease_id,))
        return None, len(rows)

    def compact(self, revision: int) -> None:
        """Forget history below ``revision``. :raises StoreRefused, Compacted:"""
        if revision > self.revision:
            raise StoreRefused("required revision is a future revision")
        if revision <= self.compact_revision:
            raise Compacted(self.compact_revision)

        def write() -> tuple[None, int]:
            # The newest state of each key at the revision stays: it can still be read there.
            self._db.execute(
                "DELETE FROM history WHERE mod_revision < ? AND (deleted OR EXISTS ("
                " SELECT 1 FROM history later WHERE later.key = history.key"
                " AND later.mod_revision > history.mod_revision AND later.mod_revision <= ?))",
                (revision, revision),
            )
            self._db.execute("UPDATE meta SET value=? WHERE name='compact_revision'", (revision,))
            return None, 0

        self._writing(write)
        self.compact_revision = revision

    def compact_if_long(self) -> bool:
        """Keep the history bounded. True when something was forgotten."""
        oldest = self.revision - self._history_kept
        if oldest < self.compact_revision + max(1, min(HISTORY_SLACK, self._history_kept)):
            return False
        self.compact(oldest)
        return True

    def _writing(self, write: Callable[[], tuple[T, int]]) -> T:
        """Run ``write`` in a transaction; it answers its result and how many keys it changed."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            result, changed = write()
            if changed:
                self._db.execute("UPDATE meta SET value=value+1 WHERE name='revision'")
        except StoreRefused:
            self._rollback()
            raise
        except sqlite3.Error as error:
            self._rollback()
            raise StoreUnavailable(f"{self._path}: {error}") from error
        try:
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            # Whether the log reached the disk is not known, but the next read tells the truth.
            self._rollback()
            self._reading(self._load)
            raise OutcomeUnknown(f"{self._path}: {error}") from error
        if changed:
            self.revision += 1
        return result

    def _rollback(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._db.close()


def _table_at(at: int, newest: int) -> tuple[str, list[int | str]]:
    """The table, or subquery, that shows the keys at a revision; and its parameters."""
    if at == newest:
        return "live", []
    newest_before = "SELECT max(mod_revision) FROM history h WHERE h.key = history.key"
    return (
        f"(SELECT {_COLUMNS} FROM history WHERE NOT deleted AND mod_revision ="  # noqa: S608
        f" ({newest_before} AND h.mod_revision <= ?))"
    ), [at]


def _behind(prefix: str) -> str:
    """A text behind all that begin with ``prefix``, or "" where there is none: an index bound."""
    if not prefix or ord(prefix[-1]) >= 0xD7FF:
        return ""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
