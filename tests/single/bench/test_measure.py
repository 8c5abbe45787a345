"""`ringreduce bench`: taking turns, batches, medians and what they say."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from ringreduce.bench import measure, turns
from ringreduce.bench.measure import Contender, Effort

MIB = 1 << 20


class OneRank:
    """Stands for a Job of one rank; notes when a sample begins."""

    scattered = False

    def __init__(self, log):
        self.log = log

    def barrier(self):
        self.log.append("barrier")

    def largest(self, values):
        return list(values)

    def durations(self, spans):
        return [end - begin for begin, end in spans]


def alternate(effort, names=("a", "b")):
    log = []
    contenders = [
        Contender(name, lambda value, name=name: log.append(f"rewrite {name}"), lambda name=name: log.append(name))
        for name in names
    ]
    return log, measure.alternate(OneRank(log), contenders, effort)


def test_contenders_take_turns_with_fresh_buffers():
    log, timings = alternate(Effort(repeats=2, seconds=60))
    turn = ["rewrite a", "barrier", "a", "rewrite b", "barrier", "b"]
    assert log == turn * 3  # the first round warms up
    assert [timings[name].samples for name in "ab"] == [2, 2]


def test_batches_of_short_calls():
    log, timings = alternate(Effort(repeats=1, seconds=60, batched=True), names=("a",))
    batch = timings["a"].batch
    assert 1 < batch <= measure.BATCH[1]
    assert log[-batch - 2 :] == ["rewrite a", "barrier", *["a"] * batch]


def test_a_small_budget_leaves_a_few_rounds():
    _, timings = alternate(Effort(repeats=1000, seconds=1e-9))
    assert timings["a"].samples == measure.FEWEST_ROUNDS


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
    timings = measure.alternate(job, [job.contender()], Effort(1, 60, batched=True))
    assert timings["a"].median == pytest.approx(7e-5)


@pytest.mark.parametrize(("scattered", "batch"), [(False, 14), (True, 714)])  # what fits in 1 ms and in 50 ms
def test_ranks_that_leave_a_barrier_far_apart_call_more_often(scattered, batch):
    job = Clockwork(scattered)
    assert measure.alternate(job, [job.contender()], Effort(1, 60, batched=True))["a"].batch == batch


def test_jobs_take_turns():
    log = []
    jobs = {name: lambda name=name: log.append(name) or len(log) for name in "ab"}
    results = turns.take_turns(jobs, Effort(repeats=9, seconds=1e-9), 3, lambda done, of: log.append((done, of)))
    assert log == ["a", "b", (1, 3), "a", "b", (2, 3), "a", "b", (3, 3)]
    assert results == {"a": [1, 4, 7], "b": [2, 5, 8]}


def test_as_many_rounds_as_there_is_time_for():
    slow = {name: lambda: time.sleep(0.05) for name in "ab"}
    rounds = len(turns.take_turns(slow, Effort(repeats=100, seconds=0.5), 3, lambda done, of: None)["a"])
    assert 3 <= rounds <= 10


def job_row(median, beside):
    memory = {"taken": 10 * MIB + beside, "beside": beside, "resident": 20 * MIB}
    return {"median": median, "parameters": 7, "faults": median, **memory}


def test_rows_are_medians_over_jobs():
    results = {
        "none": [job_row(median, beside) for median, beside in [(1.0, MIB), (9.0, MIB), (2.0, MIB)]],
        "ddp": [job_row(median, beside) for median, beside in [(5.0, 3 * MIB), (4.0, MIB), (3.0, 4 * MIB)]],
    }
    none, ddp = turns.rows_of("mlp", results)
    assert (none.timing.median, none.jobs, none.added) == (2.0, [1.0, 9.0, 2.0], (0, 0, 0))
    assert (ddp.timing.median, ddp.faults, ddp.added) == (4.0, 4.0, (2 * MIB, 2 * MIB, 0))
    assert ddp.as_dict()["added_beside"] == 2 * MIB


@pytest.mark.parametrize(
    ("count", "low", "high", "sure"),
    [(1, 1, 1, 0.0), (5, 1, 5, 0.9375), (6, 1, 6, 0.96875), (9, 2, 8, 0.9609375), (20, 6, 15, 0.9586105)],
)
def test_confidence_of_a_median(count, low, high, sure):
    """As the tables of the sign test have it."""
    values = list(range(count, 0, -1))
    assert turns.confidence_of_median(values) == (low, high, pytest.approx(sure))


def test_effect_of_init_is_beyond_what_a_process_does_anyway():
    plain = [{"before": 1.0, "after": 1.1, "cpu": 0.0}] * 6
    init = [{"before": 2.0, "after": 2.2 * 1.01, "cpu": 1e-5}] * 6
    idle = turns.idle_of(plain, init)
    assert (idle.effect, idle.low, idle.high) == pytest.approx((0.01, 0.01, 0.01))
    assert idle.cpu == 1e-5
