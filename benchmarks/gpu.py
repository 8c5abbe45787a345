"""The GPU: kernels beside a copy, host time of a submission beside NCCL's, a training step.

    python benchmarks/gpu.py                                    # everything, at 1 rank and at 2
    python benchmarks/gpu.py --parts step --models gpt --np 4 --plot step.png

docs/performance.md says what is measured, and what is to be reached.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))  # before any other `benchmarks`

from benchmarks.on_gpu import jobs, kernels
from benchmarks.on_gpu.models import GPU_MODELS, fitting
from benchmarks.on_gpu.step import GPU_MODES
from ringreduce import cli
from ringreduce.bench import launch
from ringreduce.bench.options import Common, check_ranks, checked, choices, options, require_mpirun, some

PARTS = ("kernels", "submission", "step")


@click.command()
@options(
    some("--parts", PARTS, "part", "What to measure."),
    click.option(
        "--size", default="400M", show_default=True, metavar="BYTES", callback=checked(kernels.parse_load),
        help=f"Of the {kernels.MIXED_TENSORS} tensors of mixed sizes that the kernels move.",
    ),
    click.option(
        "--models", metavar="LIST", callback=checked(choices(list(GPU_MODELS), "model")),
        help=f"Models to train, of {','.join(GPU_MODELS)}. [default: those that fit]",
    ),
    some("--modes", GPU_MODES, "mode", "none: no communication; ddp: DistributedDataParallel on NCCL."),
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
    found = jobs.require_gpu()
    wanted = jobs.Wanted(parts, size, models or fitting(found.memory), modes, steps)
    jobs.check(wanted, found)
    if launch.launched_size() is None:
        jobs.run_jobs(require_mpirun(), wanted, found, common)
    else:
        check_ranks(common.np)
        jobs.run_job(wanted, common)


if __name__ == "__main__":
    sys.exit(cli.run(gpu, "benchmarks/gpu.py"))
