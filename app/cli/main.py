"""`tollgate`: the entry point. It imports nothing before it can be interrupted."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line of this process and end with its exit code."""
    try:
        from app.cli.commands import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130  # common.INTERRUPTED, which may be what was being imported
    sys.exit(code)


if __name__ == "__main__":
    main()
