"""Runs the tests: python tests/run.py [--level LEVEL | --only STAGE ...] [--np N ...] [-k EXPRESSION]

    stage      what                                                                check  test     all
    lint       ruff, mypy                                                            x     x        x
    native     C++ tests of the core's parts                                       part    x        x
    single     pytest tests/single, one process                                      x     x        x
    commands   pytest tests/commands: `ringreduce bench`, `ringreduce doctor`, benchmarks/ x        x
    programs   pytest tests/programs: examples, jobs that end in all ways, installing      x        x
    hosts      pytest tests/hosts: several hosts in network namespaces                     x        x
    parallel   pytest tests/parallel under mpirun, on one host; at N ranks    part, 2  3, part 1 2  1, 2, 3, 4
    split      the same with the ranks split over 2 pretended hosts                  part, 1+3  1+1, 2+2, 1+3
    reads      the collectives by single copy, whatever the size; at N ranks           part, 3  2, 3, 4
    smoke      a part of it at N ranks                                                     8        8, 16
    idioms     pytest tests/idioms: random training programs; at N ranks                   3       2, 3
    gpu        pytest tests/gpu at 1 and 2 ranks: real GPUs, skipped where there is none   x        x
    mpich      tests/parallel at N ranks under MPICH, with the same built core                     2, 4
    sanitize   native under AddressSanitizer and UBSan, and under ThreadSanitizer                   x

What a level leaves out is the same code again: docs in CONTRIBUTING.md, "Testing". A stage that is named runs as in
test-all, unless a level is named, too. Stages of one process run two at a time; the others need all cores. The last
line has the totals; the exit status is 0 only if nothing failed. What each rank printed is in build/tests/STAGE/, and
in RANK.events what each test took.
"""

from __future__ import annotations

import argparse
import ctypes
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from itertools import groupby
from typing import NamedTuple

from runner.commands import run_lint, run_native
from runner.job import ending
from runner.launch import Launcher, find_launcher
from runner.marked import files_with
from runner.mpich import mpich_launcher
from runner.pytest_stage import PytestStage
from runner.results import StageReport, show_failures, show_summary

SINGLE = ("programs", "commands", "single", "hosts")  # folders whose tests a single process runs; the longest first
KINDS = ("native", "sanitize", "lint", *SINGLE, "parallel", "split", "reads", "smoke", "mpich", "idioms", "gpu")
SPLITS = {"1+1": "0,1", "2+2": "0,0,1,1", "1+3": "0,1,1,1"}
WIDTH = 2  # stages side by side
# Programs of tests/native that take a second or two, and tests of tests/parallel, for `make check`.
QUICK_NATIVE = (
    "test_engine",
    "test_arena",
    "test_faults",
    "test_leaving",
    "test_digest",
    "test_output",
    "test_waiting",
)
QUICK = "smoke or quick"
ELSEWHERE = f"not once or {QUICK}"  # at one rank, and on split hosts
COLLECTIVES = "allgather allreduce alltoall broadcast gather grouped into process_sets reducescatter scatter"
READING = [f"tests/parallel/test_{name}.py" for name in COLLECTIVES.split()]
FILES = {"pair": files_with("pair"), QUICK: files_with("smoke", "quick")}  # marks -> what has them


class Level(NamedTuple):
    """Which stages a level has, and with how many ranks, or on which splits, those of several run.

    Of marks: "" is all tests.
    """

    kinds: Sequence[str]
    parallel: Mapping[int, str]  # number of ranks -> marks that select the tests
    splits: Mapping[str, str]  # likewise
    smoke: Sequence[int] = (8, 16)
    idioms: Sequence[int] = (2, 3)
    reads: Sequence[int] = (2, 3, 4)
    is_thorough: bool = True  # or without what is marked thorough

    def marks(self, marks: str) -> list[str]:
        """The option of pytest that selects by `marks`."""
        chosen = [f"({one})" for one in (marks, "" if self.is_thorough else "not thorough") if one]
        return ["-m", " and ".join(chosen)] if chosen else []


ALL_SIZES = {1: "", 2: "", 3: "", 4: ""}
ALL_SPLITS = dict.fromkeys(SPLITS, "")
LEVELS = {
    "check": Level(("lint", "native", "single", "parallel"), {2: QUICK}, {}, is_thorough=False),
    "test": Level(
        [kind for kind in KINDS if kind not in ("sanitize", "mpich")],
        parallel={1: ELSEWHERE, 2: "pair", 3: ""},
        splits={"1+3": ELSEWHERE},
        smoke=(8,),
        idioms=(3,),
        reads=(3,),
        is_thorough=False,
    ),
    "all": Level(KINDS, ALL_SIZES, ALL_SPLITS),
}


