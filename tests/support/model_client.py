"""The test's end of a model sender that runs on a host of a lab."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.lab.model import LabError
from deploy.lab.processes import environment
from tests.support.lab_room import CAP, CHECKOUT, Room, eventually
from tests.support.model_source import ModelSource, Table

_ANSWER_S = 90.0


class Refused(Exception):
    """The other side answered with a problem."""

    def __init__(self, problem: dict[str, str]) -> None:
        super().__init__(f"{problem['reason']}: {problem['message']}")
        self.reason = problem["reason"]


class ModelClient:
    """Sends the cycles of one model; the test decides when."""

    def __init__(self, room: Room, certificate: Path, access_point: str, host: str = "c1") -> None:
        python = str(CHECKOUT / ".venv" / "bin" / "python")
        ca = room.directory / "certs" / "ca.crt"
        words = [CAP, str(certificate), str(ca), access_point]
        argv = [python, "-m", "tests.support.model_sender", *words]
        control = room.lab.control_named(host)
        self._log = (room.directory / f"sender-{certificate.stem}.log").open("ab")
        self._process = subprocess.Popen(
            control.inside(argv, str(CHECKOUT)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment(),
        )
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        self.replica_id = ""

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(json.loads(line))
        self._lines.put(None)

    def tell(self, do: str, **words: Any) -> None:
        """Give a command; ``finish`` waits for its end."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **words}) + "\n")
        self._process.stdin.flush()

    def finish(self, seen: Callable[[dict[str, Any]], None] = lambda _: None) -> dict[str, Any]:
        """What the command came to. ``seen`` gets each line on the way. :raises Refused:"""
        while True:
            line = self._lines.get(timeout=_ANSWER_S)
            assert line is not None, f"the sender died; see {self._log.name}"
            if "problem" in line:
                raise Refused(line["problem"])
            if "done" in line:
                done: dict[str, Any] = line["done"]
                return done
            seen(line)

    def until(self, at: str, number: int = -1) -> None:
        """Wait for a place on the way."""
        while True:
            line = self._lines.get(timeout=_ANSWER_S)
            assert line is not None and "at" in line, f"no {at} on the way, but {line}"
            if line["at"] == at and number in (-1, line.get("number")):
                return

    def ask(self, do: str, **words: Any) -> dict[str, Any]:
        """A command and its answer. :raises Refused:"""
        self.tell(do, **words)
        return self.finish()

    def create(
        self, vm_name: str, model: ModelSource, vm_uuid: str = "", domain_xml: str = ""
    ) -> dict[str, Any]:
        """Admission."""
        head = self.ask(
            "create",
            vm_name=vm_name,
            vm_uuid=vm_uuid or str(uuid.UUID(int=model.randomness.getrandbits(128))),
            disks=dict(model.sizes),
            domain_xml=domain_xml,
            request_id=str(uuid.uuid4()),
        )
        self.replica_id = head["replica_id"]
        return head

    def begin(self, kind: str, changed: Table, **words: Any) -> None:
        """Begin a cycle; ``finish`` waits for its acknowledgement."""
        self.tell("cycle", kind=kind, clusters=changed, **words)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def image_of(room: Room, owner: str, chain: str, name: str = "check.raw") -> bytes:
    """What plain qemu-img reads from a point's chain, on the owner's host."""
    target = f"/srv/scratch/{name}"
    room.inside(owner, "qemu-img", "convert", "-O", "raw", chain, target)
    path = room.directory / owner / "scratch" / name
    data = path.read_bytes()
    path.unlink()
    return data


def compare(room: Room, replica_id: str, model: ModelSource, seq: int) -> None:
    """Every disk of the point ``seq`` is, bit by bit, what the model held then."""
    images = eventually(lambda: _images(room, replica_id, seq), f"reading point {seq}", 20)
    assert set(images) == set(model.sizes)
    for target, data in images.items():
        assert model.difference(seq, target, data) == ""


def _images(room: Room, replica_id: str, seq: int) -> dict[str, bytes]:
    """Empty where a merge has replaced the chain's files between asking and opening."""
    words = ("replica", "chain", replica_id, "--point", str(seq))
    chains = room.ask_patiently("replica", *words)["items"]
    # Any node reads the shared storage; the owner is sure to be up.
    owner = room.owner(replica_id)
    try:
        return {c["target"]: image_of(room, owner, c["qemu_json"]) for c in chains}
    except LabError as error:
        if "No such file" not in str(error):
            raise
        return {}
