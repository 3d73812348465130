"""Generate the Python stubs of protos/ into the tree, or check that those there are the right ones.

    tools/gen_protos.py            write
    tools/gen_protos.py --check    compare only: exit 1 and name each file that differs

Generated with the pinned, old grpcio-tools: newer runtimes take older stubs, never the reverse.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PACKAGE = Path("vmreplica/v1")
GENERATOR = "1.66.2"


def generate(out: Path) -> None:
    """Run protoc; ``_pb2_grpc.py`` only for files that hold a service."""
    files = sorted(PROTOS.rglob("*.proto"))
    with_service = [f for f in files if "\nservice " in f.read_text(encoding="utf-8")]
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}"]
    # Warnings of the generator's own imports are not ours to fix.
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    subprocess.run(
        [*protoc, f"--python_out={out}", f"--pyi_out={out}", *map(str, files)],
        check=True,
        env=environment,
    )
    subprocess.run(
        [*protoc, f"--grpc_python_out={out}", *map(str, with_service)], check=True, env=environment
    )


def stubs(root: Path) -> dict[str, bytes]:
    """All generated files below ``root``, by name."""
    found = (root / PACKAGE).glob("*_pb2*.py*")
    return {path.name: path.read_bytes() for path in found if path.suffix in (".py", ".pyi")}


def main(arguments: list[str]) -> int:
    """Write or check. Exit 2 on wrong usage or a wrong generator."""
    if arguments not in ([], ["--check"]):
        print("usage: gen_protos.py [--check]", file=sys.stderr)
        return 2
    version = importlib.metadata.version("grpcio-tools")
    if version != GENERATOR:
        print(f"grpcio-tools {GENERATOR} is needed, {version} is installed", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        wanted, present = stubs(Path(scratch)), stubs(ROOT)
    differing = sorted(
        name for name in {*wanted, *present} if wanted.get(name) != present.get(name)
    )
    if arguments:
        for name in differing:
            print(f"{PACKAGE / name} is not what protos/ say: run tools/gen_protos.py")
        return 1 if differing else 0
    for name in differing:
        path = ROOT / PACKAGE / name
        if name in wanted:
            path.write_bytes(wanted[name])
        else:
            path.unlink()
        print(PACKAGE / name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
