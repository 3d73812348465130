"""What a node meets when it starts, and when it stops: bad files, damage, and how it says so."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import pytest
import yaml

from tests.support.commands import run_daemon, told
from tests.support.standalone_room import NodeRoom, Wire, patiently, refusal_of
from vmreplica.adapters import certificates
from vmreplica.core.problems import Reason
from vmreplica.v1 import event_pb2, replica_pb2

pytestmark = [pytest.mark.needs("qemu"), pytest.mark.timeout(90)]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeRoom]:
    made = NodeRoom(tmp_path_factory.mktemp("start"))
    made.start()
    yield made
    made.close()


@pytest.fixture
async def wire(room: NodeRoom) -> AsyncIterator[Wire]:
    await room.ready()
    async with room.wire() as made:
        yield made


# --- configuration ----------------------------------------------------------------------------


def test_a_bad_configuration_is_told_all_at_once(tmp_path: Path) -> None:
    """One line a fault, ``file:key: sentence``, exit code 2, checked and started alike."""
    room = NodeRoom(tmp_path)
    room.configure(
        listen="no-port",
        advertise="localhost:0",
        state_dir="relative/path",
        nonsense=1,
        lease={"ttl_s": 6, "keepalive_ms": 4_000, "try_ms": 1_500, "margin_ms": 1_000},
        storage_locations=[{"path": "store", "shared": "perhaps"}],
        tls={"certificate": "/nowhere/node.pem", "key": "/nowhere/node.key", "ca": "/nowhere/ca"},
    )
    keys = (
        *("listen", "advertise", "state_dir", "nonsense", "lease"),
        *("storage_locations", "tls.certificate", "tls.key", "tls.ca"),
    )
    for more in (["--check"], []):
        done = run_daemon("node", room.config, *more)
        told(done, 2)
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        for key in keys:
            fits = [line for line in lines if f"{room.config}:{key}" in line]
            assert fits, f"{key} is not complained of: {done.stderr}"
            assert all(line.split(f"{room.config}:", 1)[1].count(" ") >= 2 for line in fits)


def _text(content: str | bytes) -> Callable[[NodeRoom], None]:
    def write(room: NodeRoom) -> None:
        data = content if isinstance(content, bytes) else content.encode()
        room.config.write_bytes(data)

    return write


def _expired(room: NodeRoom) -> None:
    day_ms = 86_400_000
    own = room.files["node"]
    now_ms = room.clock.wall_ms()
    sans = ["localhost", "spiffe://solo/node/n1"]
    begin = now_ms - 10 * day_ms
    out = own.certificate.with_suffix("")
    certificates.issue(room.certs, out, sans, now_ms, days=2, start_ms=begin)


def _wrong_role(room: NodeRoom) -> None:
    other = room.files["other"]
    tree = yaml.safe_load(room.config.read_text())
    tree["tls"] |= {"certificate": str(other.certificate), "key": str(other.key)}
    room.config.write_text(yaml.safe_dump(tree))


def _foreign_key(room: NodeRoom) -> None:
    room.files["node"].key.write_bytes(room.files["p1"].key.read_bytes())


def _no_store(room: NodeRoom) -> None:
    room.store.rmdir()


def _port_taken(room: NodeRoom) -> None:
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    room.taken = taken  # type: ignore[attr-defined]
    room.configure(listen=f"127.0.0.1:{taken.getsockname()[1]}")


def _damaged_database(room: NodeRoom) -> None:
    state = room.directory / "state"
    state.mkdir()
    (state / "cluster.sqlite").write_bytes(b"this is no database " * 500)


def _state_is_a_file(room: NodeRoom) -> None:
    (room.directory / "state").write_text("a file where a directory belongs")


STARTS: dict[str, tuple[Callable[[NodeRoom], None], int, str]] = {
    "missing": (lambda room: room.config.unlink(), 2, "node.yaml"),
    "empty": (_text(""), 2, "cluster"),
    "no YAML": (_text("cluster: [unclosed"), 2, "node.yaml"),
    "no mapping": (_text("- a\n- b\n"), 2, "node.yaml"),
    "no text": (_text(b"\xff\xfe\x00rubbish"), 2, "node.yaml"),
    "expired certificate": (_expired, 5, "expired"),
    "a certificate of another cluster": (_wrong_role, 2, "tls.certificate"),
    "a key of another certificate": (_foreign_key, 5, "key"),
    "no storage location": (_no_store, 2, "storage_locations"),
    "the port is taken": (_port_taken, 2, "listen"),
    "a damaged store": (_damaged_database, 6, "cluster.sqlite"),
    "a state directory that is a file": (_state_is_a_file, 2, "state_dir"),
}


@pytest.mark.parametrize("name", STARTS)
def test_a_start_that_is_refused(tmp_path: Path, name: str) -> None:
    room = NodeRoom(tmp_path)
    spoil, exit_code, word = STARTS[name]
    spoil(room)
    done = run_daemon("node", room.config)
    told(done, exit_code, word)
    assert "internal error" not in done.stderr


# --- damage -----------------------------------------------------------------------------------


async def test_a_damaged_manifest_stops_one_replica(room: NodeRoom, wire: Wire) -> None:
    """REPLICA_DAMAGED for the one, nothing deleted; the other goes on; mended, so does the one."""
    one = await room.replica(wire, "one")
    two = await room.replica(wire, "two")
    for replica in (one, two):
        await room.send(wire, replica)
    assert room.end(signal.SIGTERM) == 0
    (folder,) = room.store.glob(f"{one.replica_id}.*")
    highest = max(folder.glob("manifest.*.json"))
    sound = highest.read_bytes()
    before = sorted(path.name for path in folder.rglob("*"))
    highest.chmod(0o644)
    highest.write_bytes(sound[:40] + b"#" * (len(sound) - 40))
    room.start()
    await room.send(wire, two)
    await room.check(wire, two)
    request = replica_pb2.GetReplicaRequest(replica_id=one.replica_id)

    async def shown_as_damaged() -> bool:
        answer = replica_pb2.GetReplicaResponse
        shown = await patiently(lambda: wire.call("ReplicaService/GetReplica", request, answer))
        return bool(shown.replica.state == 9 and shown.replica.health == 4)

    while not await shown_as_damaged():
        await room.clock.sleep(100)
    await room.locate(wire, one)
    refusal = await wire.refused_stream(one.replica_id, [one.next().open])
    refusal.check(Reason.REPLICA_DAMAGED, "replica_id")
    listed = await wire.refused(
        "ReplicaService/ListPoints",
        replica_pb2.ListPointsRequest(replica_id=one.replica_id),
        replica_pb2.ListPointsResponse,
    )
    listed.check(Reason.REPLICA_DAMAGED)
    done = await asyncio.to_thread(room.vmrctl, "replica", "points", "one")
    told(done, 4, "REPLICA_DAMAGED", "repair")
    done = await asyncio.to_thread(room.vmrctl, "replica", "list", "-o", "json")
    states = {item["vm_name"]: item["health"] for item in json.loads(done.stdout)["items"]}
    assert set(states) >= {"one", "two"}, "a damaged replica is shown, not hidden"
    assert sorted(path.name for path in folder.rglob("*")) == before, "nothing was touched"
    assert room.end(signal.SIGTERM) == 0
    highest.write_bytes(sound)
    room.start()
    await room.check(wire, one)
    await room.send(wire, one)


# --- stopping ---------------------------------------------------------------------------------


async def test_a_node_that_stops_says_so_to_an_open_stream(room: NodeRoom, wire: Wire) -> None:
    """Cycles and watchers hear DRAINING; what had come of the cycle is gone on with later."""
    replica = await room.replica(wire, "drained")
    await room.send(wire, replica)
    cycle = replica.next(resume=True)
    stream = wire.stream(replica.replica_id)
    await stream.say(cycle.open)
    await stream.until("accepted")
    async with room.wire("admin") as admin:
        watch = admin.channel.unary_stream(
            "/vmreplica.v1.EventService/WatchEvents",
            event_pb2.WatchEventsRequest.SerializeToString,
        )(event_pb2.WatchEventsRequest(follow=True))
        assert await watch.read()
        assert room.process is not None
        room.process.send_signal(signal.SIGTERM)
        (await stream.refusal()).check(Reason.DRAINING)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            while await watch.read():
                pass
        refusal_of(ended.value).check(Reason.DRAINING)
    assert room.process is not None
    assert await asyncio.to_thread(room.process.wait, 20) == 0
    room.start()
    await room.send(wire, replica, cycle)
    await room.check(wire, replica)


async def test_rubbish_at_the_probe_port_and_at_the_tls_port(room: NodeRoom, wire: Wire) -> None:
    """Bytes that are no TLS and no HTTP; the node answers the next one as ever."""
    for port, data in (
        (room.port, b"GET / HTTP/1.1\r\n\r\n"),
        (room.port, bytes(range(256)) * 64),
        (room.probe_port, b"\x00\xff" * 4096),
        (room.probe_port, b"GET /" + b"a" * 100_000),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        try:
            await writer.drain()
            writer.write_eof()
            await asyncio.wait_for(reader.read(), 15)
        except OSError:
            pass
        writer.close()
    assert await asyncio.to_thread(_status, room, "livez") == 200
    assert await asyncio.to_thread(_status, room, "readyz") == 200
    assert await asyncio.to_thread(_status, room, "nothing") == 404
    replica = await room.replica(wire, "after")
    await room.send(wire, replica)


def _status(room: NodeRoom, path: str) -> int:
    try:
        where = f"http://127.0.0.1:{room.probe_port}/{path}"
        with urllib.request.urlopen(where, timeout=5) as got:
            return int(got.status)
    except urllib.error.HTTPError as error:
        return error.code
