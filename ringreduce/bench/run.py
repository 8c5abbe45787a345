"""A rank's run of each benchmark: join, measure, show, save."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ringreduce.bench import link, machine, plot, report
from ringreduce.bench.collectives import COLLECTIVES
from ringreduce.bench.hosts import HostRow, measure_hosts
from ringreduce.bench.job import Job, Refused, joined
from ringreduce.bench.measure import Effort
from ringreduce.bench.options import Common
from ringreduce.bench.report import Report
from ringreduce.bench.step import MODES, StepRow, time_steps
from ringreduce.bench.sweep import Row, sweep
from ringreduce.bench.turns import Idle, measure_idle, measure_steps

BUSY = 0.1  # share of the cores: from here on other programs are mentioned


def collective(name: str, sizes: Sequence[int], dtype: str, peers: Sequence[str], common: Common) -> None:
    """`ringreduce bench allreduce` and the like."""
    with joined() as job, Report(job.rank) as shown:
        info = _introduce(job, shown)
        rows, notes = sweep(job, COLLECTIVES[name], sizes, dtype, peers, _effort(common), shown)
        title = f"{name}, {dtype}, {job.size} rank{'s' * (job.size > 1)}"
        shown.show(f"{title}; bandwidth in GB/s; ratio: peer's time / ours", report.collective_table(rows), *notes)
        if job.rank != 0:
            return
        if common.json:
            report.save(common.json, name, info, job.size, rows, dtype=dtype, notes=notes)
        if common.plot:
            plot.lines(common.plot, f"{title}\n{info['cpu']}, {info['cores']} cores", _curves(rows))


def step(model: str, mode: str, steps: int, common: Common) -> None:
    """One job of `ringreduce bench step`, on the ranks of a launcher."""
    with joined(MODES[mode].library) as job, Report(job.rank) as shown:
        info = _introduce(job, shown)
        row = time_steps(job, model, mode, steps, shown)
        _show_steps(shown, [row], info, job.size, common)


def steps(mpirun: str, ranks: int, models: Sequence[str], modes: Sequence[str], count: int, common: Common) -> None:
    """`ringreduce bench step`: jobs in turns, from a process that is no rank."""
    with Report(0) as shown:
        busy = machine.busy()
        effort = _effort(common)
        rows, info = measure_steps(mpirun, ranks, models, modes, count, effort, shown)
        idle = measure_idle(count, effort, shown)
        info["busy"] = busy
        describe(info, shown)
        _show_steps(shown, rows, info, ranks, common, idle)


def _show_steps(
    shown: Report, rows: Sequence[StepRow], info: dict[str, Any], ranks: int, common: Common, idle: Idle | None = None
) -> None:
    title = f"training step, {ranks} rank{'s' * (ranks > 1)}"
    shown.show(title, report.step_table(rows), *([report.idle_line(idle)] if idle else []))
    if not shown.is_shown:
        return
    if common.json:
        more = {"idle_init": idle.as_dict()} if idle else {}
        report.save(common.json, "step", info, ranks, rows, **more)
    if common.plot:
        plot.steps(common.plot, f"{title}\n{info['cpu']}, {info['cores']} cores", rows)


def hosts(
    sizes: Sequence[int], dtype: str, peers: Sequence[str], rate: float | None, measured: bool, interface: str | None,
    common: Common,
) -> None:  # fmt: skip
    """`ringreduce bench hosts`. `rate` is the link's in bytes/s; `measured` asks for measuring it."""
    with joined() as job, Report(job.rank) as shown:
        if job.hosts < 2:
            raise Refused(
                "all ranks are on one host: start them on several with mpirun --host, or try --pretend-hosts 2"
            )
        interface = interface or link.default_interface()
        info = _introduce(job, shown)
        source = "--link-rate"
        if measured:
            rate, source = link.stream_rate(job, interface)
        if rate:
            shown.show(f"link: {rate / 1e6:.1f} MB/s by {source}")
        rows, notes = measure_hosts(job, sizes, dtype, peers, _effort(common), interface, shown)
        title = f"allreduce, {dtype}, {job.size} ranks on {job.hosts} hosts"
        shown.show(title, report.hosts_table(rows, rate), *notes)
        if job.rank != 0:
            return
        if common.json:
            more: dict[str, Any] = {"hosts": job.hosts, "link_bytes_per_s": rate, "link_by": source if rate else None}
            report.save(common.json, "hosts", info, job.size, rows, dtype=dtype, notes=notes, **more)
        if common.plot:
            plot.lines(common.plot, title, _curves(rows), rate)


def _curves(rows: Sequence[Row] | Sequence[HostRow]) -> dict[str, list[tuple[int, float]]]:
    """library -> (bytes, busbw). A single rank has no bus; it is shown as if the factor were 1."""
    libraries = dict.fromkeys(row.library for row in rows)
    return {
        one: [(row.nbytes, row.busbw or row.nbytes / row.timing.median) for row in rows if row.library == one]
        for one in libraries
    }


def _effort(common: Common) -> Effort:
    return Effort(common.repeats, common.seconds)


def _introduce(job: Job, shown: Report) -> dict[str, Any]:
    info = machine.describe() | {"busy": machine.busy()}  # while all ranks sleep
    describe(info, shown)
    return info


def describe(info: dict[str, Any], shown: Report) -> None:
    """The lines above a table: the machine, and whether others use it."""
    shown.show(
        f"{info['cpu']}, {info['cores']} cores; ringreduce {info['ringreduce']} ({info['kernels']}), "
        f"torch {info['torch']}, {info['mpi']}"
    )
    if info["busy"] > BUSY:
        shown.show(f"note: other programs use {100 * info['busy']:.0f}% of this machine; expect odd results")
