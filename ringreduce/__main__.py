"""`python -m ringreduce` and the console script `ringreduce`."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; returns the exit status."""
    if sys.argv[1:2] == ["doctor"]:  # for when things are broken: needs no extra
        from ringreduce.doctor import command

        return command.main(sys.argv[2:])
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        print(f"ringreduce: the command line needs {error.name}: pip install 'ringreduce[bench]'", file=sys.stderr)
        return 1
    from ringreduce import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
