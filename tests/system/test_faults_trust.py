"""Certificates decide: a stranger's finds nothing, none at all is not let in."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from deploy.lab.certificates import Authority, Names
from tests.support.lab_room import CAP, CHECKOUT, Room, lab_up, quick
from tests.support.model_client import ModelClient, Refused, compare
from tests.support.model_source import ModelSource

pytestmark = [
    pytest.mark.needs("root", "netns", "etcd", "libvirt", "qemu"),
    pytest.mark.timeout(300),
]
SIZES = {"vda": 8 << 20, "vdb": 1 << 20}
_PROBE = """
import sys, grpc
from vmreplica.v1 import location_pb2, location_pb2_grpc
address, replica, ca, certificate, key = sys.argv[1:6]
read = lambda p: open(p, "rb").read() if p != "-" else None
if ca == "-":
    channel = grpc.insecure_channel(address)
else:
    channel = grpc.secure_channel(
        address, grpc.ssl_channel_credentials(read(ca), read(key), read(certificate)))
try:
    answer = location_pb2_grpc.LocationServiceStub(channel).Locate(
        location_pb2.LocateRequest(replica_id=replica), timeout=5)
    print("answered", answer.node)
except grpc.RpcError as error:
    print(error.code().name)
"""


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    with lab_up(tmp_path_factory.mktemp("trust"), "--hosts", "r1,b1,b2,e1,c1", *quick()) as room:
        certs = room.directory / "certs"
        uris = ("spiffe://third/node/y1", "spiffe://third/broker/y1")
        Authority(certs).issue(certs / "third-cluster", Names(("y1.lab",), (), uris))
        foreign = Authority(room.directory / "foreign")
        foreign.issue(room.directory / "foreign" / "x1", Names(("x1.lab",), (), ()))
        yield room


@pytest.fixture(scope="module")
def model() -> ModelSource:
    return ModelSource(SIZES, random.Random(5))


@pytest.fixture(scope="module")
def rightful(room: Room, model: ModelSource) -> Iterator[ModelClient]:
    """Another cluster's sender with one acknowledged cycle."""
    client = ModelClient(room, room.directory / "certs" / "other-cluster.crt", "x1.lab:7443")
    client.create("mine", model, "9e9b0c53-94d5-4c5e-8a5b-0e3f5b0a7c11")
    client.begin("Full", model.change(1, 12))
    assert client.finish()["seq"] == 1
    yield client
    client.close()


@pytest.fixture(scope="module")
def stranger(room: Room, rightful: ModelClient) -> Iterator[ModelClient]:
    """A third cluster's sender that has learned the replica's id."""
    client = ModelClient(room, room.directory / "certs" / "third-cluster.crt", "y1.lab:7443")
    client.ask("adopt", replica_id=rightful.replica_id, disks=SIZES)
    yield client
    client.close()


def _refusal(client: ModelClient, do: str, **words: object) -> Refused:
    with pytest.raises(Refused) as caught:
        client.ask(do, **words)
    return caught.value


@pytest.mark.parametrize("do", ["locate", "head_once"])
def test_to_a_stranger_the_replica_does_not_exist(
    rightful: ModelClient, stranger: ModelClient, do: str
) -> None:
    rightful.ask(do)
    refused = _refusal(stranger, do)
    assert refused.reason == "UNKNOWN_REPLICA"
    missing = "00000000-0000-4000-8000-000000000000"
    stranger.ask("adopt", replica_id=missing, disks=SIZES)
    absent = _refusal(stranger, do)
    stranger.ask("adopt", replica_id=rightful.replica_id, disks=SIZES)
    # Word for word what a replica that was never there gives.
    assert str(absent).replace(missing, rightful.replica_id) == str(refused)


@pytest.mark.parametrize("relay", [False, True], ids=["straight to the node", "by relay"])
def test_a_stranger_cannot_send(
    room: Room, rightful: ModelClient, stranger: ModelClient, model: ModelSource, relay: bool
) -> None:
    head = rightful.ask("head")
    words = {
        "node": head["owner"],
        "epoch": head["epoch"],
        "seq": head["acked_seq"] + 1,
        "parent": head["acked_digest"],
        "since": head["acked_cycle_id"],
        "relay": relay,
    }
    assert _refusal(stranger, "replicate_at", **words).reason == "UNKNOWN_REPLICA"
    assert rightful.ask("replicate_at", **words) == {"accepted": True}
    assert rightful.ask("head")["acked_seq"] == head["acked_seq"]
    compare(room, rightful.replica_id, model, head["acked_seq"])


def test_the_same_vm_of_a_stranger_is_a_replica_of_its_own(
    room: Room, rightful: ModelClient, stranger: ModelClient, model: ModelSource
) -> None:
    uuid = "9e9b0c53-94d5-4c5e-8a5b-0e3f5b0a7c11"
    created = stranger.create("mine", model, uuid)
    assert created["replica_id"] != rightful.replica_id
    assert created["trust_group"] == "DEFAULT/y1.lab"
    assert rightful.create("mine", model, uuid)["replica_id"] == rightful.replica_id
    stranger.ask("adopt", replica_id=rightful.replica_id, disks=SIZES)


def test_a_name_of_another_cluster_cannot_be_claimed(room: Room, model: ModelSource) -> None:
    liar = ModelClient(room, room.directory / "certs" / "third-cluster.crt", "x1.lab:7443")
    try:
        with pytest.raises(Refused) as caught:
            liar.create("mine", model, "9e9b0c53-94d5-4c5e-8a5b-0e3f5b0a7c11")
    finally:
        liar.close()
    assert caught.value.reason in ("NOT_AUTHORIZED", "BAD_FIELD")


def test_without_a_certificate_of_the_authority_nobody_is_let_in(
    room: Room, rightful: ModelClient
) -> None:
    certs, foreign = room.directory / "certs", room.directory / "foreign"

    def probe(address: str, ca: object, certificate: object, key: object) -> str:
        python = str(CHECKOUT / ".venv" / "bin" / "python")
        program = ["env", f"PYTHONPATH={CHECKOUT}", python, "-c", _PROBE]
        words = [address, rightful.replica_id, str(ca), str(certificate), str(key)]
        return room.inside("c1", *program, *words).strip()

    ours = (certs / "other-cluster.crt", certs / "other-cluster.key")
    theirs = (foreign / "x1.crt", foreign / "x1.key")
    assert probe(CAP, certs / "ca.crt", *ours).startswith("answered")
    for address in (CAP, "r1.lab:7444"):
        assert probe(address, "-", "-", "-") == "UNAVAILABLE"
        assert probe(address, certs / "ca.crt", "-", "-") == "UNAVAILABLE"
        assert probe(address, certs / "ca.crt", *theirs) == "UNAVAILABLE"
