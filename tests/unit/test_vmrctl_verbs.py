"""Every verb against a real server with canned answers: what is asked, what is printed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.vmrctl_room import (
    OPERATION_ID,
    REPLICA_ID,
    T0,
    Side,
    Vmrctl,
    operation,
    points,
    refused,
    replication,
    serving,
)
from vmreplica.core.problems import REASONS, Problem, Reason
from vmreplica.v1 import (
    connection_pb2,
    operation_pb2,
    replica_pb2,
    replication_pb2,
    store_pb2,
    types_pb2,
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    yield from serving(tmp_path_factory.mktemp("room"))


@pytest.fixture
def side(served: Side, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Side:
    served.reset()
    monkeypatch.setenv("VMRCTL_CONFIG", str(tmp_path / "none.yaml"))
    for name, value in served.environ.items():
        monkeypatch.setenv(name, value)
    return served


@pytest.fixture
def vmrctl(side: Side, capsys: pytest.CaptureFixture[str]) -> Vmrctl:
    return Vmrctl(side, capsys)


READS = {
    "node list": "list_nodes",
    "node show r2": "list_nodes",
    "broker list": "list_brokers",
    "connection test replica.example": "test_connection",
    "replication list": "list_replications",
    "replication show guest1": "get_replication",
    "replica list": "list_replicas",
    "replica show guest1": "get_replica",
    "replica locate guest1": "locate",
    "replica points guest1": "list_points",
    "replica chain guest1": "list_points",
    "failover test list": "list_test_failovers",
    "settings show": "get_settings",
    "operation list": "list_operations",
    f"operation show {OPERATION_ID}": "get_operation",
    f"operation wait {OPERATION_ID}": "watch_operation",
    "events": "watch_events",
    "store check /srv/replicas": "check_store",
    "version": "get_version",
}
WRITES = {
    "node drain r1": "drain_node",
    "node undrain r1": "undrain_node",
    "replication enable guest1 --to replica.example": "enable_replication",
    "replication start guest1": "start_replication",
    "replication stop-initial guest1": "stop_initial_replication",
    "replication suspend guest1": "suspend_replication",
    "replication resume guest1": "resume_replication",
    "replication set guest1 --frequency 30s": "update_replication",
    "replication remove guest1": "remove_replication",
    "replica remove guest1": "delete_replica",
    "failover test start guest1": "start_test_failover",
    "failover test stop guest1": "stop_test_failover",
    "settings set any_server=true": "update_settings",
    f"operation cancel {OPERATION_ID}": "cancel_operation",
}


@pytest.mark.parametrize("line", READS)
@pytest.mark.parametrize("form", ["table", "wide", "json", "yaml", "csv"])
def test_reads_print_every_form(vmrctl: Vmrctl, line: str, form: str) -> None:
    result = vmrctl(*line.split(), "-o", form)
    assert result.code == 0
    assert result.err == "" or "operation wait" in line
    assert [heard.method for heard in vmrctl.side.heard] == [READS[line]]
    assert result.out.endswith("\n")
    match form:
        case "json":
            assert json.loads(result.out)
        case "yaml":
            assert yaml.safe_load(result.out)
        case "csv":
            rows = list(csv.DictReader(io.StringIO(result.out)))
            assert rows and None not in rows[0] and None not in rows[0].values()


@pytest.mark.parametrize("line", [line for line in READS if " list" in line or " points" in line])
def test_lists_have_items_and_a_token(vmrctl: Vmrctl, line: str) -> None:
    shown = vmrctl(*line.split(), "-o", "json").json
    assert list(shown) == ["items", "next_page_token"] and shown["next_page_token"] == ""
    names = list(shown["items"][0])
    header = vmrctl(*line.split(), "-o", "csv").out.splitlines()[0].split(",")
    assert header == names


@pytest.mark.parametrize("line", WRITES)
def test_writes_bear_a_request_id_and_say_what_came_of_it(vmrctl: Vmrctl, line: str) -> None:
    result = vmrctl(*line.split())
    assert (result.code, result.err) == (0, "") and result.out.endswith(".\n")
    (heard,) = [h for h in vmrctl.side.heard if h.method == WRITES[line]]
    assert len(heard.request_id) == 36
    assert vmrctl(*line.split(), "-q").out == ""
    assert isinstance(vmrctl(*line.split(), "-o", "json").json, dict)
    assert len({h.request_id for h in vmrctl.side.heard if h.request_id}) == 3


@pytest.mark.parametrize("line", [*READS, *WRITES])
def test_a_problem_of_the_server_ends_the_verb(vmrctl: Vmrctl, line: str) -> None:
    method = (READS | WRITES)[line]
    vmrctl.side.answers[method] = refused(
        Reason.AMBIGUOUS_NAME, field="vm", value="guest1", remedy="Say which."
    )
    result = vmrctl(*line.split(), "-o", "json")
    assert (result.code, result.problem["reason"]) == (4, "AMBIGUOUS_NAME")
    people = vmrctl(*line.split())
    assert people.code == 4 and people.out.count("\n") <= 2
    assert people.err == (
        "Error: There is no such thing. [AMBIGUOUS_NAME]\n  vm: guest1\nNext: Say which.\n"
    )


@pytest.mark.parametrize("reason", [r for r in Reason if r is not Reason.STORE_UNAVAILABLE])
def test_every_reason_has_its_exit_code(vmrctl: Vmrctl, reason: Reason) -> None:
    vmrctl.side.answers["list_nodes"] = Problem(
        reason, "No.", field="f", value="v", remedy="Do.", cap="c:1", node="n", epoch=3
    )
    result = vmrctl("node", "list", "-o", "json")
    assert result.code == REASONS[reason].exit_code and result.out == ""
    assert result.problem == {
        "reason": reason.value,
        "message": "No.",
        "field": "f",
        "value": "v",
        "remedy": "Do.",
        "retryable": REASONS[reason].retryable,
        "grpc_code": REASONS[reason].grpc_code,
        "cap": "c:1",
        "node": "n",
        "epoch": 3,
    }


def test_an_unknown_outcome_is_repeated_once_with_the_same_id(vmrctl: Vmrctl) -> None:
    vmrctl.side.answers["undrain_node"] = Problem(Reason.STORE_UNAVAILABLE, "Who knows.")
    assert vmrctl("node", "undrain", "r1").code == 6
    ids = [heard.request_id for heard in vmrctl.side.heard]
    assert len(ids) == 2 and ids[0] == ids[1] != ""


def test_replication_has_the_names_of_the_contract(vmrctl: Vmrctl) -> None:
    shown = vmrctl("replication", "show", "guest1", "-o", "json").json
    assert set(shown) >= set(
        "replica_id vm_name vm_uuid mode state health health_reasons primary_access_point "
        "primary_node replica_access_point replica_node epoch route frequency_ms compression "
        "trust_group disks acked_seq acked_time pending_bytes initial last_cycle last_problem".split()
    )
    assert (shown["mode"], shown["state"], shown["health"]) == ("Primary", "Replicating", "Normal")
    assert shown["acked_seq"] == 12 and shown["frequency_ms"] == 300_000
    assert shown["acked_time"] == "2026-11-23T04:00:00.000Z"
    assert shown["initial"] == {"done_bytes": 2**31, "total_bytes": 2**32}
    assert shown["last_cycle"]["kind"] == "Delta" and shown["last_cycle"]["latency_ms"] == 250
    assert shown["last_problem"] is None


def test_replica_and_its_kin_have_the_names_of_the_contract(vmrctl: Vmrctl) -> None:
    shown = vmrctl("replica", "show", "guest1", "-o", "json").json
    assert shown["acked_digest"] == bytes(range(16)).hex()
    assert shown["placement"] == {"node": "r2", "reasons": ["most free space"]}
    assert set(shown["test_failover"]) >= {"running", "domain_name", "last_time", "last_result"}
    point = vmrctl("replica", "points", "guest1", "-o", "json").json["items"][1]
    assert point["chain"] == {"vda": ["layers/vda.1.qcow2", "layers/vda.2.qcow2"]}
    assert (point["kind"], point["state"], point["in_use"]) == ("CrashConsistent", "Good", False)
    located = vmrctl("replica", "locate", "guest1", "-o", "json").json
    assert set(located) >= {"replica_id", "node", "address", "server_name", "epoch", "route"}
    node = vmrctl("node", "show", "r2", "-o", "json").json
    assert node["storage"][0]["free_bytes"] == 2**39 and node["replicas"] == 3


def test_enable_sends_the_policy_and_leaves_a_begun_start_alone(vmrctl: Vmrctl) -> None:
    flags = (
        "--frequency 30s --compression none --route relay --disks vda,vdb --folder F "
        "--bandwidth 10MiB/s"
    )
    result = vmrctl(
        *"replication enable guest1 --to replica.example -o json".split(), *flags.split()
    )
    (request,) = vmrctl.side.requests("enable_replication")
    assert request == replication_pb2.EnableReplicationRequest(
        vm="guest1",
        to="replica.example:7443",
        policy=types_pb2.Policy(
            frequency_ms=30_000,
            compression="none",
            route="relay",
            disks=["vda", "vdb"],
            folder="F",
            bandwidth_limit_bytes_per_s=10 * 2**20,
        ),
    )
    assert result.json["changed"] is True
    assert result.json["replication"]["state"] == "WaitingForInitialReplication"
    assert not vmrctl.side.requests("start_replication")


READY = types_pb2.REPLICATION_STATE_READY_FOR_INITIAL_REPLICATION


@pytest.mark.parametrize(
    ("start", "at_ms"), [("now", 0), ("2026-11-23T04:00:00Z", T0), ("later", None)]
)
def test_enable_starts_what_is_ready(vmrctl: Vmrctl, start: str, at_ms: int | None) -> None:
    vmrctl.side.answers["enable_replication"] = replication_pb2.EnableReplicationResponse(
        replication=replication(state=READY), changed=True
    )
    result = vmrctl(*"replication enable guest1 --to r:7443 -o json --start".split(), start)
    assert result.code == 0
    started = vmrctl.side.requests("start_replication")
    if at_ms is None:
        assert started == [] and result.json["operation_id"] is None
    else:
        assert [request.at.ToMilliseconds() for request in started] == [at_ms]
        assert result.json["operation_id"] == OPERATION_ID


def test_enable_follows_a_running_initial_replication_only_when_asked(vmrctl: Vmrctl) -> None:
    vmrctl.side.answers["enable_replication"] = replication_pb2.EnableReplicationResponse(
        replication=replication(state=types_pb2.REPLICATION_STATE_WAITING_FOR_INITIAL_REPLICATION),
        operation_id=OPERATION_ID,
    )
    line = "replication enable guest1 --to r:7443".split()
    assert vmrctl(*line, "-o", "json").json["changed"] is False
    assert not vmrctl.side.requests("watch_operation")
    assert vmrctl(*line, "--wait").code == 0
    assert len(vmrctl.side.requests("watch_operation")) == 1
    assert not vmrctl.side.requests("start_replication")


def test_enable_waits_until_it_can_start(vmrctl: Vmrctl) -> None:
    vmrctl.side.answers["enable_replication"] = replication_pb2.EnableReplicationResponse(
        replication=replication(state=types_pb2.REPLICATION_STATE_NOT_ENABLED),
        changed=True,
        operation_id=OPERATION_ID,
    )
    ready = replication_pb2.GetReplicationResponse(replication=replication(state=READY))
    vmrctl.side.answers["get_replication"] = ready
    assert vmrctl(*"replication enable guest1 --to r:7443 -q".split()).code == 0
    methods = [heard.method for heard in vmrctl.side.heard]
    assert methods.index("watch_operation") < methods.index("start_replication")


def test_enable_waits_for_the_initial_replication(vmrctl: Vmrctl) -> None:
    vmrctl.side.answers["enable_replication"] = replication_pb2.EnableReplicationResponse(
        replication=replication(state=READY), changed=True
    )
    result = vmrctl(*"replication enable guest1 --to r:7443 --wait".split())
    assert result.code == 0
    assert result.out == "guest1 is protected; the initial replication is done.\n"
    lines = result.err.splitlines()
    assert lines[0] == ("initial replication of guest1: sending 0 % (0 B of 100 B)") and lines[
        -1
    ].endswith("100 % (100 B of 100 B)")
    assert len(lines) == 5


def test_machine_output_is_not_disturbed_by_progress(vmrctl: Vmrctl) -> None:
    result = vmrctl(*"node drain r1 --wait -o json".split())
    assert (result.code, result.err) == (0, "")
    assert result.json["operation"]["state"] == "Succeeded"
    assert vmrctl(*"node drain r1 --wait -q".split()).err == ""


def test_a_failed_operation_ends_with_its_problem(vmrctl: Vmrctl) -> None:
    failed = operation(
        "Failed",
        problem_reason="NO_SPACE",
        problem_message="The disk is full.",
        problem_details={"field": "path", "value": "/srv", "remedy": "Make room."},
    )
    vmrctl.side.answers["watch_operation"] = [
        operation_pb2.WatchOperationResponse(operation=failed)
    ]
    result = vmrctl(*"node drain r1 --wait -q".split())
    assert (result.code, result.out) == (7, "")
    assert result.err == ("Error: The disk is full. [NO_SPACE]\n  path: /srv\nNext: Make room.\n")
    waited = vmrctl("operation", "wait", OPERATION_ID, "-o", "json")
    assert (waited.code, waited.json["state"]) == (7, "Failed")
    assert waited.json["problem"]["reason"] == "NO_SPACE"


def test_a_watch_that_breaks_off_goes_on(vmrctl: Vmrctl) -> None:
    rounds = iter(
        [
            [operation_pb2.WatchOperationResponse(operation=operation("Running"))],
            [Problem(Reason.NO_LEADER, "Nobody leads.")],
            [operation_pb2.WatchOperationResponse(operation=operation("Succeeded"))],
        ]
    )
    vmrctl.side.answers["watch_operation"] = lambda _request: next(rounds)
    assert vmrctl("operation", "wait", OPERATION_ID, "-q").code == 0
    assert len(vmrctl.side.requests("watch_operation")) == 3


def test_waiting_ends_at_the_timeout(vmrctl: Vmrctl) -> None:
    vmrctl.side.answers["watch_operation"] = [
        operation_pb2.WatchOperationResponse(operation=operation("Running"))
    ]
    result = vmrctl(*"node drain r1 --wait --timeout 200ms -q".split())
    assert result.code == 6 and "still running" in result.err
    assert f"Next: vmrctl operation wait {OPERATION_ID}" in result.err


def test_set_sends_only_what_is_named(vmrctl: Vmrctl) -> None:
    assert vmrctl(*"replication set guest1 --bandwidth 0 --route relay".split()).code == 0
    (request,) = vmrctl.side.requests("update_replication")
    assert list(request.update_fields) == ["route", "bandwidth_limit_bytes_per_s"]
    assert request.policy == types_pb2.Policy(route="relay")
    assert vmrctl("replication", "set", "guest1").code == 2


def test_lists_are_read_to_their_end_and_filtered(vmrctl: Vmrctl) -> None:
    def page(request: Any) -> Any:
        at = int(request.page_token or 0)
        more = str(at + 1) if at < 2 else ""
        return replica_pb2.ListReplicasResponse(
            items=[types_pb2.Replica(vm_name=f"vm{at}")], next_page_token=more
        )

    vmrctl.side.answers["list_replicas"] = page
    items = vmrctl("replica", "list", "-o", "json").json["items"]
    assert [item["vm_name"] for item in items] == ["vm0", "vm1", "vm2"]
    shown = vmrctl("replication", "list", "--state", "error,suspended", "-o", "json").json
    assert [item["vm_name"] for item in shown["items"]] == ["guest2"]
    shown = vmrctl("replication", "list", "--health", "Normal", "-o", "json").json
    assert [item["vm_name"] for item in shown["items"]] == ["guest1"]
    wrong = vmrctl("replication", "list", "--state", "Fine", "-o", "json")
    assert (wrong.code, wrong.problem["value"]) == (2, "Fine")


@pytest.mark.parametrize(
    ("point", "seq"),
    [("latest", 3), ("2", 2), ("2026-11-23T04:00:02Z", 2), ("2026-11-23T05:00:02.5+01:00", 2)],
)
def test_chain_finds_its_point(vmrctl: Vmrctl, point: str, seq: int) -> None:
    shown = vmrctl("replica", "chain", "guest1", "--point", point, "-o", "json").json
    assert shown["items"] == [
        {
            "target": "vda",
            "files": [f"layers/vda.{n}.qcow2" for n in range(1, seq + 1)],
            "qemu_json": f'json:{{"driver":"qcow2","seq":{seq}}}',
        }
    ]


@pytest.mark.parametrize(
    ("point", "code"), [("9", 3), ("2026-11-23T03:00:00Z", 3), ("yesterday", 2)]
)
def test_chain_says_when_there_is_no_such_point(vmrctl: Vmrctl, point: str, code: int) -> None:
    result = vmrctl("replica", "chain", "guest1", "--point", point, "-o", "json")
    assert result.code == code and result.problem["value"] == point
    assert len(points()) == 3


def test_checks_with_faults_end_with_eight(vmrctl: Vmrctl) -> None:
    vmrctl.side.answers["test_connection"] = connection_pb2.TestConnectionResponse(
        checks=[
            connection_pb2.ConnectionCheck(name="tcp", ok=True),
            connection_pb2.ConnectionCheck(name="tls", ok=False, remedy="Trust it."),
        ]
    )
    vmrctl.side.answers["check_store"] = store_pb2.CheckStoreResponse(
        checks=[store_pb2.StoreCheck(name="link", ok=False)]
    )
    result = vmrctl("connection", "test", "r.example", "--each-node", "-o", "json")
    assert result.code == 8 and [row["ok"] for row in result.json["items"]] == [True, False]
    (request,) = vmrctl.side.requests("test_connection")
    assert (request.to, request.each_node) == ("r.example:7443", True)
    assert vmrctl("store", "check", "/srv", "--node", "r1").code == 8


def test_removal_of_data_asks_first(vmrctl: Vmrctl, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    line = "replica remove guest1 --delete-data".split()
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert vmrctl(*line).code == 2
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    assert vmrctl(*line).code == 2
    assert vmrctl.side.heard == []
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert vmrctl(*line).code == 0
    assert vmrctl(*line, "--yes").code == 0
    sent = vmrctl.side.requests("delete_replica")
    assert [(r.replica_id, r.delete_data) for r in sent] == [("guest1", True)] * 2
    assert vmrctl("replica", "remove", REPLICA_ID).code == 0
    assert vmrctl.side.requests("delete_replica")[-1].delete_data is False


def test_test_failover_names_networks(vmrctl: Vmrctl) -> None:
    line = "failover test start guest1 --network 1=none --network 52:54:00:00:00:01=lan"
    assert vmrctl(*line.split()).code == 0
    (request,) = vmrctl.side.requests("start_test_failover")
    assert dict(request.networks) == {"1": "none", "52:54:00:00:00:01": "lan"}
    assert request.point == "latest"
    assert vmrctl(*"failover test start guest1 --network lan".split()).code == 2


def test_settings_are_set_together_or_refused(vmrctl: Vmrctl) -> None:
    assert vmrctl("settings", "set", "a=1", "b=x=y").code == 0
    (request,) = vmrctl.side.requests("update_settings")
    assert dict(request.settings) == {"a": "1", "b": "x=y"}
    assert vmrctl("settings", "set", "a").code == 2
    assert vmrctl("settings", "set", "a=1", "a=2").code == 2
    assert vmrctl("settings", "show", "-o", "json").json["settings"]["any_server"] == "false"


def test_events_are_filtered_and_followed(vmrctl: Vmrctl) -> None:
    shown = vmrctl("events", "--name", "cycle.*", "--vm", "guest1", "-o", "json").json
    assert [event["name"] for event in shown["items"]] == ["cycle.acknowledged", "cycle.missed"]
    assert shown["items"][0]["data"] == {"seq": "1"}
    rounds = iter(
        [
            vmrctl.side.answers["watch_events"][:2],
            vmrctl.side.answers["watch_events"],
            refused(Reason.NOT_AUTHORIZED),
        ]
    )
    vmrctl.side.answers["watch_events"] = lambda _request: next(rounds)
    followed = vmrctl("events", "--follow", "--since", "2026-11-23T04:00:00Z", "-o", "json")
    assert followed.code == 5
    assert [json.loads(line)["event_id"] for line in followed.out.splitlines()] == [
        "e0",
        "e1",
        "e2",
    ]


def test_events_since_a_time_or_how_long_ago(vmrctl: Vmrctl) -> None:
    vmrctl("events", "--since", "2026-11-23T04:00:00Z")
    vmrctl("events", "--since", "1h")
    vmrctl("events", "--since", "1h30m")
    at, hour, longer = (r.since.ToMilliseconds() for r in vmrctl.side.requests("watch_events"))
    assert at == 1_795_406_400_000
    # The two were asked within a minute of each other, half an hour further back.
    assert 29 * 60_000 < hour - longer <= 30 * 60_000


def test_node_show_names_what_there_is(vmrctl: Vmrctl) -> None:
    result = vmrctl("node", "show", "r9", "-o", "json")
    assert (result.code, result.problem["reason"]) == (3, "UNKNOWN_NODE")
    assert result.problem["remedy"] == "Nodes: r1, r2."
