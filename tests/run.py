"""Runs the tests: python tests/run.py [--only STAGE ...] [--np N ...] [-k EXPRESSION]

    native     C++ tests of the core's parts
    sanitize   the same under AddressSanitizer and UBSan, and under ThreadSanitizer; only when
               named (make sanitize), as it takes as long as all the others
    lint       ruff, mypy
    commands   pytest tests/commands: `ringreduce bench`, `ringreduce doctor`, benchmarks/
    programs   pytest tests/programs: examples, jobs that end in all ways, installing
    single     pytest tests/single, one process
    hosts      pytest tests/hosts: several hosts in network namespaces
    parallel   pytest tests/parallel under mpirun at 1, 2, 3 and 4 ranks
    split      the same with the ranks split over 2 pretended hosts: 1+1, 2+2, 1+3
    smoke      a part of it at 16 ranks
    mpich      tests/parallel at 2 and 4 ranks under MPICH, with the same built core
    idioms     pytest tests/idioms at 2 and 3 ranks: random training programs
    gpu        pytest tests/gpu at 1 and 2 ranks: real GPUs, skipped where there is none

From lint to hosts two stages run side by side; the others need all cores. The last line has the
totals; the exit status is 0 only if nothing failed. What each rank printed is in build/tests/STAGE/.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from itertools import groupby
from typing import NamedTuple

from runner.commands import run_lint, run_native
from runner.job import ending
from runner.launch import Launcher, find_launcher
from runner.mpich import mpich_launcher
from runner.pytest_stage import PytestStage
from runner.results import StageReport, show_failures, show_summary

SINGLE = ("commands", "programs", "single", "hosts")  # folders whose tests a single process runs
KINDS = ("native", "sanitize", "lint", *SINGLE, "parallel", "split", "smoke", "mpich", "idioms", "gpu")
SPLITS = {"1+1": "0,1", "2+2": "0,0,1,1", "1+3": "0,1,1,1"}
WIDTH = 2  # stages side by side


class Stage(NamedTuple):
    name: str
    run: Callable[[], StageReport]
    is_alone: bool = True  # it keeps all cores busy


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=KINDS,
        default=[kind for kind in KINDS if kind != "sanitize"],
        metavar="STAGE",
        help="run these stages only",
    )
    parser.add_argument(
        "--np", nargs="+", type=int, metavar="N", help="run the parallel stages with these numbers of ranks only"
    )
    parser.add_argument("-k", default="", metavar="EXPRESSION", help="run matching tests only, as pytest -k")
    parser.add_argument(
        "--test-timeout", type=float, default=120, metavar="SECONDS", help="longest time for one test (120)"
    )
    parser.add_argument(
        "--stage-timeout", type=float, default=1500, metavar="SECONDS", help="longest time for one stage (1500)"
    )
    return parser.parse_args()


def skipped(name: str, reason: str) -> Stage:
    def run() -> StageReport:
        report = StageReport(name)
        report.add(name, "skipped", reason)
        return report

    return Stage(name, run)


def stages(options: argparse.Namespace) -> Iterator[Stage]:
    """The stages asked for, in order; each with what runs it."""
    mpirun = find_launcher() or "there is no mpirun"
    select = ["-k", options.k] if options.k else []

    def pytest(
        name: str, size: int, *arguments: str, under: Launcher | str | None = mpirun, hosts: str = "", slow: int = 1
    ) -> Stage:
        """`under`: a launcher, None for a single process, or why there is no launcher."""
        if isinstance(under, str):
            return skipped(name, under)
        limits = options.test_timeout * slow, options.stage_timeout
        stage = PytestStage(name, size, [*arguments, *select], under, hosts, *limits)
        return Stage(name, lambda: stage.run(sys.executable), is_alone=under is not None)

    wanted = set(options.only)
    sizes = [size for size in (1, 2, 3, 4) if not options.np or size in options.np]
    if "native" in wanted:
        yield Stage("native", lambda: run_native("native", select=options.k))
    if "sanitize" in wanted:
        for sanitize in ("address,undefined", "thread"):
            name = f"native, {sanitize.replace(',', '+')} sanitizer"
            yield Stage(name, lambda name=name, sanitize=sanitize: run_native(name, sanitize, options.k))
    if "lint" in wanted:
        yield Stage("lint", lambda: run_lint("lint"), is_alone=False)
    for folder in SINGLE:
        if folder in wanted:
            yield pytest(folder, 1, f"tests/{folder}", under=None, slow=5)
    if "parallel" in wanted:
        for size in sizes:
            yield pytest(f"parallel, {size} rank{'s' * (size > 1)}", size, "tests/parallel")
    if "split" in wanted:
        for split, hosts in SPLITS.items():
            if (size := hosts.count(",") + 1) in sizes:
                yield pytest(f"parallel, hosts {split}", size, "tests/parallel", hosts=hosts)
    if "smoke" in wanted and (not options.np or 16 in options.np):
        yield pytest("smoke, 16 ranks", 16, "tests/parallel", "-m", "smoke", slow=3)
    if "mpich" in wanted:
        mpich = mpich_launcher()
        for size in {2, 4} & set(sizes):
            yield pytest(f"MPICH, {size} ranks", size, "tests/parallel", under=mpich)
    if "idioms" in wanted:
        for size in {2, 3} & set(sizes):
            yield pytest(f"idioms, {size} ranks", size, "tests/idioms", slow=2)
    if "gpu" in wanted:
        for size in {1, 2} & set(sizes):
            yield pytest(f"GPU, {size} rank{'s' * (size > 1)}", size, "tests/gpu", slow=2)


def tell(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {text}\n")  # one write: threads tell things, too
    sys.stdout.flush()


def run_stage(stage: Stage) -> StageReport:
    tell(f"{stage.name} ...")
    return stage.run()


def run_side_by_side(stages: Iterable[Stage]) -> Iterator[StageReport]:
    """Their reports, in the order in which they end."""
    with ThreadPoolExecutor(WIDTH) as pool:
        runs = [pool.submit(run_stage, stage) for stage in stages]
        try:
            for run in as_completed(runs):
                yield run.result()
        except BaseException:
            ending.set()
            pool.shutdown(cancel_futures=True)
            raise


def run_all(stages: Iterable[Stage]) -> Iterator[StageReport]:
    for is_alone, group in groupby(stages, lambda stage: stage.is_alone):
        run = partial(map, run_stage) if is_alone else run_side_by_side
        yield from run(group)


def main() -> int:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the running jobs too
    options = parse()
    launcher = find_launcher()
    print(f"Python {sys.version.split()[0]}, {launcher.name if launcher else 'no MPI'}", flush=True)
    reports = []
    for report in run_all(stages(options)):
        tell(f"{report.name}: {report.counts()} in {report.seconds:.1f} s")
        show_failures(report)
        reports.append(report)
    return 0 if show_summary(reports) else 1


if __name__ == "__main__":
    sys.exit(main())
