"""Entry point of ``vmrctl``."""

from __future__ import annotations

import sys

from vmrctl.app import run


def main() -> None:
    """Run the command of ``sys.argv`` and exit with its code."""
    sys.exit(run(sys.argv[1:], is_process=True))


if __name__ == "__main__":
    main()
