"""The command line: `ringreduce bench ...`, `ringreduce doctor`, `ringreduce stacks`, `ringreduce top`."""

from __future__ import annotations

import sys

import click

from ringreduce import _version
from ringreduce.bench import launch
from ringreduce.bench.commands import bench
from ringreduce.bench.job import Refused
from ringreduce.errors import RingreduceError
from ringreduce.observe.commands import stacks, top


def main() -> int:
    """Run the command that the process was started with; returns the exit status."""
    return run(cli, "ringreduce")


def run(command: click.Command, name: str) -> int:
    """Run it with the process's arguments, on one rank or many; what goes wrong is one line under its name."""
    try:
        status = command.main(prog_name=name, standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except click.ClickException as error:
        _tell(name, error.format_message())  # all ranks make the same mistake
        return error.exit_code
    except (Refused, launch.JobFailed, RingreduceError) as error:
        _tell(name, str(error))
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 130


def _tell(name: str, problem: str) -> None:
    if launch.launched_rank() == 0:
        print(f"{name}: {problem}", file=sys.stderr)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(_version.__version__, prog_name="ringreduce")
def cli() -> None:
    """ringreduce: collective communication for PyTorch."""


@cli.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def doctor(arguments: tuple[str, ...]) -> int:
    """Say what there is on this machine, and whether each path works."""
    from ringreduce.doctor import command

    return command.main(arguments)


cli.add_command(bench)
cli.add_command(stacks)
cli.add_command(top)