class Stage(NamedTuple):
    name: str
    run: Callable[[], StageReport]
    is_alone: bool = True  # it keeps all cores busy


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--level", choices=LEVELS, help="how much to run (test)")
    parser.add_argument("--only", nargs="+", choices=KINDS, metavar="STAGE", help="only these stages (as in all)")
    parser.add_argument(
        "--np", nargs="+", type=int, metavar="N", help="run the parallel stages with these numbers of ranks only"
    )
    parser.add_argument("--hosts", nargs="+", choices=SPLITS, metavar="SPLIT", help="run only these splits")
    parser.add_argument("-k", default="", metavar="EXPRESSION", help="run matching tests only, as pytest -k")
    parser.add_argument(
        "--test-timeout", type=float, default=300, metavar="SECONDS", help="longest time for one test (300)"
    )
    parser.add_argument(
        "--stage-timeout", type=float, default=3000, metavar="SECONDS", help="longest time for one stage (3000)"
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
        name: str,
        size: int,
        *arguments: str,
        under: Launcher | str | None = mpirun,
        hosts: str = "",
        slow: int = 1,
        **environment: str,
    ) -> Stage:
        """`under`: a launcher, None for a single process, or why there is no launcher."""
        if isinstance(under, str):
            return skipped(name, under)
        limits = options.test_timeout * slow, options.stage_timeout
        stage = PytestStage(name, size, [*arguments, *select], under, hosts, environment, *limits)
        return Stage(name, lambda: stage.run(sys.executable), is_alone=size > 1)

    level = LEVELS[options.level or "test"]
    if options.only:
        level = (level if options.level else LEVELS["all"])._replace(kinds=options.only)

    def sizes(*most: int) -> list[int]:
        return [size for size in most if not options.np or size in options.np]

    def ranks(size: int) -> str:
        return f"{size} rank{'s' * (size > 1)}"

    wanted = set(level.kinds)
    if "native" in wanted:
        programs = QUICK_NATIVE if options.level == "check" else ()
        yield Stage("native", lambda: run_native("native", select=options.k, programs=programs))
    if "sanitize" in wanted:
        for sanitize in ("address,undefined", "thread"):
            name = f"native, {sanitize.replace(',', '+')} sanitizer"
            yield Stage(name, lambda name=name, sanitize=sanitize: run_native(name, sanitize, options.k))
    for folder in SINGLE:
        if folder in wanted:
            yield pytest(folder, 1, f"tests/{folder}", *level.marks(""), under=None, slow=3)
    if "lint" in wanted:
        yield Stage("lint", lambda: run_lint("lint"), is_alone=False)
    if "parallel" in wanted:
        for size in sizes(*level.parallel):
            marks = level.parallel[size]
            where = FILES.get(marks, ["tests/parallel"])
            yield pytest(f"parallel, {ranks(size)}", size, *where, *level.marks(marks))
    if "split" in wanted:
        for split in options.hosts or level.splits:
            hosts = SPLITS[split]
            for size in sizes(hosts.count(",") + 1):
                # NCCL knows no hosts of ours.
                gpu = [] if level.is_thorough else ["--ignore", "tests/parallel/gpu"]
                chosen = [*gpu, *level.marks(level.splits.get(split, ""))]
                yield pytest(f"parallel, hosts {split}", size, "tests/parallel", *chosen, hosts=hosts)
    if "reads" in wanted:
        for size in sizes(*level.reads):
            cut = level.marks("" if level.is_thorough else "smoke or (hosts and not once)")
            yield pytest(f"single copy, {ranks(size)}", size, *READING, *cut, RINGREDUCE_SINGLE_COPY="always")
    if "smoke" in wanted:
        for size in sizes(*level.smoke):
            yield pytest(f"smoke, {ranks(size)}", size, *files_with("smoke"), *level.marks("smoke"), slow=3)
    if "mpich" in wanted:
        mpich = mpich_launcher()
        for size in sizes(2, 4):
            yield pytest(f"MPICH, {ranks(size)}", size, "tests/parallel", under=mpich)
    if "idioms" in wanted:
        for size in sizes(*level.idioms):
            yield pytest(f"idioms, {ranks(size)}", size, "tests/idioms", *level.marks(""), slow=2)
    if "gpu" in wanted:
        under = mpirun if has_cuda() else "there is no CUDA driver on this machine"
        for size in sizes(1, 2):
            yield pytest(f"GPU, {ranks(size)}", size, "tests/gpu", under=under, slow=2)


def has_cuda() -> bool:
    """Without its driver torch sees no GPU either."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


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
