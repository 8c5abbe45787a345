"""Who is to blame, from what is seen of the ranks of a host; what processes do; stacks as they are shown."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from ringreduce._runtime import processes, stacks
from ringreduce._runtime.processes import Look
from ringreduce._runtime.stall_report import Report, Stall, verdict

COMPUTES, SLEEPS = Look("R", "", 0.97), Look("S", "futex_wait_queue", 0.0)
STOPPED, ENDED = Look("T", "", 0.0), Look("", "", 0.0)


def page(rank: int, *titles: str, state: str = "running", failure: str = "") -> dict[str, object]:
    waits = [
        {"title": title, "place": f"train.py:{10 + rank} main", "since_ns": time.monotonic_ns()} for title in titles
    ]
    return {"rank": rank, "state": state, "failure": failure, "waits": waits, "steps": 7, "last": ""}


def blame(pages: list[dict[str, object]], looks: list[Look], missing: list[int], text: str = "") -> str:
    stall = Stall("allreduce 'a'", 30.0, missing, [], text)
    by_rank = dict(enumerate(pages))
    return verdict(Report(stall, by_rank, dict(enumerate(looks)), {}, {rank: 100 + rank for rank in by_rank}))


A, B = "allreduce 'a'", "allreduce 'b'"


def test_whoever_computes_is_to_blame():
    said = blame([page(0, A), page(1), page(2, A)], [SLEEPS, COMPUTES, SLEEPS], [1])
    assert "rank 1 (" in said
    assert "pid 101) has not come to it: using 97% of a core (running, state R)" in said
    assert said.endswith(
        "; rank 0 waits for allreduce 'a' at train.py:10 main; rank 2 waits for allreduce 'a' at train.py:12 main"
    )


def test_a_stopped_rank_is_to_blame_though_it_has_come():
    said = blame([page(0, A), page(1, A)], [SLEEPS, STOPPED], [])
    assert "pid 101) does not get on: it is in train.py:11 main, it is stopped by a signal (state T)" in said


def test_a_failure_comes_before_those_who_have_not_come():
    said = blame([page(0, A), page(1, state="failed", failure="no memory"), page(2)], [SLEEPS] * 3, [1, 2])
    assert "pid 101) has failed: no memory" in said
    assert "rank 2" not in said


def test_a_rank_outside_of_the_set_that_has_shut_down_is_not_to_blame():
    said = blame([page(0, A), page(1), page(2, state="gone")], [SLEEPS, COMPUTES, ENDED], [1])
    assert said.startswith("rank 1 (")
    assert "rank 2" not in said


def test_a_death_comes_before_a_failure():
    said = blame([page(0, A), page(1, state="failed"), page(2)], [SLEEPS, SLEEPS, ENDED], [1, 2])
    assert "pid 102) has ended" in said
    assert "failed" not in said


def test_whoever_waits_for_something_else_is_not_accused_while_another_computes():
    said = blame([page(0, A), page(1, B), page(2)], [SLEEPS, SLEEPS, COMPUTES], [1, 2])
    assert said.startswith("rank 2 (")
    assert "rank 1 waits for allreduce 'b'" in said


def test_ranks_that_wait_for_different_things():
    pages = [page(0, A), page(1, B), page(2, A)]
    for one in pages:
        one["waits"][0]["place"] = ""  # type: ignore[index]
    assert blame(pages, [SLEEPS] * 3, [1]) == (
        "the ranks wait for different things: ranks 0, 2 wait for allreduce 'a'; rank 1 waits for allreduce 'b'"
    )


def test_ranks_of_other_hosts_are_named():
    text = "some of ranks 2, 3 on other hosts have not submitted it"
    assert blame([page(0, A), page(1, A)], [SLEEPS] * 2, [], text) == text


def test_where_processes_cannot_be_seen_pages_speak():
    said = blame([page(0, A), page(1)], [], [1])
    assert "has not come to it" in said


STACKS = """
Thread 0x00007f1 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 324 in wait
  File "/home/me/prefetch.py", line 5 in run

Current thread 0x00007f2 (most recent call first):
  File "{own}/ringreduce/_runtime/watcher.py", line 3 in late
  File "/x/site-packages/torch/utils/data.py", line 9 in __next__
  File "{program}", line 2 in main
  File "<frozen importlib._bootstrap>", line 1 in _load
"""


def test_the_main_thread_comes_first_and_the_place_is_the_program_s(tmp_path):
    program = tmp_path / "train.py"
    program.write_text("def main():\n    batch = next(loader)\n")
    text = STACKS.format(own="/home/me", program=program)
    main, other = stacks.threads(text)
    assert main == [
        'File "/x/site-packages/torch/utils/data.py", line 9 in __next__',
        f'File "{program}", line 2 in main',
    ]
    assert other[1].endswith("line 5 in run")
    assert stacks.place(text, os.getpid()) == "train.py:2, in main: batch = next(loader)"
    assert stacks.place("", os.getpid()) == ""


def test_equal_stacks_are_folded():
    one, other = STACKS.format(own="a", program="p"), STACKS.format(own="b", program="q")
    lines = stacks.show({0: one, 1: other, 2: one.replace("0x00007f1", "0x00009f1"), 3: one})
    assert [line for line in lines if line.startswith("rank")] == ["ranks 0, 2-3:", "rank 1:"]


def test_a_deep_stack_is_shown_by_its_ends():
    frames = "".join(f'  File "f.py", line {line} in f\n' for line in range(1000))
    lines = stacks.show({0: "Current thread 0x1 (most recent call first):\n" + frames})
    assert len(lines) < 30
    assert "line 0 in" in lines[1]
    assert "line 999 in" in lines[-1]


@pytest.fixture
def child():
    """A process that sleeps, once it has said so."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(1000)"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def state_of(pid: int, states: str) -> Look:
    """Once it has one of these."""
    while True:
        look = processes.look_at([pid], 0.01)[pid]
        if look.state in states:
            return look


def test_what_a_process_does(child):
    assert "using no CPU (sleeping, state S" in str(state_of(child.pid, "S"))
    os.kill(child.pid, signal.SIGSTOP)
    look = state_of(child.pid, "T")
    assert look.stopped
    assert str(look) == "it is stopped by a signal (state T)"
    child.kill()
    assert state_of(child.pid, "Z").ended
    child.wait()
    assert processes.look_at([child.pid], 0.0)[child.pid].ended


def test_cpu_time_counts():
    end = time.monotonic() + 600
    spins = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        while processes.look_at([spins.pid])[spins.pid].cores < 0.02:
            assert time.monotonic() < end
    finally:
        spins.kill()
        spins.wait()


def test_nobody_is_asked_who_has_no_handler(child):
    """The signal would end it."""
    assert not processes.catches(child.pid, 45)
    assert stacks.ask([child.pid], 0.1) == {}
    assert stacks.mark_of(child.pid) is None
    assert child.poll() is None
