"""benchmarks/gpu.py: which jobs there are, and what each rank of them does.

    this process ─┬─► mpirun, 1 rank:   kernels
                  ├─► mpirun, 1 2 ranks: submission
                  └─► mpirun, 1 2 ranks: step, a job for each model and mode, in turns

Jobs are the same script under a launcher, with one part; they answer with their JSON files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.on_gpu import plot, tables
from benchmarks.on_gpu.device import SHARING, SHARING_NCCL, Found, GpuDevice, find, gpu_line
from benchmarks.on_gpu.kernels import KernelRow, measure_kernels, memory_needed
from benchmarks.on_gpu.step import GpuStepRow, of_jobs, time_gpu_step
from benchmarks.on_gpu.submission import SIZES, SubmissionRow, measure_submission
from ringreduce.bench import launch, machine
from ringreduce.bench.job import Job, Refused, joined
from ringreduce.bench.jobs import Content, run_in_turns
from ringreduce.bench.options import Common
from ringreduce.bench.report import Report
from ringreduce.bench.step import MODES
from ringreduce.bench.turns import Effort, Timing
from ringreduce.bench.units import show_size
from ringreduce.doctor.nccl import show_version

SCRIPT = Path(__file__).parents[1] / "gpu.py"
MOST_SHARING = 2  # ranks that NCCL lets share a GPU

Row = KernelRow | SubmissionRow | GpuStepRow
ROWS: dict[str, type[Row]] = {"kernels": KernelRow, "submission": SubmissionRow, "step": GpuStepRow}


@dataclass(frozen=True)
class Wanted:
    """What is to be measured."""

    parts: Sequence[str]
    nbytes: int  # of the mixed tensors
    models: Sequence[str]
    modes: Sequence[str]
    steps: int


def require_gpu() -> Found:
    """What there is; Refused, with everything that is missing, where it cannot be measured."""
    found = find()
    if found.missing:
        raise Refused(f"there is no GPU to use: {'; '.join(found.missing)}")
    return found


def check(wanted: Wanted, found: Found) -> None:
    """Refused where it cannot be measured, or not in one job and a launcher has started this one."""
    if not (wanted.parts and wanted.models and wanted.modes):
        raise Refused("--parts, --models and --modes must name at least one each")
    if "kernels" in wanted.parts and memory_needed(wanted.nbytes) > found.memory:
        raise Refused(f"--size {show_size(wanted.nbytes)}: the GPU has {found.memory / 2**30:.0f} GiB of memory")
    several_steps = "step" in wanted.parts and len(wanted.models) + len(wanted.modes) > 2
    if launch.launched_size() is not None and (len(wanted.parts) > 1 or several_steps):
        raise Refused(
            "each part takes a job of its own, and a launcher has started this one: name one with --parts, "
            "and for the step one with --models and one with --modes, or leave the launcher out"
        )


def plan_ranks(np: int | None, gpus: int, nccl: int) -> tuple[list[int], list[str]]:
    """The numbers of ranks to measure with, and notes. By default 1 and, where NCCL connects them, 2."""
    if np is not None:
        return [np], []
    if can_connect(2, gpus, nccl):
        return [1, 2], []
    why = f"two ranks on one GPU take NCCL {show_version(SHARING_NCCL)} or newer, torch has {_named(nccl)}"
    return [1], [f"2 ranks are left out: {why}"]


def can_connect(ranks: int, gpus: int, nccl: int) -> bool:
    """Whether NCCL connects so many ranks of this machine."""
    most = gpus * (MOST_SHARING if nccl >= SHARING_NCCL else 1)
    return nccl > 0 and ranks <= most


def _named(nccl: int) -> str:
    return show_version(nccl) if nccl else "none"


# --- a job ---------------------------------------------------------------------------------------


def run_job(wanted: Wanted, common: Common) -> None:
    """One part, for the step of one model in one mode, on the ranks of a launcher."""
    device = GpuDevice.of_rank(launch.launched_rank())  # before init(), which keeps to it
    (part,) = wanted.parts
    library = part == "submission" or (part == "step" and MODES[wanted.modes[0]].library)
    with joined(library) as job, Report(job.rank) as shown:
        info = machine.describe() | device.describe()
        rows, notes = _measure(part, job, device, wanted, common.effort, shown)
        info["busy"] = machine.busy()
        _show(shown, rows, notes, info, common)


def _measure(
    part: str, job: Job, device: GpuDevice, wanted: Wanted, effort: Effort, shown: Report
) -> tuple[Sequence[Row], list[str]]:
    if part == "kernels":
        return measure_kernels(device, wanted.nbytes, effort, shown), []
    if part == "submission":
        return measure_submission(job, device, SIZES, effort, shown)
    return [time_gpu_step(job, device, wanted.models[0], wanted.modes[0], wanted.steps, shown)], []


# --- all jobs ------------------------------------------------------------------------------------


def run_jobs(mpirun: str, wanted: Wanted, found: Found, common: Common) -> None:
    """Every part, from a process that is no rank and uses no GPU."""
    ranks, notes = plan_ranks(common.np, found.gpus, found.nccl)
    if max(ranks) > found.gpus and found.nccl >= SHARING_NCCL:
        os.environ.setdefault(SHARING, "1")
    rows: list[Row] = []
    info: dict[str, Any] = {}

    def command(part: str, size: int, *options: str) -> list[str]:
        effort = ["--repeats", str(common.repeats), "--seconds", str(common.seconds)]
        return launch.command(mpirun, size, str(SCRIPT), "--parts", part, *options, *effort)

    def results(contents: Sequence[Content]) -> list[Mapping[str, Any]]:
        """What the jobs measured; what they say beside it is kept."""
        for content in contents:
            info.update(info or content["machine"])
            notes.extend(note for note in content["notes"] if note not in notes)
        return [row for content in contents for row in content["results"]]

    with Report(0) as shown:
        busy = machine.busy()
        if "kernels" in wanted.parts:
            shown.begin("kernels")
            rows += restore(results([launch.measure(command("kernels", 1, "--size", str(wanted.nbytes)))]))
        if "submission" in wanted.parts:
            for size in ranks:
                shown.begin(f"submission, {size} ranks")
                rows += restore(results([launch.measure(command("submission", size))]))
        for size in ranks if "step" in wanted.parts else ():
            modes = [one for one in wanted.modes if one != "ddp" or can_connect(size, found.gpus, found.nccl)]
            if len(modes) < len(wanted.modes):
                notes.append(f"ddp is left out: NCCL {_named(found.nccl)} does not connect {size} ranks here")
            for model in wanted.models:
                shown.begin(f"step of {model}, {size} ranks")
                options = ["--models", model, "--steps", str(wanted.steps), "--modes"]
                jobs = {mode: command("step", size, *options, mode) for mode in modes}
                turns = run_in_turns(jobs, common.effort, shown.step)
                rows += restore([of_jobs(results(contents)) for contents in turns.values()])
        info["busy"] = busy
        _show(shown, rows, notes, info, common)


def restore(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows from what their as_dict() gave."""
    return [_restore(one) for one in results]


