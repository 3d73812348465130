"""Files on a real file system. Blocking calls run in threads of their own.

No component of a path below the storage location may be a symbolic link: every directory on the
way is opened by itself with O_NOFOLLOW, and the last step is relative to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import functools
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from node.disk.files import CloneRange, OpenFile, Piece
from node.disk.reflink import REFUSALS, clone_range, clones_at
from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.replica_store import Space, StorageFailed

P = ParamSpec("P")
T = TypeVar("T")

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_PARTS_AT_ONCE = 512
_F_OFD_SETLK = 37


def storage_failed(error: OSError, what: str) -> StorageFailed:
    """The port's error for one of the operating system."""
    return StorageFailed(f"{what}: {error.strerror}", no_space=error.errno in _NO_SPACE)


class _Threads:
    """Runs blocking calls in a pool, or at once where the process has nothing else to do."""

    def __init__(self, threads: int, inline: bool) -> None:
        self._pool = None if inline else ThreadPoolExecutor(threads, "storage")

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._pool is None:
            return work(*args, **kwargs)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, functools.partial(work, *args, **kwargs))


@contextlib.contextmanager
def _errors(what: str, *passing: type[OSError]) -> Iterator[None]:
    """Only ``passing`` stays an error of the operating system: the caller decides by it."""
    try:
        yield
    except OSError as error:
        if isinstance(error, passing):
            raise
        if error.errno == errno.ELOOP:
            raise Problem(
                Reason.BAD_FIELD,
                f"{what} goes through a symbolic link.",
                field="path",
                value=what,
                remedy="Replace the link inside the storage location by a directory or file.",
            ) from error
        raise storage_failed(error, what) from error


class OsFile:
    """One open file descriptor; implements OpenFile.

    One operation at a time: a cancelled caller leaves its thread at work, and the descriptor's
    number must not go to another file meanwhile.
    """

    def __init__(self, threads: _Threads, fd: int, path: str) -> None:
        self._threads = threads
        self._fd = fd
        self._path = path
        self._busy = threading.Lock()

    def __del__(self) -> None:
        # Opened for a caller who was cancelled meanwhile and never got the handle.
        if self._fd >= 0:
            os.close(self._fd)

    @contextlib.contextmanager
    def _use(self) -> Iterator[int]:
        with self._busy, _errors(self._path):
            if self._fd < 0:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            yield self._fd

    async def pwrite(self, pieces: Sequence[Piece]) -> None:
        """Write all pieces; neighbours go down in one call."""
        await self._threads.run(self._pwrite, pieces)

    def _pwrite(self, pieces: Sequence[Piece]) -> None:
        with self._use() as fd:
            run: list[memoryview] = []
            start = end = 0
            for offset, data in pieces:
                if run and (offset != end or len(run) == _PARTS_AT_ONCE):
                    _pwrite_run(fd, run, start)
                    run = []
                if not run:
                    start = end = offset
                run.append(memoryview(data))
                end += len(data)
            _pwrite_run(fd, run, start)

    async def pread(self, length: int, offset: int) -> bytes:
        """Read, going on after short reads."""
        return await self._threads.run(self._pread, length, offset)

    def _pread(self, length: int, offset: int) -> bytes:
        with self._use() as fd:
            data = os.pread(fd, length, offset)
            if len(data) in (0, length):
                return data
            pieces = [data]
            done = len(data)
            while done < length and (data := os.pread(fd, length - done, offset + done)):
                pieces.append(data)
                done += len(data)
            return b"".join(pieces)

    async def clone(self, source: OpenFile, ranges: Sequence[CloneRange]) -> bool:
        """FICLONERANGE."""
        assert isinstance(source, OsFile)
        return await self._threads.run(self._clone, source, ranges)

    def _clone(self, source: OsFile, ranges: Sequence[CloneRange]) -> bool:
        with source._use() as source_fd, self._use() as fd:
            try:
                for one in ranges:
                    clone_range(fd, source_fd, one)
            except OSError as error:
                if error.errno not in REFUSALS:
                    raise
                return False
        return True

    async def length(self) -> int:
        """Bytes in the file."""
        return await self._threads.run(self._length)

    def _length(self) -> int:
        with self._use() as fd:
            return os.fstat(fd).st_size

    async def truncate(self, length: int) -> None:
        """Set the length."""
        await self._threads.run(self._truncate, length)

    def _truncate(self, length: int) -> None:
        with self._use() as fd:
            os.ftruncate(fd, length)

    async def fdatasync(self) -> None:
        """Data and length."""
        await self._threads.run(self._fdatasync)

    def _fdatasync(self) -> None:
        with self._use() as fd:
            os.fdatasync(fd)

    async def try_lock(self, offset: int, length: int) -> bool:
        """An OFD lock: it belongs to this open file, not to the process."""
        return await self._threads.run(self._try_lock, offset, length)

    def _try_lock(self, offset: int, length: int) -> bool:
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, offset, length, 0)
        with self._use() as fd:
            try:
                fcntl.fcntl(fd, _F_OFD_SETLK, lock)
            except (BlockingIOError, PermissionError):
                return False
            return True

    async def close(self) -> None:
        """Close once, behind whatever still runs."""
        if self._fd >= 0:
            await self._threads.run(self._close)

    def _close(self) -> None:
        with self._busy, _errors(self._path):
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)


