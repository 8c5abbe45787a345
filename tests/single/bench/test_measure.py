"""`ringreduce bench`: taking turns, batches, medians and what they say."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from runner.launch import ROOT

from ringreduce.bench import jobs, launch, measure, turns
from ringreduce.bench.measure import Contender
from ringreduce.bench.turns import Effort


class OneRank:
    """Stands for a Job of one rank; notes when a sample begins."""

    scattered = False

    def __init__(self, log):
        self.log = log

    def barrier(self):
        self.log.append("barrier")

    def largest(self, values):
        return list(values)

    def longest(self, seconds):
        return seconds

    def durations(self, spans):
        return [end - begin for begin, end in spans]

    latencies = durations


def alternate(effort, names=("a", "b"), **how):
    log = []
    contenders = [
        Contender(name, lambda value, name=name: log.append(f"rewrite {name}"), lambda name=name: log.append(name))
        for name in names
    ]
    return log, measure.alternate(OneRank(log), contenders, effort, **how)


@pytest.mark.parametrize("blocks", [False, True])
def test_contenders_take_turns_with_fresh_buffers(blocks):
    log, timings = alternate(Effort(repeats=2, seconds=60), blocks=blocks)
    turn = ["rewrite a", "barrier", "a", "rewrite b", "barrier", "b"]
    assert log == turn * 3  # the first round warms up
    assert [timings[name].samples for name in "ab"] == [2, 2]


def test_short_calls_as_in_programs():
    log, timings = alternate(Effort(repeats=1, seconds=60), short=True)
    turn = [*["rewrite a", "barrier", "a"] * measure.CALLS, *["rewrite b", "barrier", "b"] * measure.CALLS]
    assert log == turn * 2
    assert (timings["a"].samples, timings["a"].batch) == (measure.CALLS, 1)


def test_short_calls_in_blocks():
    log, timings = alternate(Effort(repeats=1, seconds=60), names=("a",), short=True, blocks=True)
    batch = timings["a"].batch
    assert 1 < batch <= measure.BATCH[1]
    assert log[-batch - 2 :] == ["rewrite a", "barrier", *["a"] * batch]


def test_a_small_budget_leaves_a_few_rounds():
    _, timings = alternate(Effort(repeats=1000, seconds=1e-9))
    assert timings["a"].samples == turns.FEWEST_ROUNDS


class Clockwork(OneRank):
    """A call takes 70 us, whatever the time."""

    def __init__(self, scattered=False):
        super().__init__([])
        self.scattered, self.calls = scattered, 0

    def contender(self):
        return Contender("a", lambda value: None, self.call)

    def call(self):
        self.calls += 1

    def durations(self, spans):
        calls, self.calls = self.calls, 0
        return [7e-5 * calls / len(spans)] * len(spans)


def test_a_sample_is_divided_by_its_calls():
    job = Clockwork()
    job.durations = lambda spans, durations=job.durations: durations(spans * 2)[: len(spans)]  # the warm-up counts, too
    timings = measure.alternate(job, [job.contender()], Effort(1, 60), short=True, blocks=True)
    assert timings["a"].median == pytest.approx(7e-5)


@pytest.mark.parametrize(("scattered", "batch"), [(False, 14), (True, 714)])  # what fits in 1 ms and in 50 ms
def test_ranks_that_leave_a_barrier_far_apart_call_more_often(scattered, batch):
    job = Clockwork(scattered)
    assert measure.alternate(job, [job.contender()], Effort(1, 60), short=True, blocks=True)["a"].batch == batch


@pytest.mark.parametrize(("warm_up", "rounds"), [(0, 5), (1, 50)])
def test_the_first_round_that_counts_tells_how_many_there_are(monkeypatch, warm_up, rounds):
    """The first sample of all takes 10 times as long as the others."""
    clock, lengths = [0.0], itertools.chain([10.0], itertools.repeat(1.0))
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def sample():
        clock[0] += next(lengths)
        return clock[0]

    taken = turns.take_turns({"a": sample}, Effort(repeats=1000, seconds=50.0, fewest=1, warm_up=warm_up))["a"]
    assert taken == [10.0 + warm_up + n for n in range(rounds)]


def test_ranks_agree_on_the_rounds():
    """By its own clock this rank has time for any number."""
    assert (
        turns.take_turns({"a": int}, Effort(repeats=50, seconds=6.0, fewest=2), agree=lambda cost: 2.0)["a"] == [0] * 3
    )


def test_progress_is_told():
    told = []
    turns.take_turns({"a": int}, Effort(repeats=2), lambda done, of: told.append((done, of)))
    assert told == [(0, 1), (1, 2), (2, 2)]


def test_the_garbage_collector_is_on_again_after_a_failure():
    def fail():
        assert not gc.isenabled()
        raise KeyError("a")

    with pytest.raises(KeyError):
        turns.take_turns({"a": fail}, Effort(1))
    assert gc.isenabled()


def test_jobs_take_turns(monkeypatch):
    log = []
    monkeypatch.setattr(launch, "measure", lambda command: log.append(command[-1]) or len(log))
    results = jobs.run_in_turns(
        {"a": ["mpirun", "a"], "b": ["mpirun", "b"]}, Effort(9, 1e-9), lambda done, of: log.append((done, of))
    )
    assert log == ["a", "b", (1, 3), "a", "b", (2, 3), "a", "b", (3, 3)]
    assert results == {"a": [1, 4, 7], "b": [2, 5, 8]}


def test_a_row_is_the_median_over_jobs():
    row = jobs.row_of(
        [{"model": "mlp", "parameters": 7, "mode": "ddp", "median": median} for median in (1.0, 9.0, 2.0)]
    )
    assert (row.model, row.parameters, row.mode, row.timing.median) == ("mlp", 7, "ddp", 2.0)
    assert row.as_dict()["jobs"] == [1.0, 9.0, 2.0]


def test_what_ends_the_process_ends_its_job(tmp_path):
    """SIGTERM, too, which by itself would leave the job behind."""
    measuring = f"""
from ringreduce.bench import launch
launch.measure(["sh", "-c", "echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/job; exec sleep 100"])
"""
    with subprocess.Popen([sys.executable, "-c", measuring], cwd=ROOT) as parent:
        while not (tmp_path / "job").exists():
            assert parent.poll() is None
            time.sleep(0.05)
        job = int((tmp_path / "job").read_text())
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(job, 0)
