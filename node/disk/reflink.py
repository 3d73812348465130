"""FICLONERANGE: two files share blocks of the file system (XFS, btrfs)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from node.disk.files import CloneRange

REFUSALS = frozenset((errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EXDEV, errno.EINVAL))
"""What a file system answers that cannot share these blocks."""

_FICLONERANGE = 0x4020940D
_AT_ONCE_BYTES = 256 << 20
"""A call cannot be interrupted everywhere, and the process must die at its node's deadline."""

_PROBE_BYTES = 64 << 10


def clone_range(fd: int, source_fd: int, wanted: CloneRange) -> None:
    """Share one range. :raises OSError:"""
    done = 0
    while done < wanted.length:
        length = min(wanted.length - done, _AT_ONCE_BYTES)
        asked = struct.pack("qQQQ", source_fd, wanted.source + done, length, wanted.target + done)
        fcntl.ioctl(fd, _FICLONERANGE, asked)
        done += length


def clones_at(directory: str) -> bool:
    """Whether two files in ``directory`` can share blocks: done with files that have no names.

    Anything that goes wrong means no: whoever asks copies instead.
    """
    flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
    source = target = -1
    try:
        source = os.open(directory, flags, 0o600)
        target = os.open(directory, flags, 0o600)
        content = b"\x5a" * _PROBE_BYTES
        os.pwrite(source, content, 0)
        clone_range(target, source, CloneRange(0, _PROBE_BYTES, _PROBE_BYTES))
        return os.pread(target, _PROBE_BYTES, _PROBE_BYTES) == content
    except OSError:
        return False
    finally:
        for fd in (source, target):
            if fd >= 0:
                os.close(fd)
