"""The small files that belong to a VM's definition: NVRAM, and what its software TPM remembers."""

from __future__ import annotations

import os
from pathlib import Path

MAX_FILE_BYTES = 64 << 20
_TPM_FILES = ("tpm2/tpm2-00.permall", "tpm1.2/tpm-00.permall")


def read_nvram(path: str) -> bytes:
    """The NVRAM's bytes; empty where it does not exist yet."""
    return _read(Path(path))


def read_tpm_state(swtpm_dir: str, vm_uuid: str) -> bytes:
    """The permanent state of the VM's software TPM; empty where there is none."""
    for name in _TPM_FILES:
        data = _read(Path(swtpm_dir) / vm_uuid / name)
        if data:
            return data
    return b""


def write_tpm_state(swtpm_dir: str, vm_uuid: str, state: bytes, version: str) -> None:
    """Put a TPM's state where libvirt's swtpm of this VM will look for it."""
    name = _TPM_FILES[1] if version.startswith("1") else _TPM_FILES[0]
    path = Path(swtpm_dir) / vm_uuid / name
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.write_bytes(state)
    path.chmod(0o600)
    owner = Path(swtpm_dir).stat()
    os.chown(path, owner.st_uid, owner.st_gid)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return b""
        return path.read_bytes()
    except FileNotFoundError:
        return b""
