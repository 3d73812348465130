"""Names of files in a replica's directory: made here, read here, nowhere else.

Every name but a manifest's carries the epoch that made it and 64 random bits, so that no name is
ever used twice (data-safety §2.6).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.randomness import Randomness

LAYERS = "layers"
INCOMING = "incoming"
RUNS = "runs"

_MANIFEST = re.compile(r"manifest\.(\d{12})\.json")
_EPOCH = re.compile(r"^incoming/e(\d+)(?:/|$)|\.e(\d+)\.[0-9a-f]{16}\.(?:qcow2|xml|bin|tmp)$")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SMALL_SUFFIX = {"definition": "xml", "nvram": "bin", "tpm": "bin"}


def manifest_name(number: int) -> str:
    """``manifest.<n %012d>.json``."""
    return f"manifest.{number:012d}.json"


def manifest_number(name: str) -> int:
    """The number in a manifest's name; 0 for any other name."""
    match = _MANIFEST.fullmatch(name)
    return int(match[1]) if match else 0


def epoch_of(relative: str) -> int | None:
    """The epoch a file's relative name carries; None for manifests and foreign names."""
    match = _EPOCH.search(relative)
    return int(match[1] or match[2]) if match else None


def plain(field: str, name: str) -> str:
    """``name`` if it can be one component of a path. :raises Problem: BAD_FIELD"""
    if not _PLAIN.fullmatch(name):
        raise Problem(
            Reason.BAD_FIELD,
            f"{name!r} cannot be part of a file name.",
            field=field,
            value=name,
            remedy="Use letters, digits, dot, dash and underscore.",
        )
    return name


@dataclass(frozen=True, slots=True)
class FileNames:
    """Makes fresh names for one epoch."""

    randomness: Randomness
    epoch: int

    def _tag(self) -> str:
        return f"e{self.epoch}.{self.randomness.token(8).hex()}"

    def manifest_draft(self) -> str:
        """What a manifest is called before it is linked."""
        return f"{INCOMING}/manifest.{self._tag()}.tmp"

    def layer(self, target: str, from_seq: int, to_seq: int) -> str:
        """A sealed layer."""
        return f"{LAYERS}/{plain('target', target)}.{from_seq}-{to_seq}.{self._tag()}.qcow2"

    def incoming(self) -> str:
        """The directory of this epoch's unfinished files."""
        return f"{INCOMING}/e{self.epoch}"

    def part(self) -> str:
        """An unfinished layer."""
        return f"{self.incoming()}/{self.randomness.token(8).hex()}.part"

    def small(self, kind: str, seq: int) -> str:
        """A definition, nvram or tpm file."""
        return f"{kind}.{seq}.{self._tag()}.{_SMALL_SUFFIX[kind]}"

    def overlay(self, operation_id: str, target: str) -> str:
        """The overlay of one disk of one run."""
        directory = f"{RUNS}/{plain('operation_id', operation_id)}"
        return f"{directory}/{plain('target', target)}.{self._tag()}.qcow2"
