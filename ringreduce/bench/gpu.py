"""`ringreduce bench gpu`: which jobs there are, and what each rank of them does.

    this process ─┬─► mpirun, 1 rank:   kernels
                  ├─► mpirun, 1 2 ranks: submission
                  └─► mpirun, 1 2 ranks: step, a job for each model and mode, in turns

Jobs are `bench gpu` itself under a launcher, with one part; they answer with their JSON files.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from ringreduce.bench import gpu_plot, gpu_report, launch, machine, report
from ringreduce.bench.gpu_device import SHARING, SHARING_NCCL, Found, GpuDevice, find, gpu_line
from ringreduce.bench.gpu_kernels import KernelRow, measure_kernels, memory_needed
from ringreduce.bench.gpu_step import GpuStepRow, of_jobs, time_gpu_step
from ringreduce.bench.gpu_submission import SIZES, SubmissionRow, measure_submission
from ringreduce.bench.job import Job, Refused, joined
from ringreduce.bench.measure import Effort, Timing
from ringreduce.bench.options import Common
from ringreduce.bench.report import Report
from ringreduce.bench.run import describe
from ringreduce.bench.step import MODES
from ringreduce.bench.turns import FEWEST_ROUNDS, take_turns
from ringreduce.bench.units import show_size
from ringreduce.doctor.nccl import show_version

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
        raise Refused(f"bench gpu needs a GPU, and there is none to use: {'; '.join(found.missing)}")
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
        rows, notes = _measure(part, job, device, wanted, Effort(common.repeats, common.seconds), shown)
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
    effort = Effort(common.repeats, common.seconds)
    rows: list[Row] = []
    info: dict[str, Any] = {}

    def job(part: str, size: int, *options: str) -> list[dict[str, Any]]:
        content = _job(mpirun, size, part, effort, *options)
        info.update(info or content["machine"])
        notes.extend(note for note in content["notes"] if note not in notes)
        return list(content["results"])

    with Report(0) as shown:
        busy = machine.busy()
        if "kernels" in wanted.parts:
            shown.begin("kernels")
            rows += restore(job("kernels", 1, "--size", str(wanted.nbytes)))
        if "submission" in wanted.parts:
            for size in ranks:
                shown.begin(f"submission, {size} ranks")
                rows += restore(job("submission", size))
        for size in ranks if "step" in wanted.parts else ():
            modes = [one for one in wanted.modes if one != "ddp" or can_connect(size, found.gpus, found.nccl)]
            if len(modes) < len(wanted.modes):
                notes.append(f"ddp is left out: NCCL {_named(found.nccl)} does not connect {size} ranks here")
            for model in wanted.models:
                shown.begin(f"step of {model}, {size} ranks")
                options = ["--models", model, "--steps", str(wanted.steps), "--modes"]
                jobs = {mode: partial(job, "step", size, *options, mode) for mode in modes}
                turns = take_turns(jobs, effort, FEWEST_ROUNDS, shown.step)
                rows += restore([of_jobs([one for (one,) in results]) for results in turns.values()])
        info["busy"] = busy
        _show(shown, rows, notes, info, common)


def _job(mpirun: str, size: int, part: str, effort: Effort, *options: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="ringreduce-bench-") as directory:
        file = Path(directory) / "gpu.json"
        own = ["--parts", part, *options, "--json", str(file)]
        common = ["--repeats", str(effort.repeats), "--seconds", str(effort.seconds)]
        launch.run(launch.command(mpirun, size, "bench", "gpu", *own, *common))
        content: dict[str, Any] = json.loads(file.read_text())
    return content


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
    describe(info, shown)
    shown.show(gpu_line(info))
    kernels = [row for row in rows if isinstance(row, KernelRow)]
    submission = [row for row in rows if isinstance(row, SubmissionRow)]
    steps = [row for row in rows if isinstance(row, GpuStepRow)]
    if kernels:
        shown.show("\nkernels; bytes are read and written", gpu_report.kernel_table(kernels))
        if any(row.starved for row in kernels):
            shown.show("note: the GPU waited for the host; some times are the host's")
    if submission:
        shown.show("\nsubmission, host time", gpu_report.submission_table(submission))
    if steps:
        shown.show("\ntraining step; waits: of the host for the GPU, a step", gpu_report.step_table(steps))
    shown.show(*notes)
    if not shown.is_shown:
        return
    if common.json:
        ranks = max([1, *(row.ranks for row in submission), *(row.ranks for row in steps)])
        report.save(common.json, "gpu", info, ranks, rows, notes=list(notes))
    if common.plot:
        gpu_plot.draw(common.plot, gpu_line(info), kernels, submission, steps)
