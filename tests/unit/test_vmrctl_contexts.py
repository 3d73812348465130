"""Where vmrctl connects, and what it says of a context file that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmrctl.contexts import load, resolve, with_port
from vmrctl.errors import Failure

FILE = """\
current: primary
contexts:
  primary: {endpoint: "p1:7444", ca: certs/ca.pem, certificate: certs/a.pem, key: certs/a.key}
  replica: {endpoint: "r-cap", ca: /x/ca.pem, certificate: /x/a.pem, key: /x/a.key}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(FILE)
    return path


def test_the_current_context_holds_without_more(file: Path) -> None:
    target = resolve(endpoint=None, context=None, environ={"VMRCTL_CONFIG": str(file)})
    assert target.endpoint == "p1:7444"
    assert (target.ca, target.key) == (file.parent / "certs/ca.pem", file.parent / "certs/a.key")


@pytest.mark.parametrize(
    ("flag", "context", "environ", "expected"),
    [
        ("f:1", "replica", {"VMRCTL_ENDPOINT": "e:2"}, "f:1"),
        (None, "replica", {"VMRCTL_ENDPOINT": "e:2"}, "r-cap:7443"),
        (None, None, {"VMRCTL_ENDPOINT": "e:2"}, "e:2"),
        (None, None, {"VMRCTL_CONTEXT": "replica"}, "r-cap:7443"),
        (None, "primary", {"VMRCTL_CONTEXT": "replica"}, "p1:7444"),
        ("unix:/run/x.sock", None, {}, "unix:/run/x.sock"),
    ],
)
def test_flag_beats_environment_beats_context(
    file: Path, flag: str | None, context: str | None, environ: dict[str, str], expected: str
) -> None:
    environ["VMRCTL_CONFIG"] = str(file)
    assert resolve(endpoint=flag, context=context, environ=environ).endpoint == expected


def test_certificates_of_the_context_serve_another_endpoint(file: Path) -> None:
    environ = {"VMRCTL_CONFIG": str(file), "VMRCTL_KEY": "/other.key"}
    target = resolve(endpoint="x:1", context=None, environ=environ)
    assert (str(target.key), target.certificate) == ("/other.key", file.parent / "certs/a.pem")


def test_root_falls_back_to_the_local_socket(tmp_path: Path) -> None:
    environ = {"VMRCTL_CONFIG": str(tmp_path / "none")}

    def found(is_root: bool) -> str:
        return resolve(
            endpoint=None, context=None, environ=environ, is_root=is_root, socket_dir=tmp_path
        ).endpoint

    with pytest.raises(Failure, match="No endpoint is known"):
        found(is_root=True)
    (tmp_path / "node.sock").touch()
    assert found(is_root=True) == f"unix:{tmp_path}/node.sock"
    (tmp_path / "broker.sock").touch()
    assert found(is_root=True) == f"unix:{tmp_path}/broker.sock"
    with pytest.raises(Failure) as refused:
        found(is_root=False)
    assert refused.value.exit_code == 2 and "--endpoint" in refused.value.remedy


def test_missing_certificates_are_named(tmp_path: Path) -> None:
    environ = {"VMRCTL_CONFIG": str(tmp_path / "none"), "VMRCTL_CA": "/ca.pem"}
    with pytest.raises(Failure) as refused:
        resolve(endpoint="x:1", context=None, environ=environ)
    assert "certificate, key missing" in refused.value.message


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("current: [", ["is not YAML"]),
        ("- a", ["must be a mapping"]),
        ("contexts: 3", ["contexts: must be a mapping"]),
        ("current: x\nnonsense: 1", ["nonsense: is not a key", "current: names 'x'"]),
        (
            "contexts: {a: {endpoint: 3, port: 1}, b: 7}",
            ["contexts.a.endpoint: must be text", "contexts.a.port: is not", "contexts.b: must be"],
        ),
    ],
)
def test_all_faults_of_a_file_are_said_at_once(
    tmp_path: Path, text: str, faults: list[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(Failure) as refused:
        load(path)
    assert (refused.value.reason, refused.value.exit_code) == ("BAD_CONFIG", 2)
    lines = refused.value.message.splitlines()
    assert len(lines) == len(faults)
    for line, fault in zip(lines, faults, strict=True):
        assert line.startswith(f"{path}:") and fault in line


def test_an_unknown_context_names_the_known(file: Path) -> None:
    with pytest.raises(Failure) as refused:
        resolve(endpoint=None, context="x", environ={"VMRCTL_CONFIG": str(file)})
    assert refused.value.remedy == "Known contexts: primary, replica."


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("host", "host:7443"),
        ("host:1", "host:1"),
        ("[::1]", "[::1]:7443"),
        ("[::1]:9", "[::1]:9"),
        ("fe80::1", "[fe80::1]:7443"),
    ],
)
def test_addresses_get_their_port(text: str, address: str) -> None:
    assert with_port(text) == address


@pytest.mark.parametrize("text", ["", ":1", "host:", "host:0", "host:65536", "a b:1", "x/y", "h:٣"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(Failure, match="is not HOST:PORT"):
        with_port(text)
