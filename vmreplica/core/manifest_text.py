"""A manifest as text: one JSON object, written twice, a line each, each with its own digest.

A line's last member is ``blake3``: BLAKE3-128 (hex) of the line's text up to that member, closed
with a brace. One of the two copies may be damaged. Fields as in the interfaces; absent is null,
digests are lower hex, times RFC 3339 UTC with milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from vmreplica.core.cycle import Disk, digest
from vmreplica.core.manifest import (
    FORMAT,
    Definition,
    Draft,
    FileDigest,
    Head,
    Layer,
    Manifest,
    Pin,
    PointKind,
    PointState,
    RecoveryPoint,
    Run,
)
from vmreplica.core.problems import Problem, Reason

T = TypeVar("T")
Json = dict[str, Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SEAL = b',"blake3":"'
_SEAL_BYTES = len(_SEAL) + 32 + len(b'"}')


def render_manifest(manifest: Manifest) -> bytes:
    """The bytes of a manifest file."""
    return _line(manifest) * 2


def manifest_digest(manifest: Manifest) -> bytes:
    """What the next manifest names as ``previous``: BLAKE3-128 of the text, see the module."""
    return digest(_body(manifest))


def parse_manifest(data: bytes, number: int | None = None) -> Manifest:
    """The manifest in a file's bytes.

    :param number: the number in the file's name; another inside is refused.
    :raises Problem: BAD_MANIFEST: both copies are damaged, or a sound copy says what no manifest
        can say.
    """
    damage = "the file is empty"
    for line in data.split(b"\n")[:2]:
        body = _unsealed(line)
        if body is None:
            damage = "neither of the two copies agrees with its digest"
            continue
        return _manifest(_Reader(json.loads(body), ""), number)
    raise _refused("blake3", "", f"The manifest is damaged: {damage}.")


def time_text(time_ms: int) -> str | None:
    """RFC 3339 UTC with milliseconds; None for 0 (not known)."""
    if time_ms == 0:
        return None
    at = _EPOCH + timedelta(milliseconds=time_ms)
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"


def _line(manifest: Manifest) -> bytes:
    body = _body(manifest)
    return body[:-1] + _SEAL + digest(body).hex().encode() + b'"}\n'


def _unsealed(line: bytes) -> bytes | None:
    body, seal = line[:-_SEAL_BYTES] + b"}", line[-_SEAL_BYTES:]
    sound = seal == _SEAL + digest(body).hex().encode() + b'"}'
    return body if sound else None


def _body(manifest: Manifest) -> bytes:
    text = json.dumps(_manifest_json(manifest), ensure_ascii=True, separators=(",", ":"))
    return text.encode()


def _manifest_json(m: Manifest) -> Json:
    return {
        "format": FORMAT,
        "replica_id": m.replica_id,
        "vm_uuid": m.vm_uuid,
        "vm_name": m.vm_name,
        "domain_name": m.domain_name,
        "trust_group": m.trust_group,
        "primary_access_point": m.primary_access_point,
        "storage_location": m.storage_location,
        "policy": {k: list(v) if isinstance(v, tuple) else v for k, v in m.policy.items()},
        "epoch": m.epoch,
        "n": m.n,
        "previous": m.previous.hex(),
        "disks": [
            {"target": d.target, "size_bytes": d.size_bytes, "excluded": d.excluded}
            for d in m.disks
        ],
        "incarnation": m.incarnation,
        "head": {
            "seq": m.head.seq,
            "cycle_id": m.head.cycle_id.hex(),
            "digest": m.head.digest.hex(),
            "parent_digest": m.head.parent_digest.hex(),
            "time": time_text(m.head.time_ms),
            "definition": _definition_json(m.head.definition),
        },
        "recent_cycle_ids": [cycle_id.hex() for cycle_id in m.recent_cycle_ids],
        "layers": [_layer_json(layer) for layer in m.layers],
        "pins": [
            {
                "operation_id": pin.operation_id,
                "node": pin.node,
                "incarnation": pin.incarnation,
                "files": list(pin.files),
            }
            for pin in m.pins
        ],
        "runs": [
            {"operation_id": r.operation_id, "seq": r.seq, "overlays": dict(r.overlays)}
            for r in m.runs
        ],
        "origin": dict(m.origin),
        "tombstone": m.tombstone,
        "points": [_point_json(point) for point in m.points],
    }


def _layer_json(layer: Layer) -> Json:
    draft = layer.draft
    return {
        "file": layer.file,
        "target": layer.target,
        "from_seq": layer.from_seq,
        "to_seq": layer.to_seq,
        "size_bytes": layer.size_bytes,
        "bytes": layer.bytes,
        "draft": draft and {"cycle_id": draft.cycle_id.hex(), "frames": draft.frames},
    }


def _point_json(point: RecoveryPoint) -> Json:
    return {
        "seq": point.seq,
        "time": time_text(point.time_ms),
        "kind": point.kind.value,
        "state": point.state.value,
        "definition": _definition_json(point.definition),
        "chain": {target: list(files) for target, files in point.chain},
    }


def _definition_json(definition: Definition) -> Json:
    parts = {"xml": definition.xml, "nvram": definition.nvram, "tpm": definition.tpm}
    return {
        name: part and {"file": part.file, "blake3": part.blake3.hex()}
        for name, part in parts.items()
    }


def _refused(field: str, value: object, message: str) -> Problem:
    return Problem(
        Reason.BAD_MANIFEST,
        message,
        field=field,
        value=str(value)[:100],
        remedy="Keep the directory as it is and run `vmrctl store repair` on it.",
    )


class _Reader:
    """One JSON object; every refusal names the path of the field."""

    def __init__(self, data: object, path: str) -> None:
        if not isinstance(data, dict):
            raise _refused(path, data, f"The manifest's {path or 'text'} is not an object.")
        self._data: Json = data
        self._path = path

    def _at(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def value(self, name: str, kind: type[T]) -> T:
        """The member ``name``, which must be there and be a ``kind``."""
        if name not in self._data:
            raise _refused(self._at(name), "", f"The manifest has no {self._at(name)}.")
        value = self._data[name]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.refused(name, value, f"is not of type {kind.__name__}")
        return value

    def refused(self, name: str, value: object, why: str) -> Problem:
        """The refusal of one member."""
        return _refused(
            self._at(name), value, f"The manifest's {self._at(name)} {why}: {value!s:.100}."
        )

    def number(self, name: str) -> int:
        """An integer of at least 0."""
        value = self.value(name, int)
        if value < 0:
            raise self.refused(name, value, "is negative")
        return value

    def hexes(self, name: str) -> bytes:
        """Bytes written as hex."""
        return self._hex(name, self.value(name, str))

    def _hex(self, name: str, text: object) -> bytes:
        try:
            if isinstance(text, str):
                return bytes.fromhex(text)
        except ValueError:
            pass
        raise self.refused(name, text, "is not hexadecimal")

    def hex_list(self, name: str) -> tuple[bytes, ...]:
        """A list of bytes written as hex."""
        return tuple(self._hex(name, x) for x in self.value(name, list))

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts."""
        values = self.value(name, list)
        if not all(isinstance(x, str) for x in values):
            raise self.refused(name, values, "is not a list of texts")
        return tuple(values)

    def time_ms(self, name: str) -> int:
        """A time; null = 0."""
        if self._data.get(name, "") is None:
            return 0
        text = self.value(name, str)
        try:
            return (datetime.fromisoformat(text) - _EPOCH) // timedelta(milliseconds=1)
        except (ValueError, TypeError, OverflowError) as error:
            raise self.refused(name, text, "is not an RFC 3339 time") from error

    def one(self, name: str) -> _Reader:
        """An object inside this one."""
        return _Reader(self.value(name, dict), self._at(name))

    def maybe(self, name: str, make: Callable[[_Reader], T]) -> T | None:
        """An object or null."""
        if self._data.get(name, "") is None:
            return None
        return make(self.one(name))

    def many(self, name: str, make: Callable[[_Reader], T]) -> tuple[T, ...]:
        """A list of objects."""
        items = self.value(name, list)
        return tuple(make(_Reader(x, f"{self._at(name)}[{i}]")) for i, x in enumerate(items))

    def text_map(self, name: str) -> tuple[tuple[str, str], ...]:
        """An object of texts, in its order."""
        inner = self.one(name)
        return tuple((key, inner.value(key, str)) for key in inner.names())

    def list_map(self, name: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """An object of lists of texts, in its order."""
        inner = self.one(name)
        return tuple((key, inner.texts(key)) for key in inner.names())

    def names(self) -> tuple[str, ...]:
        """The members' names."""
        return tuple(self._data)

    def has(self, name: str) -> bool:
        """Whether the member is there."""
        return name in self._data


def _manifest(r: _Reader, number: int | None) -> Manifest:
    if r.value("format", str) != FORMAT:
        raise r.refused(
            "format", r.value("format", str), f"is not {FORMAT}, the only one known here"
        )
    n = r.number("n")
    if number is not None and n != number:
        raise r.refused("n", n, f"is not {number}, the number in the file's name")
    return Manifest(
        replica_id=r.value("replica_id", str),
        vm_uuid=r.value("vm_uuid", str),
        vm_name=r.value("vm_name", str),
        domain_name=r.value("domain_name", str),
        trust_group=r.value("trust_group", str),
        primary_access_point=r.value("primary_access_point", str),
        storage_location=r.value("storage_location", str),
        policy=_policy(r.one("policy")),
        epoch=r.number("epoch"),
        n=n,
        incarnation=r.value("incarnation", str),
        disks=r.many("disks", _disk),
        previous=r.hexes("previous"),
        head=_head(r.one("head")),
        recent_cycle_ids=r.hex_list("recent_cycle_ids"),
        layers=r.many("layers", _layer),
        pins=r.many("pins", _pin),
        runs=r.many("runs", _run),
        origin=r.text_map("origin"),
        tombstone=r.value("tombstone", bool),
        points=r.many("points", _point),
    )


def _policy(r: _Reader) -> dict[str, int | str | tuple[str, ...]]:
    policy: dict[str, int | str | tuple[str, ...]] = {}
    for name in r.names():
        match r.value(name, object):
            case str() | int() as value:
                policy[name] = value
            case list():
                policy[name] = r.texts(name)
            case value:
                raise r.refused(name, value, "is neither number, text nor list")
    return policy


def _disk(r: _Reader) -> Disk:
    return Disk(r.value("target", str), r.number("size_bytes"), r.value("excluded", bool))


def _head(r: _Reader) -> Head:
    return Head(
        seq=r.number("seq"),
        cycle_id=r.hexes("cycle_id"),
        digest=r.hexes("digest"),
        parent_digest=r.hexes("parent_digest") if r.has("parent_digest") else Head().digest,
        time_ms=r.time_ms("time"),
        definition=_definition(r.one("definition")),
    )


def _definition(r: _Reader) -> Definition:
    def small(inner: _Reader) -> FileDigest:
        return FileDigest(inner.value("file", str), inner.hexes("blake3"))

    return Definition(
        xml=r.maybe("xml", small), nvram=r.maybe("nvram", small), tpm=r.maybe("tpm", small)
    )


def _layer(r: _Reader) -> Layer:
    def draft(inner: _Reader) -> Draft:
        return Draft(cycle_id=inner.hexes("cycle_id"), frames=inner.number("frames"))

    return Layer(
        file=r.value("file", str),
        target=r.value("target", str),
        from_seq=r.number("from_seq"),
        to_seq=r.number("to_seq"),
        size_bytes=r.number("size_bytes"),
        bytes=r.number("bytes"),
        draft=r.maybe("draft", draft),
    )


def _pin(r: _Reader) -> Pin:
    return Pin(
        operation_id=r.value("operation_id", str),
        node=r.value("node", str),
        incarnation=r.value("incarnation", str),
        files=r.texts("files"),
    )


def _run(r: _Reader) -> Run:
    return Run(
        operation_id=r.value("operation_id", str),
        seq=r.number("seq"),
        overlays=r.text_map("overlays"),
    )


def _point(r: _Reader) -> RecoveryPoint:
    kind, state = r.value("kind", str), r.value("state", str)
    if kind not in tuple(PointKind):
        raise r.refused("kind", kind, f"is none of {', '.join(PointKind)}")
    if state not in tuple(PointState):
        raise r.refused("state", state, f"is none of {', '.join(PointState)}")
    return RecoveryPoint(
        seq=r.number("seq"),
        time_ms=r.time_ms("time"),
        kind=PointKind(kind),
        state=PointState(state),
        definition=_definition(r.one("definition")),
        chain=r.list_map("chain"),
    )
