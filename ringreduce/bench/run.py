"""A rank's run of each benchmark: join, measure, show, save."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ringreduce.bench import link, machine, plot, tables
from ringreduce.bench.hosts import measure_hosts
from ringreduce.bench.job import Job, Refused, joined
from ringreduce.bench.jobs import measure_steps
from ringreduce.bench.options import Common
from ringreduce.bench.report import Report
from ringreduce.bench.step import MODES, StepRow, time_steps
from ringreduce.bench.sweep import Manner, Row, measure_collective


@contextmanager
def reporting(job: Job) -> Iterator[tuple[Report, dict[str, Any]]]:
    """What rank 0 shows, and the machine, which it has shown."""
    with Report(job.rank) as shown:
        info = machine.describe() | {"busy": machine.busy()}  # while all ranks sleep
        shown.show_machine(info)
        yield shown, info


def ranks_of(size: int) -> str:
    """ "1 rank", "2 ranks"."""
    return f"{size} rank{'s' * (size > 1)}"


def collective(
    name: str, sizes: Sequence[int], dtype: str, peers: Sequence[str], manner: Manner, common: Common
) -> None:
    """`ringreduce bench allreduce` and the like."""
    with joined() as job, reporting(job) as (shown, info):
        if "gloo" in peers:
            job.start_torch()
        rows, notes = measure_collective(job, name, sizes, dtype, peers, manner, common.effort, shown)
        title = f"{name}, {dtype}, {ranks_of(job.size)}"
        shown.finish(
            common,
            [f"{title}, {manner}; bandwidth in GB/s; ratio: peer's time / ours", tables.collective_table(rows)],
            {"benchmark": name, "ranks": job.size, "machine": info, "dtype": dtype, "notes": notes} | vars(manner),
            rows,
            lambda path: plot.lines(path, f"{title}\n{_line(info)}", _curves(rows)),
        )


def step(model: str, mode: str, steps: int, common: Common) -> None:
    """One job of `ringreduce bench step`, on the ranks of a launcher."""
    with joined(MODES[mode].library) as job, reporting(job) as (shown, info):
        _finish_steps(shown, [time_steps(job, model, mode, steps, shown)], info, job.size, common)


def steps(mpirun: str, ranks: int, models: Sequence[str], modes: Sequence[str], count: int, common: Common) -> None:
    """`ringreduce bench step`: jobs in turns, from a process that is no rank."""
    with Report(0) as shown:
        busy = machine.busy()
        rows, info = measure_steps(mpirun, ranks, models, modes, count, common.effort, shown)
        info["busy"] = busy
        shown.show_machine(info)
        _finish_steps(shown, rows, info, ranks, common)


def _finish_steps(shown: Report, rows: Sequence[StepRow], info: dict[str, Any], ranks: int, common: Common) -> None:
    title = f"training step, {ranks_of(ranks)}"
    content = {"benchmark": "step", "ranks": ranks, "machine": info}
    shown.finish(
        common,
        [title, tables.step_table(rows)],
        content,
        rows,
        lambda path: plot.steps(path, f"{title}\n{_line(info)}", rows),
    )


def hosts(
    sizes: Sequence[int], dtype: str, peers: Sequence[str], rate: float | None, measured: bool, interface: str | None,
    common: Common,
) -> None:  # fmt: skip
    """`ringreduce bench hosts`. `rate` is the link's in bytes/s; `measured` asks for measuring it."""
    with joined() as job:
        if job.hosts < 2:
            raise Refused(
                "all ranks are on one host: start them on several with mpirun --host, or try --pretend-hosts 2"
            )
        interface = interface or link.default_interface()
        with reporting(job) as (shown, info):
            source = "--link-rate"
            if measured:
                rate, source = link.stream_rate(job.comm, job.machines, interface)
            if rate:
                shown.show(f"link: {rate / 1e6:.1f} MB/s by {source}")
            if "gloo" in peers:
                job.start_torch(interface=interface)
            rows, notes = measure_hosts(job, sizes, dtype, peers, common.effort, interface, shown)
            title = f"allreduce, {dtype}, {job.size} ranks on {job.hosts} hosts"
            content = {"benchmark": "hosts", "ranks": job.size, "machine": info, "dtype": dtype, "notes": notes}
            link_content = {"hosts": job.hosts, "link_bytes_per_s": rate, "link_by": source if rate else None}
            shown.finish(
                common,
                [title, tables.hosts_table(rows, rate)],
                content | link_content,
                rows,
                lambda path: plot.lines(path, title, _curves(rows), rate),
            )


def _curves(rows: Sequence[Row]) -> dict[str, list[tuple[int, float]]]:
    """library -> (bytes, busbw). A single rank has no bus; it is shown as if the factor were 1."""
    libraries = dict.fromkeys(row.library for row in rows)
    return {one: [(row.nbytes, row.busbw or row.algbw) for row in rows if row.library == one] for one in libraries}


def _line(info: dict[str, Any]) -> str:
    return f"{info['cpu']}, {info['cores']} cores"
