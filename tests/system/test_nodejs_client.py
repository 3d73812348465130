"""A client in another language: Node.js, from an empty folder, with the .proto files alone.

It streams full and delta cycles of two disks, directly and through the client access point; its
connection is cut and the owner is killed in mid-stream. What the replica then holds is read with
plain qemu-img through the printed chain, and compared with the client's source byte by byte.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from deploy.lab.certificates import Authority, Names

CHECKOUT = Path(__file__).resolve().parents[2]
LAB = CHECKOUT / "deploy" / "lab" / "lab"
CLIENT = Path(__file__).parent / "nodejs"
CLUSTER = 65_536
TARGETS = ("vda", "vdb")
# Neither is a whole number of clusters: the last one is padded.
SIZES = (28 * 1024 * 1024 + 1536, 6 * 1024 * 1024 + 512)
NO_NETWORK = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT", "ENETUNREACH", "ECONNRESET")

pytestmark = [pytest.mark.needs("root", "netns", "etcd", "libvirt", "qemu", "nodejs")]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder that gets the client's source, the .proto files and the npm packages."""
    folder = tmp_path_factory.mktemp("foreign")
    for file in CLIENT.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    shutil.copytree(CHECKOUT / "protos" / "vmreplica", folder / "protos" / "vmreplica")
    npm = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline"]
    cache = ["--cache", str(CHECKOUT / "build" / "cache" / "npm")]
    done = subprocess.run(
        [*npm, *cache], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode and any(word in done.stderr for word in NO_NETWORK):
        pytest.skip("npm packages are neither cached in build/cache/npm nor reachable")
    assert done.returncode == 0, done.stderr
    return folder


class Lab:
    """A compact lab: p1 is a standalone node, r1-r3 a cluster; the client runs in host c1."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {**os.environ, "LAB_DIR": str(directory)}

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            [str(LAB), *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, f"lab {words}: {done.stdout}{done.stderr}"
        return done.stdout

    def vmrctl(self, context: str, *words: str) -> Any:
        return json.loads(self("vmrctl", "--", "--context", context, *words, "-o", "json"))

    def hosts(self) -> dict[str, dict[str, Any]]:
        return {host["name"]: host for host in json.loads(self("status", "-o", "json"))["items"]}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    lab("up", "--compact")
    for context in ("primary", "replica"):
        settings = ["any_server=true", "default_storage_location=/srv/replicas"]
        lab.vmrctl(context, "settings", "set", *settings)
    foreign = Names(("foreign.lab",), (), ())
    Authority(lab.directory / "certs").issue(lab.directory / "certs" / "foreign", foreign)
    yield lab
    lab("down", "--purge")


@dataclass
class Source:
    """The model: what the client's two disks held at each of three points in time."""

    folder: Path
    seed: int
    images: list[list[Path]] = field(default_factory=list)
    changed: list[list[list[int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        print(f"seed {self.seed}")
        dice = random.Random(self.seed)
        disks = [bytearray(size) for size in SIZES]
        for disk in disks:
            self._write(disk, dice, range(len(disk) // CLUSTER + 1), 0.8)
        self._keep(disks)
        # The last step changes more than the 8 MiB a sender may be ahead.
        for share in (0.1, 0.6):
            changes = []
            for disk in disks:
                count = len(disk) // CLUSTER + 1
                indexes = sorted({*dice.sample(range(count), int(count * share)), count - 1})
                self._write(disk, dice, indexes, 0.8)
                changes.append(indexes)
            self.changed.append(changes)
            self._keep(disks)

    def _write(self, disk: bytearray, dice: random.Random, indexes: Any, share: float) -> None:
        for index in indexes:
            size = min(CLUSTER, len(disk) - index * CLUSTER)
            match dice.random():
                case number if number < share:
                    content = dice.randbytes(size)
                case number if number < share + 0.1:
                    content = bytes([dice.randrange(1, 256)]) * size
                case _:
                    content = bytes(size)
            disk[index * CLUSTER : index * CLUSTER + size] = content

    def _keep(self, disks: list[bytearray]) -> None:
        names = [self.folder / f"{len(self.images)}-{target}.raw" for target in TARGETS]
        for name, disk in zip(names, disks, strict=True):
            name.write_bytes(disk)
        self.images.append(names)


@dataclass
class Story:
    """One run of the client, inside a host of the lab."""

    lab: Lab
    client: Path
    source: Source
    route: str
    access_point: str
    name: str
    pause_after: int = 0
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)

    def start(self) -> subprocess.Popen[str]:
        certificates = self.lab.directory / "certs"
        spec = {
            "accessPoint": self.access_point,
            "protos": str(self.client / "protos"),
            "ca": str(certificates / "ca.crt"),
            "certificate": str(certificates / "foreign.crt"),
            "key": str(certificates / "foreign.key"),
            "route": self.route,
            "vm_uuid": str(uuid.uuid4()),
            "vm_name": self.name,
            "primary_access_point": "foreign.lab:7444",
            "disks": [
                {"target": target, "size_bytes": size}
                for target, size in zip(TARGETS, SIZES, strict=True)
            ],
            "images": [[str(name) for name in images] for images in self.source.images],
            "changed": self.source.changed,
            "cut_after": 20,
            "pause_after": self.pause_after,
        }
        file = self.source.folder / f"{self.name}.json"
        file.write_text(json.dumps(spec))
        inside = [str(LAB), "shell", "c1", "--", "node", str(self.client / "story.mjs"), str(file)]
        return subprocess.Popen(
            inside,
            env=self.lab.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def until(self, process: subprocess.Popen[str], step: str) -> dict[str, Any]:
        assert process.stdout is not None
        for line in process.stdout:
            told: dict[str, Any] = json.loads(line)
            print(line.rstrip())
            self.steps[told["step"]] = told
            if told["step"] == step:
                return told
        raise AssertionError(f"the client ended before {step}: exit {process.wait(10)}")

    def compare(self, context: str, host: str, seq: int, images: list[Path]) -> None:
        """The chain of the point, read by qemu-img, against the model."""
        words = ["replica", "chain", self.steps["created"]["replica_id"], "--point", str(seq)]
        chains = self.lab.vmrctl(context, *words)["items"]
        assert [chain["target"] for chain in chains] == list(TARGETS)
        for chain, image, size in zip(chains, images, SIZES, strict=True):
            copy = self.source.folder / "copy.raw"
            convert = ["qemu-img", "convert", "-O", "raw", chain["qemu_json"], str(copy)]
            self.lab("shell", host, "--", *convert)
            assert copy.stat().st_size == size
            assert copy.read_bytes() == image.read_bytes(), f"{chain['target']} of point {seq}"

    def check_steps(self) -> None:
        """What every story must have shown up to its repeated cycle."""
        steps = self.steps
        assert steps["vector"]["digest"] == "90d3f2aff0036b48fb02423a9353967b"
        assert steps["unknown"]["reason"] == "UNKNOWN_REPLICA"
        assert steps["created"]["again"] == steps["created"]["replica_id"]
        assert steps["created"]["changed"] == [True, False]
        assert steps["located"]["route"] == self.route
        assert steps["wrong-server"]["code"] == "UNAVAILABLE"
        assert "another.example" in steps["wrong-server"]["message"]
        for name, seq in (("full", 1), ("delta", 2)):
            step = steps[name]
            assert (step["seq"], step["duplicate"]) == (seq, False)
            assert step["digest_agrees"] and step["head_is_ours"]
        first, second = steps["full"]["attempts"]
        assert first["from_frame"] == 0 and "problem" in first and not first["resume"]
        assert second["resume"] and 0 < second["from_frame"] <= 20
        # Progress came often enough, and the window was used and respected.
        assert second["progress_reports"] >= 3
        assert 4 << 20 < second["most_beyond"] <= 8 << 20
        again = steps["repeated"]
        assert (again["seq"], again["duplicate"], again["digest_agrees"]) == (2, True, True)
        gap = steps["gap"]
        assert (gap["code"], gap["reason"]) == ("OUT_OF_RANGE", "SEQ_GAP")
        assert "resync" in gap["remedy"]


def finish(story: Story, process: subprocess.Popen[str]) -> None:
    try:
        story.until(process, "done")
        assert process.wait(20) == 0
    finally:
        process.kill()


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path, int(os.environ.get("SEED", random.randrange(1 << 32))))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("context", "route", "access_point"),
    [
        ("primary", "direct", "p1.lab:7444"),
        ("replica", "relay", "cap.lab:7443"),
    ],
    ids=["standalone", "relay"],
)
def test_cycles_are_cut_and_go_on(
    lab: Lab, client: Path, source: Source, context: str, route: str, access_point: str
) -> None:
    story = Story(lab, client, source, route, access_point, f"{route}-vm")
    finish(story, story.start())
    story.check_steps()
    host = story.steps["located"]["node"]
    assert story.steps["located"]["has_ticket"] or route == "relay"
    story.compare(context, host, 2, source.images[1])


@pytest.mark.timeout(300)
def test_the_owner_dies_in_mid_stream(lab: Lab, client: Path, source: Source) -> None:
    story = Story(lab, client, source, "direct", "cap.lab:7443", "moving-vm", pause_after=10)
    process = story.start()
    try:
        owner = story.until(process, "paused")["node"]
        print(lab("kill", owner))
        assert process.stdin is not None
        process.stdin.write("go on\n")
        process.stdin.flush()
        finish(story, process)
    finally:
        process.kill()
        lab("start", owner)
    story.check_steps()
    moved = story.steps["moved"]
    assert (moved["seq"], moved["duplicate"]) == (3, False)
    assert moved["digest_agrees"] and moved["head_is_ours"]
    first, last = moved["attempts"][0], moved["attempts"][-1]
    assert first["node"] == owner != last["node"]
    assert first["epoch"] < last["epoch"] == moved["epoch"]
    survivor = last["node"]
    story.compare("replica", survivor, 3, source.images[2])
