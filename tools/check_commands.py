"""docs/operations/commands.md: written from the commands themselves, so that it cannot be wrong.

tools/check_commands.py           check the document, and that every example can be parsed
tools/check_commands.py --write   write it
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vmrctl.app import cli  # noqa: E402
from vmrctl.errors import Failure  # noqa: E402
from vmrctl.verbs import Verb, everywhere_options  # noqa: E402

DOCUMENT = ROOT / "docs" / "operations" / "commands.md"
SHELL_WORDS = (">", "|")
HEAD = """\
# Commands

Written by `tools/check_commands.py --write` from the commands themselves; `make check` compares.

Results go to standard output, progress and problems to standard error. VM stands for a name, a
libvirt UUID or a replica id; a name that fits two is refused, naming both. The same verb twice is
no error: it ends with 0 and says that nothing changed.

## Where it connects
The first of these that names an endpoint holds: `--endpoint`, a context chosen by `--context`,
`VMRCTL_ENDPOINT`, the context of `VMRCTL_CONTEXT`, the current context; root on a host of the
cluster needs none (`/run/vmreplica/broker.sock` or `node.sock`). Certificate files come from the
same places (`VMRCTL_CA`, `VMRCTL_CERTIFICATE`, `VMRCTL_KEY`). Relative paths in the file count from
the file's own directory.

```yaml
# ~/.config/vmrctl/config.yaml (or the file that VMRCTL_CONFIG names)
current: primary
contexts:
  primary: {endpoint: "p1.example:7444", ca: ca.pem, certificate: me.pem, key: me.key}
  replica: {endpoint: "replica.example:7443", ca: ca.pem, certificate: me.pem, key: me.key}
```

`NO_COLOR` turns colours off; `VMRCTL_DEBUG=1` shows the traceback of a bug.

## How it ends
| exit | meaning |
|---|---|
| 0 | done, or nothing to do |
| 1 | a bug of ours |
| 2 | the line, a field or a file is wrong, or the verb arrives later |
| 3 | there is no such thing |
| 4 | refused: the state, the side, the name does not allow it |
| 5 | no identity, or not authorized |
| 6 | not reachable now, or `--timeout` has passed: try again |
| 7 | no space, no quota, too many at once |
| 8 | a check found faults |
| 130 | Ctrl-C; work that was begun goes on |

With `-o json` a problem is `{"problem": {"reason", "message", "field", "value", "remedy",
"retryable", "grpc_code"}}` on standard error. The shapes of results are in
[docs/schemas](../schemas).

"""


def verbs(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Verb]]:
    """All verbs with the words that lead to them, in the order of the help."""
    if isinstance(command, click.Group):
        ctx = click.Context(command)
        for name in command.list_commands(ctx):
            inner = command.get_command(ctx, name)
            assert inner is not None, name
            yield from verbs(inner, (*path, name))
    else:
        assert isinstance(command, Verb), path
        yield " ".join(path), command


def document() -> str:
    """The whole document."""
    parts = [HEAD, "## Options everywhere\n", "| option | meaning |\n|---|---|\n"]
    with click.Context(cli) as ctx:
        parts += [_option(option, ctx) for option in everywhere_options()]
    noun = ""
    for path, verb in verbs(cli):
        if path.split()[0] != noun:
            noun = path.split()[0]
            parts.append(f"\n## {noun}\n")
        parts.append(_section(path, verb))
    return "".join(parts)


def _section(path: str, verb: Verb) -> str:
    with click.Context(verb, info_name=f"vmrctl {path}") as ctx:
        pieces = " ".join(verb.collect_usage_pieces(ctx)).replace("[OPTIONS] ", "")
        shared = {option.name for option in everywhere_options()}
        own = [p for p in verb.get_params(ctx) if isinstance(p, click.Option)]
        rows = [
            _option(p, ctx)
            for p in own
            if p.name not in shared and p.opts != ["--help"] and not p.hidden
        ]
    usage = f"vmrctl {path} {pieces}".replace("[OPTIONS]", "").strip()
    text = "\n\n".join(" ".join(part.split()) for part in (verb.help or "").split("\n\n"))
    table = "| option | meaning |\n|---|---|\n" + "".join(rows) + "\n" if rows else ""
    examples = "\n".join(verb.examples)
    return f"\n### {usage}\n\n{text}\n\n{table}```sh\n{examples}\n```\n"


def _option(option: click.Option, ctx: click.Context) -> str:
    record = option.get_help_record(ctx)
    assert record is not None, option.name
    name, text = (cell.replace("|", "\\|") for cell in record)
    return f"| `{name}` | {text} |\n"


def example_fault(example: str) -> str:
    """Why an example could not be typed; "" when it could."""
    words = shlex.split(example)
    cut = next((i for i, word in enumerate(words) if word in SHELL_WORDS), len(words))
    if words[0] != "vmrctl":
        return "does not begin with vmrctl"
    try:
        command: click.Command = cli
        arguments = words[1:cut]
        ctx = cli.make_context("vmrctl", list(arguments))
        while isinstance(command, click.Group):
            rest = [*ctx._protected_args, *ctx.args]
            name, inner, rest = command.resolve_command(ctx, rest)
            assert inner is not None, name
            command, ctx = inner, inner.make_context(name, rest, parent=ctx)
    except (click.UsageError, Failure) as error:
        return str(error)
    return ""


def main(arguments: list[str]) -> int:
    """Check or write."""
    text = document()
    if arguments == ["--write"]:
        DOCUMENT.parent.mkdir(parents=True, exist_ok=True)
        DOCUMENT.write_text(text, encoding="utf-8")
        return 0
    faults = []
    if not DOCUMENT.exists() or DOCUMENT.read_text(encoding="utf-8") != text:
        faults.append(f"{DOCUMENT.name} is not of today: run tools/check_commands.py --write")
    for path, verb in verbs(cli):
        if not verb.help or not verb.examples:
            faults.append(f"vmrctl {path}: has no help or no example")
        faults += [f"{e}: {fault}" for e in verb.examples if (fault := example_fault(e))]
    print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
