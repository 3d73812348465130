"""A manifest's text: nothing is lost in it, and nothing damaged or foreign is taken for one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmreplica.core.cycle import Disk, digest
from vmreplica.core.manifest import (
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
from vmreplica.core.manifest_text import manifest_digest, parse_manifest, render_manifest
from vmreplica.core.problems import Problem, Reason

texts = st.text(max_size=12)
names = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=8)
digests = st.binary(min_size=16, max_size=16)
numbers = st.integers(0, 2**63)
times = st.integers(0, 250_000_000_000_000)
file_digests = st.none() | st.builds(FileDigest, texts, digests)
definitions = st.builds(Definition, xml=file_digests, nvram=file_digests, tpm=file_digests)


def pairs(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(names, values, max_size=3).map(lambda x: tuple(x.items()))


def tuples(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(values, max_size=3).map(tuple)


manifests = st.builds(
    Manifest,
    replica_id=texts,
    vm_uuid=texts,
    vm_name=texts,
    domain_name=texts,
    trust_group=texts,
    primary_access_point=texts,
    storage_location=texts,
    policy=st.dictionaries(names, numbers | texts | tuples(texts), max_size=4),
    epoch=numbers,
    n=numbers,
    incarnation=texts,
    disks=tuples(st.builds(Disk, texts, numbers, st.booleans())),
    previous=digests,
    head=st.builds(
        Head,
        seq=numbers,
        cycle_id=st.just(b"") | digests,
        digest=digests,
        parent_digest=digests,
        time_ms=times,
        definition=definitions,
    ),
    recent_cycle_ids=tuples(digests),
    layers=tuples(
        st.builds(
            Layer,
            file=texts,
            target=texts,
            from_seq=numbers,
            to_seq=numbers,
            size_bytes=numbers,
            bytes=numbers,
            draft=st.none() | st.builds(Draft, cycle_id=digests, frames=numbers),
        )
    ),
    pins=tuples(
        st.builds(Pin, operation_id=texts, node=texts, incarnation=texts, files=tuples(texts))
    ),
    runs=tuples(st.builds(Run, operation_id=texts, seq=numbers, overlays=pairs(texts))),
    origin=pairs(texts),
    tombstone=st.booleans(),
    points=tuples(
        st.builds(
            RecoveryPoint,
            seq=numbers,
            time_ms=times,
            kind=st.sampled_from(PointKind),
            state=st.sampled_from(PointState),
            definition=definitions,
            chain=pairs(tuples(texts)),
        )
    ),
)
EXAMPLE = Manifest(
    replica_id="5f0c",
    vm_uuid="u",
    vm_name="web",
    domain_name="web",
    trust_group="g",
    primary_access_point="p.example:7443",
    storage_location="/store",
    policy={"frequency_ms": 5_000, "disks": ("vda",)},
    epoch=7,
    n=12,
    incarnation="inc",
    disks=(Disk("vda", 1 << 30),),
    head=Head(seq=3, cycle_id=b"\x01" * 16, digest=b"\x02" * 16, time_ms=1_700_000_000_123),
    layers=(
        Layer(
            file="layers/vda.1-3.e7.0123456789abcdef.qcow2",
            target="vda",
            from_seq=1,
            to_seq=3,
            size_bytes=1 << 30,
            bytes=99,
            draft=Draft(cycle_id=b"\x03" * 16, frames=5),
        ),
    ),
    runs=(Run(operation_id="op", seq=3, overlays=(("vda", "runs/op/vda.e7.0.qcow2"),)),),
    points=(RecoveryPoint(seq=3, time_ms=1_700_000_000_123, chain=(("vda", ("a", "b")),)),),
)


@given(manifests)
@settings(max_examples=150, deadline=None)
def test_what_is_written_is_read(manifest: Manifest) -> None:
    data = render_manifest(manifest)
    assert parse_manifest(data) == manifest
    assert parse_manifest(data, manifest.n) == manifest
    first, second, rest = data.split(b"\n")
    assert first == second and rest == b""


def test_the_shape_is_the_published_one() -> None:
    line = render_manifest(EXAMPLE).split(b"\n")[0]
    shown = json.loads(line)
    assert next(iter(shown)) == "format" and shown["format"] == "vmreplica/1"
    assert list(shown)[-1] == "blake3"
    assert set(shown) == {
        *("format", "replica_id", "vm_uuid", "vm_name", "domain_name", "trust_group"),
        *("primary_access_point", "storage_location", "policy", "epoch", "n", "previous"),
        *("disks", "incarnation", "head", "recent_cycle_ids", "layers", "pins", "runs"),
        *("origin", "tombstone", "points", "blake3"),
    }
    assert shown["head"]["time"] == "2023-11-14T22:13:20.123Z"
    assert shown["head"]["definition"] == {"xml": None, "nvram": None, "tpm": None}
    assert shown["layers"][0]["draft"] == {"cycle_id": "03" * 16, "frames": 5}
    assert shown["runs"][0]["overlays"] == {"vda": "runs/op/vda.e7.0.qcow2"}
    assert shown["points"][0]["chain"] == {"vda": ["a", "b"]}
    assert shown["policy"] == {"frequency_ms": 5_000, "disks": ["vda"]}
    body = line[: line.rindex(b',"blake3":')] + b"}"
    assert shown["blake3"] == digest(body).hex() == manifest_digest(EXAMPLE).hex()


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_one_damaged_copy_does_no_harm_and_two_are_refused(data: st.DataObject) -> None:
    whole = render_manifest(EXAMPLE)
    half = len(whole) // 2
    places = [data.draw(st.integers(start, start + half - 2)) for start in (0, half)]
    for hit in ([places[0]], [places[1]], places):
        damaged = bytearray(whole)
        for place in hit:
            damaged[place] ^= 1 << data.draw(st.integers(0, 7))
        if len(hit) == 1:
            assert parse_manifest(bytes(damaged), 12) == EXAMPLE
        else:
            with pytest.raises(Problem) as caught:
                parse_manifest(bytes(damaged), 12)
            assert caught.value.reason is Reason.BAD_MANIFEST


def test_a_cut_file_is_read_as_long_as_one_copy_is_whole() -> None:
    whole = render_manifest(EXAMPLE)
    for length in range(len(whole)):
        if length >= len(whole) // 2 - 1:
            assert parse_manifest(whole[:length]) == EXAMPLE
        else:
            with pytest.raises(Problem):
                parse_manifest(whole[:length])


def resealed(change: dict[str, Any]) -> bytes:
    shown = json.loads(render_manifest(EXAMPLE).split(b"\n")[0])
    del shown["blake3"]
    shown.update(change)
    body = json.dumps(shown, separators=(",", ":")).encode()
    return body[:-1] + b',"blake3":"' + digest(body).hex().encode() + b'"}\n'


HEAD = json.loads(render_manifest(EXAMPLE).split(b"\n")[0])["head"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"format": "vmreplica/2"}, "format"),
        ({"epoch": -1}, "epoch"),
        ({"epoch": True}, "epoch"),
        ({"n": "12"}, "n"),
        ({"previous": "xyz"}, "previous"),
        ({"disks": {}}, "disks"),
        ({"disks": [{"target": 1}]}, "disks[0].target"),
        ({"disks": [{"target": "vda"}]}, "disks[0].size_bytes"),
        ({"disks": ["vda"]}, "disks[0]"),
        ({"head": {**HEAD, "time": "yesterday"}}, "head.time"),
        ({"head": {**HEAD, "time": "2023-11-14T22:13:20.123"}}, "head.time"),
        ({"head": {**HEAD, "cycle_id": None}}, "head.cycle_id"),
        ({"recent_cycle_ids": [3]}, "recent_cycle_ids"),
        ({"policy": {"frequency_ms": None}}, "policy.frequency_ms"),
        ({"policy": {"disks": [1]}}, "policy.disks"),
        ({"origin": {"vda": 3}}, "origin.vda"),
        ({"tombstone": 0}, "tombstone"),
        ({"points": [{"kind": "None", "state": "Good"}]}, "points[0].kind"),
        ({"points": [{"kind": "CrashConsistent", "state": "x"}]}, "points[0].state"),
    ],
)
def test_a_refusal_names_the_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(Problem) as caught:
        parse_manifest(resealed(change))
    assert caught.value.reason is Reason.BAD_MANIFEST
    assert caught.value.field == field
    assert caught.value.remedy


def test_another_number_than_the_files_is_refused() -> None:
    with pytest.raises(Problem) as caught:
        parse_manifest(render_manifest(EXAMPLE), 13)
    assert caught.value.field == "n" and caught.value.value == "12"


def test_the_digest_follows_the_content() -> None:
    assert manifest_digest(EXAMPLE) != manifest_digest(replace(EXAMPLE, vm_name="db"))
    assert len(manifest_digest(EXAMPLE)) == 16
