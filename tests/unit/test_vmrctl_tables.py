"""Tables as a person sees them: whole pages, compared letter by letter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.vmrctl_room import Side, Vmrctl, serving


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    yield from serving(tmp_path_factory.mktemp("room"))


@pytest.fixture
def vmrctl(
    served: Side,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Vmrctl:
    served.reset()
    monkeypatch.setenv("VMRCTL_CONFIG", str(tmp_path / "none.yaml"))
    for name, value in served.environ.items():
        monkeypatch.setenv(name, value)
    return Vmrctl(served, capsys)


PAGES: dict[str, str] = {
    "replication list": """
VM      STATE        HEALTH    NODE  TO                    EVERY  SEQ  ACKED                 INITIAL  LAST CYCLE
guest1  Replicating  Normal    p1    replica.example:7443     5m   12  2026-11-23T04:00:00Z     50 %  Delta 68.4 KiB in 250ms
guest2  Error        Critical  p1    replica.example:7443     5m   12  2026-11-23T04:00:00Z     50 %  Delta 68.4 KiB in 250ms
""",
    "replication show guest1": """
replica_id:                         0d9e4c52-6a0b-4c77-9a55-3f0f3c6d2a11
vm_uuid:                            7f1d2c3b-0000-4000-8000-000000000001
vm_name:                            guest1
mode:                               Primary
state:                              Replicating
health:                             Normal
health_reasons:                     -
primary_access_point:               p1.example:7444
primary_node:                       p1
replica_access_point:               replica.example:7443
replica_node:                       r2
epoch:                              41
acked_seq:                          12
acked_time:                         2026-11-23T04:00:00Z
pending_bytes:                      0
last_cycle:                         Delta 68.4 KiB in 250ms
trust_group:                        default
last_problem:                       -
disks:                              -
frequency_ms:                       5m
compression:                        zstd
route:                              auto
initial:                            50 %
policy.frequency_ms:                300000
policy.compression:                 zstd
policy.route:                       auto
policy.disks:                       -
policy.recovery_points:             0
policy.folder:                      -
policy.bandwidth_limit_bytes_per_s: 0
""",
    "replica list": """
VM      STATE        HEALTH  OWNER  EPOCH  FROM             SEQ  ACKED                 POINTS     SIZE  TEST
guest1  Replicating  Normal  r2        41  p1.example:7444   12  2026-11-23T04:00:00Z       2  3.0 GiB  -
""",
    "replica show guest1": """
replica_id:           0d9e4c52-6a0b-4c77-9a55-3f0f3c6d2a11
vm_uuid:              7f1d2c3b-0000-4000-8000-000000000001
vm_name:              guest1
owner:                r2
epoch:                41
trust_group:          default
state:                Replicating
acked_seq:            12
acked_digest:         000102030405060708090a0b0c0d0e0f
disks[0].target:      vda
disks[0].size_bytes:  2147483648
disks[0].excluded:    false
storage_path:         /srv/replicas/x.1
acked_time:           2026-11-23T04:00:00Z
domain_name:          guest1
primary_access_point: p1.example:7444
size_bytes:           3.0 GiB
point_count:          2
health:               Normal
acked_cycle_id:       -
test_failover:        -
folder:               -
policy:               -
replica_access_point: -
placement.node:       r2
placement.reasons:    most free space
""",
    "replica points guest1": """
SEQ  TIME                  KIND             STATE       SIZE  IN USE
  1  2026-11-23T04:00:01Z  CrashConsistent  Good    64.0 KiB  false
  2  2026-11-23T04:00:02Z  CrashConsistent  Good   128.0 KiB  false
  3  2026-11-23T04:00:03Z  CrashConsistent  Good   192.0 KiB  false
""",
    "node list": """
NODE  STATE  ADDRESS          REPLICAS  FREE                     VERSION
r1    Ready  r1.example:7444         0  /srv/replicas 512.0 GiB  0.1.0
r2    Ready  r2.example:7444         3  /srv/replicas 512.0 GiB  0.1.0
""",
    "broker list": """
BROKER  STATE  LEADER  ADDRESS          ACCESS POINT          VERSION
b1      Ready  true    b1.example:7443  replica.example:7443  0.1.0
""",
    "operation list": """
OPERATION                             VERB     TARGET  STATE    STEP     DONE  TOTAL  UNIT   STARTED
6f1c2a0e-6a55-4b0b-9a59-0d6c1f7d9c11  initial  guest1  Running  sending    50    100  bytes  2026-11-23T04:00:00Z
""",
    "failover test list": """
VM      RUNNING  TEST VM        NODE  SEQ  LAST  RESULT
guest1  true     guest1 - Test  r2     12  -     -
""",
    "settings show": """
KEY                   VALUE
any_server            false
default_frequency_ms  300000
""",
    "events": """
TIME                      SEVERITY  EVENT               VM  NODE  MESSAGE
2026-11-23T04:00:00.000Z  Info      node.joined         -   r2    event 0
2026-11-23T04:00:00.001Z  Info      cycle.acknowledged  -   r2    event 1
2026-11-23T04:00:00.002Z  Info      cycle.missed        -   r2    event 2
""",
    "store check /srv": """
CHECK  NODE  OK    DETAIL  NEXT
link   r1    true  atomic  -
""",
    "connection test replica.example": """
CHECK  TARGET                OK    DETAIL  NEXT
tcp    replica.example:7443  true  1 ms    -
""",
    "replica locate guest1": """
replica_id:  0d9e4c52-6a0b-4c77-9a55-3f0f3c6d2a11
node:        r2
address:     r2.example:7444
server_name: r2.example
epoch:       41
ticket:      abc
route:       -
""",
    "version": """
client.version:    0.1.0
server.version:    0.1.0
server.server:     b1
server.role:       broker
server.cluster:    site2
server.git_commit: -
""",
}


@pytest.mark.parametrize("line", PAGES)
def test_page(vmrctl: Vmrctl, line: str) -> None:
    assert vmrctl(*line.split()).out == PAGES[line].lstrip("\n")
