"""`python -m ringreduce` and the console script `ringreduce`."""

from __future__ import annotations

import sys

_HELP = """\
Usage: ringreduce COMMAND [OPTIONS]

  ringreduce: collective communication for PyTorch.

Commands:
  bench   Measure on this machine.
  doctor  Say what there is on this machine, and whether each path works.
"""


def main() -> int:
    """Run the command line; returns the exit status."""
    from ringreduce.doctor import command, needs

    arguments = sys.argv[1:]
    if arguments[:1] == ["doctor"]:  # for when things are broken: needs nothing
        return command.main(arguments[1:])
    if missing := needs.missing_for_the_command_line():
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_HELP)
        for check in missing:
            print(f"ringreduce: {check.name}: {check.text}", file=sys.stderr)
        return 1
    from ringreduce import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
