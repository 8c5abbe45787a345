"""What the tests of a stage came to, and how that is shown."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Result:
    """One test, over all the ranks that ran it."""

    test: str
    outcome: str  # passed, failed or skipped
    text: str = ""  # the traceback, or why it was skipped
    seconds: float = 0.0


@dataclass
class StageReport:
    name: str
    results: list[Result] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, test: str, outcome: str, text: str = "", seconds: float = 0.0) -> None:
        self.results.append(Result(test, outcome, text, seconds))

    def count(self, outcome: str) -> int:
        return sum(result.outcome == outcome for result in self.results)

    def counts(self) -> str:
        return ", ".join(f"{self.count(outcome)} {outcome}" for outcome in ("passed", "failed", "skipped"))

    def failures(self) -> list[Result]:
        return [result for result in self.results if result.outcome == "failed"]


def gist(text: str) -> str:
    """A failure in a line: what pytest's last traceback says (the first of its "E  " lines), else the first line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [at for at, line in enumerate(lines) if line.startswith("E  ") and not lines[at - 1].startswith("E  ")]
    line = lines[said[-1]][1:].strip() if said else lines[0] if lines else ""
    return line if len(line) <= 200 else line[:200] + "..."


def show_failures(stage: StageReport) -> None:
    for result in stage.failures():
        print(f"\n--- FAILED {stage.name}: {result.test}\n{result.text.rstrip()}\n", flush=True)


def show_summary(stages: list[StageReport]) -> bool:
    """Prints skips, the table and failures, so that the end of a long log names them; the last line has the totals
    alone. True without failures."""
    skips = Counter((r.text, s.name) for s in stages for r in s.results if r.outcome == "skipped")
    if skips:
        print("\nSkipped:")
        for reason in dict.fromkeys(reason for reason, _ in skips):
            where = ", ".join(f"{name} ({n})" for (text, name), n in skips.items() if text == reason)
            print(f"  {reason or 'no reason given'}\n      in {where}")
    width = max(len(stage.name) for stage in stages)
    print(f"\n{'stage':{width}}  passed  failed  skipped  seconds")
    for stage in stages:
        passed, failed, skipped = (stage.count(outcome) for outcome in ("passed", "failed", "skipped"))
        print(f"{stage.name:{width}}  {passed:6}  {failed:6}  {skipped:7}  {stage.seconds:7.1f}")
    failures = [(stage.name, result) for stage in stages for result in stage.failures()]
    if failures:
        print("\nFailed:")
        for name, result in failures:
            print(f"  {name}: {result.test}: {gist(result.text)}")
    total = StageReport("total", [result for stage in stages for result in stage.results])
    print(f"\n{total.counts()}", flush=True)
    return not failures