def _pwrite_run(fd: int, parts: list[memoryview], offset: int) -> None:
    left = [part for part in parts if len(part)]
    while left:
        written = os.pwritev(fd, left, offset)
        offset += written
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if written:
            left[0] = left[0][written:]


class OsFiles:
    """Implements Files.

    :param locations: absolute storage locations; paths outside them are refused.
    :param threads: size of the pool of blocking calls.
    :param inline: no pool; for a process that does nothing else.
    """

    def __init__(self, locations: Sequence[str], *, threads: int = 8, inline: bool = False) -> None:
        self._locations = tuple(sorted((x.rstrip("/") for x in locations), key=len, reverse=True))
        self._threads = _Threads(threads, inline)
        self._clones: dict[str, bool] = {}

    def _split(self, path: str) -> tuple[str, list[str]]:
        for location in self._locations:
            if path == location:
                return location, []
            if path.startswith(location + "/"):
                parts = path[len(location) + 1 :].split("/")
                if all(part not in ("", ".", "..") and "\0" not in part for part in parts):
                    return location, parts
        raise Problem(
            Reason.BAD_FIELD,
            "The path lies outside the configured storage locations.",
            field="path",
            value=path,
            remedy="Use a directory below one of the storage_locations of this node.",
        )

    def _directory(self, location: str, parts: Sequence[str]) -> int:
        fd = os.open(location, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in parts:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                below = os.open(part, flags, dir_fd=fd)
            except NotADirectoryError:
                link = stat.S_ISLNK(os.stat(part, dir_fd=fd, follow_symlinks=False).st_mode)
                if link:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), part) from None
                raise
            finally:
                os.close(fd)
            fd = below
        return fd

    @contextlib.contextmanager
    def _parent(self, path: str, *passing: type[OSError]) -> Iterator[tuple[int, str]]:
        location, parts = self._split(path)
        if not parts:
            raise FileExistsError(errno.EEXIST, "is a storage location", path)
        with _errors(path, *passing):
            fd = self._directory(location, parts[:-1])
            try:
                yield fd, parts[-1]
            finally:
                os.close(fd)

    @contextlib.contextmanager
    def _opened(self, path: str, *passing: type[OSError]) -> Iterator[int]:
        location, parts = self._split(path)
        with _errors(path, *passing):
            fd = self._directory(location, parts)
            try:
                yield fd
            finally:
                os.close(fd)

    async def make_directory(self, path: str) -> bool:
        """mkdir 0700."""
        return await self._threads.run(self._make_directory, path)

    def _make_directory(self, path: str) -> bool:
        try:
            with self._parent(path, FileExistsError) as (fd, name):
                os.mkdir(name, 0o700, dir_fd=fd)
        except FileExistsError:
            with self._opened(path):
                return False
        return True

    async def list_directory(self, path: str) -> list[str]:
        """A directory opened anew lists what the server holds now."""
        return await self._threads.run(self._list_directory, path)

    def _list_directory(self, path: str) -> list[str]:
        with self._opened(path, FileNotFoundError, NotADirectoryError) as fd:
            return os.listdir(fd)  # noqa: PTH208 - pathlib takes no descriptor

    async def sync_directory(self, path: str) -> None:
        """fsync of the directory."""
        await self._threads.run(self._sync_directory, path)

    def _sync_directory(self, path: str) -> None:
        with self._opened(path) as fd:
            os.fsync(fd)

    async def create(self, path: str) -> OpenFile:
        """O_CREAT | O_EXCL."""
        return await self._threads.run(self._created, path)

    def _created(self, path: str) -> OsFile:
        return OsFile(self._threads, self._create(path), path)

    def _create(self, path: str) -> int:
        with self._parent(path) as (fd, name):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            return os.open(name, flags, 0o600, dir_fd=fd)

    async def open(self, path: str, *, write: bool = False) -> OpenFile:
        """Existing files only."""
        return await self._threads.run(self._opened_file, path, write)

    def _opened_file(self, path: str, write: bool) -> OsFile:
        return OsFile(self._threads, self._open(path, write), path)

    def _open(self, path: str, write: bool) -> int:
        with self._parent(path, FileNotFoundError) as (fd, name):
            access = os.O_RDWR if write else os.O_RDONLY
            # O_NONBLOCK: a FIFO planted under the name must not hold the thread for ever.
            flags = access | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            return os.open(name, flags, dir_fd=fd)

    async def read(self, path: str) -> bytes:
        """The whole file in one go."""
        return await self._threads.run(self._read, path)

    def _read(self, path: str) -> bytes:
        fd = self._open(path, False)
        try:
            with _errors(path):
                pieces = []
                while data := os.read(fd, 1 << 20):
                    pieces.append(data)
                return b"".join(pieces)
        finally:
            os.close(fd)

    async def write_new(self, path: str, data: bytes) -> None:
        """One thread for the three steps."""
        await self._threads.run(self._write_new, path, data)

    def _write_new(self, path: str, data: bytes) -> None:
        fd = self._create(path)
        try:
            with _errors(path):
                left = memoryview(data)
                while left:
                    left = left[os.write(fd, left) :]
                os.fsync(fd)
        finally:
            os.close(fd)

    async def link(self, source: str, target: str) -> None:
        """link(2) without following."""
        await self._threads.run(self._link, source, target)

    def _link(self, source: str, target: str) -> None:
        there = FileExistsError
        with (
            self._parent(source, there) as (from_fd, old),
            self._parent(target, there) as (to_fd, new),
        ):
            os.link(old, new, src_dir_fd=from_fd, dst_dir_fd=to_fd, follow_symlinks=False)

    async def link_count(self, path: str) -> int:
        """st_nlink."""
        return await self._threads.run(self._link_count, path)

    def _link_count(self, path: str) -> int:
        with self._parent(path) as (fd, name):
            return os.stat(name, dir_fd=fd, follow_symlinks=False).st_nlink

    async def rename(self, source: str, target: str) -> None:
        """rename(2)."""
        await self._threads.run(self._rename, source, target)

    def _rename(self, source: str, target: str) -> None:
        with self._parent(source) as (from_fd, old), self._parent(target) as (to_fd, new):
            os.rename(old, new, src_dir_fd=from_fd, dst_dir_fd=to_fd)

    async def unlink(self, path: str) -> bool:
        """unlink(2); gone already is no error."""
        return await self._threads.run(self._unlink, path)

    def _unlink(self, path: str) -> bool:
        try:
            with self._parent(path, FileNotFoundError) as (fd, name):
                os.unlink(name, dir_fd=fd)
        except FileNotFoundError:
            return False
        return True

    async def remove_directory(self, path: str) -> bool:
        """rmdir(2)."""
        return await self._threads.run(self._remove_directory, path)

    def _remove_directory(self, path: str) -> bool:
        try:
            with self._parent(path, FileNotFoundError) as (fd, name):
                os.rmdir(name, dir_fd=fd)
        except FileNotFoundError:
            return False
        except StorageFailed as failure:
            cause = failure.__cause__
            if isinstance(cause, OSError) and cause.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        return True

    async def set_read_only(self, path: str) -> None:
        """chmod 0444."""
        await self._threads.run(self._set_read_only, path)

    def _set_read_only(self, path: str) -> None:
        with self._parent(path) as (fd, name):
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            try:
                os.fchmod(file, 0o444)
            finally:
                os.close(file)

    async def space(self, path: str) -> Space:
        """statvfs; free = what an unprivileged process may still take."""
        with _errors(path):
            found = await self._threads.run(os.statvfs, path)
        return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)

    async def can_clone(self, path: str) -> bool:
        """Tried with a file that has no name and is gone again."""
        location, _ = self._split(path)
        if location not in self._clones:
            self._clones[location] = await self._threads.run(clones_at, location)
        return self._clones[location]

    async def offload(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """In the pool of blocking calls."""
        return await self._threads.run(work, *args, **kwargs)
