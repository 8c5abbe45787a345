"""`ringreduce bench ...`: options in, everything checked, then the benchmark.

The process that the user starts checks the options and becomes mpirun; each rank comes here
again, and runs the benchmark.
"""

from __future__ import annotations

import os

import click

from ringreduce.bench import collectives, launch, run, units
from ringreduce.bench.options import (
    STEP_BYTES,
    Common,
    blocks_option,
    check_memory,
    check_ranks,
    check_sizes,
    checked,
    compare_with,
    dtype_option,
    is_launched,
    models_option,
    options,
    require_mpirun,
    size_list,
    some,
    start_once,
    unnamed_option,
)
from ringreduce.bench.step import MODES
from ringreduce.bench.sweep import Manner

SIZES = "4,256,4K,16K,64K,256K,1M,4M,16M,64M,256M"
HOST_SIZES = "4,4K,64K,1M,16M,64M"


@click.group()
def bench() -> None:
    """Measure this machine: collectives, training steps, the network between hosts.

    A benchmark starts itself on --np ranks, or runs on the ranks of the launcher it is started
    by. docs/performance.md says how things are measured.

    \b
    Examples:
      ringreduce bench allreduce
      ringreduce bench allreduce --np 4 --sizes 4,16K,1M,64M --compare mpi --plot allreduce.png
      ringreduce bench step --json step.json
      mpirun -np 4 --host a:2,b:2 ringreduce bench hosts --link-rate 10gbit
    """


def _collective(name: str) -> None:
    @bench.command(name, help=f"{name} at many sizes, beside memcpy, MPI and Gloo.")
    @options(
        size_list(SIZES), dtype_option, compare_with(*collectives.PEERS), blocks_option, unnamed_option,
        repeats=50, seconds=3.0,
    )  # fmt: skip
    def command(common: Common, sizes: list[int], dtype: str, compare: list[str], blocks: bool, unnamed: bool) -> None:
        ranks = check_ranks(common.np)
        check_sizes(sizes, ranks)
        start_once(ranks)
        run.collective(name, sizes, dtype, compare, Manner(blocks, not unnamed), common)


for _name in collectives.COLLECTIVES:
    _collective(_name)


@bench.command()
@options(
    models_option,
    some("--modes", MODES, "mode", "none: no communication; bf16: compression; ddp: DistributedDataParallel on Gloo."),
    click.option("--steps", type=click.IntRange(min=1), default=15, show_default=True, help="Timed in each job."),
    repeats=20,
    seconds=60.0,
)
def step(common: Common, models: list[str], modes: list[str], steps: int) -> None:
    """A training step of an MLP (50M parameters) and a GPT (27M).

    Every model and mode runs in jobs of its own, as programs do; the jobs of a model take turns,
    3 rounds at least. Under a launcher there can be one job only: name one model and one mode.
    (benchmarks/memory.py of the source tree measures what a step adds to memory.)
    """
    ranks = check_ranks(common.np)
    launched = is_launched(models, modes)
    check_memory("a training step", STEP_BYTES, ranks)
    if launched:
        run.step(models[0], modes[0], steps, common)
    else:
        run.steps(require_mpirun(), ranks, models, modes, steps, common)


@bench.command("gpu", hidden=True, add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def gpu(arguments: tuple[str, ...]) -> None:
    """Where it has gone."""
    raise click.UsageError(
        "bench gpu is not installed with ringreduce: in its source tree, run python benchmarks/gpu.py"
    )


@bench.command()
@options(
    size_list(HOST_SIZES),
    dtype_option,
    compare_with("mpi", "gloo"),
    click.option("--link-rate", metavar="RATE", callback=checked(units.parse_rate), help="The link's, such as 1gbit."),
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
    ranks = check_ranks(common.np)
    if pretend_hosts and pretend_hosts > ranks:
        raise click.UsageError(f"--pretend-hosts {pretend_hosts}: there are only {ranks} ranks")
    if iperf and (link_rate or pretend_hosts):
        raise click.UsageError("--iperf goes with neither --link-rate nor --pretend-hosts")
    check_sizes(sizes, ranks)
    start_once(ranks)
    if pretend_hosts:
        os.environ["RINGREDUCE_HOST_ID"] = str(launch.launched_rank() * pretend_hosts // ranks)
    run.hosts(sizes, dtype, compare, link_rate, iperf, interface, common)