def _restore(result: Mapping[str, Any]) -> Row:
    kind = ROWS[result["part"]]
    values = {one.name: result[one.name] for one in fields(kind)}
    timings = {name: Timing(**value) for name, value in values.items() if isinstance(value, dict)}
    return kind(**(values | timings))


def _show(shown: Report, rows: Sequence[Row], notes: Sequence[str], info: dict[str, Any], common: Common) -> None:
    """Tables, JSON and picture."""
    shown.show_machine(info)
    shown.show(gpu_line(info))
    kernels = [row for row in rows if isinstance(row, KernelRow)]
    submission = [row for row in rows if isinstance(row, SubmissionRow)]
    steps = [row for row in rows if isinstance(row, GpuStepRow)]
    shows: list[Any] = []
    if kernels:
        shows += ["\nkernels; bytes are read and written", tables.kernel_table(kernels)]
        if any(row.starved for row in kernels):
            shows += ["note: the GPU waited for the host; some times are the host's"]
    if submission:
        shows += ["\nsubmission, host time", tables.submission_table(submission)]
    if steps:
        shows += ["\ntraining step; waits: of the host for the GPU, a step", tables.step_table(steps)]
    ranks = max([1, *(row.ranks for row in submission), *(row.ranks for row in steps)])
    shown.finish(
        common,
        shows,
        {"benchmark": "gpu", "ranks": ranks, "machine": info, "notes": list(notes)},
        rows,
        lambda path: plot.draw(path, gpu_line(info), kernels, submission, steps),
    )
