"""The yardstick of the fault tests: one wrong bit, one old cluster or a wrong length is found."""

from __future__ import annotations

import random

from tests.support.model_source import CLUSTER_BYTES, ModelSource, content

SIZES = {"vda": 4 * CLUSTER_BYTES + 512}


def _disk(model: ModelSource) -> bytearray:
    data = b"".join(content(model.now["vda"].get(index, 0)) for index in range(5))
    return bytearray(data[: SIZES["vda"]])


def test_a_disk_agrees_with_itself_and_with_no_other_state() -> None:
    model = ModelSource(SIZES, random.Random(1))
    model.change(1, 5)
    first = _disk(model)
    model.change(2, 2)
    assert model.difference(1, "vda", first) == ""
    assert model.difference(2, "vda", _disk(model)) == ""
    assert "differs" in model.difference(2, "vda", first)
    assert "differs" in model.difference(1, "vda", _disk(model))


def test_every_wrong_bit_is_found_with_its_cluster() -> None:
    model = ModelSource(SIZES, random.Random(2))
    model.change(1, 5)
    for offset in (0, CLUSTER_BYTES, 3 * CLUSTER_BYTES - 1, SIZES["vda"] - 1):
        data = _disk(model)
        data[offset] ^= 0x10
        expected = f"vda at cycle 1 differs in clusters [{offset // CLUSTER_BYTES}]"
        assert model.difference(1, "vda", data) == expected


def test_a_shorter_disk_is_not_the_disk() -> None:
    model = ModelSource(SIZES, random.Random(3))
    model.change(1, 1)
    assert "bytes" in model.difference(1, "vda", bytes(_disk(model)[:-512]))
