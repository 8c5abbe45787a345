"""The stages that are no pytest runs: native test programs and linters."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runner.launch import ROOT, clean_environment
from runner.results import Result, StageReport

NATIVE_TIMEOUT = 900.0  # seconds for one program, and under a sanitizer
SANITIZED_TIMEOUT = 2400.0
# TSan's memory layout does not fit under some kernels' address randomisation; no fault of ours.
CANNOT_RUN = re.compile(r"FATAL: ThreadSanitizer: unexpected memory mapping|LeakSanitizer does not work under ptrace")


def run(command: list[str], timeout: float) -> tuple[int | None, str]:
    """Exit status (None: took too long) and output."""
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        return None, output.decode(errors="replace") if isinstance(output, bytes) else output
    return done.returncode, done.stdout


def run_native(name: str, sanitize: str = "", select: str = "", programs: Sequence[str] = ()) -> StageReport:
    """Builds tests/native/test_*.cc, or these `programs`, and runs each; a program prints "ok CASE" for each case."""
    report, began = StageReport(name), time.monotonic()
    directory = Path("build/native" + (f"-{sanitize.replace(',', '-')}" if sanitize else ""))
    paths = [directory / program for program in programs or native_programs()]
    status, output = run(["make", "-s", "-j2", "doubles", *map(str, paths), f"SANITIZE={sanitize}"], timeout=3000)
    if status != 0:
        messages = [line for line in output.splitlines() if not line.startswith("CXX ")]
        report.add("build", "failed", "\n".join(messages[:80]))
    else:
        limit = SANITIZED_TIMEOUT if sanitize else NATIVE_TIMEOUT
        with ThreadPoolExecutor(2) as pool:  # half of them mostly wait
            for results in pool.map(lambda program: run_program(program, select, limit), paths):
                report.results += results
    report.seconds = time.monotonic() - began
    return report


def native_programs() -> list[str]:
    return sorted(source.stem for source in (ROOT / "tests" / "native").glob("test_*.cc"))


def run_program(program: Path, select: str, limit: float) -> list[Result]:
    began = time.monotonic()
    status, output = run([str(ROOT / program), *([select] if select else [])], limit)
    results = [Result(f"{program.name}::{case}", "passed") for case in re.findall(r"^ok (.+)$", output, re.MULTILINE)]
    if found := CANNOT_RUN.search(output):
        results.append(Result(program.name, "skipped", f"this machine cannot run the sanitizer: {found[0]}"))
    elif status != 0 and not (select and "no test case matches" in output):
        what = f"took more than {limit:.0f} s" if status is None else f"exit status {status}"
        rest = "\n".join(line for line in output.splitlines() if not line.startswith("ok "))
        text = f"{what} after {time.monotonic() - began:.0f} s\n{rest[-6000:]}"
        results.append(Result(program.name, "failed", text))
    return results


def run_lint(name: str) -> StageReport:
    report, began = StageReport(name), time.monotonic()
    for tool, arguments in (("ruff", ["check", "--quiet", "."]), ("mypy", ["--no-error-summary"])):
        status, output = run([sys.executable, "-m", tool, *arguments], timeout=600)
        if "No module named" in output:
            report.add(tool, "skipped", f"{tool} is not installed")
        else:
            report.add(tool, "failed" if status else "passed", output)
    report.seconds = time.monotonic() - began
    return report
