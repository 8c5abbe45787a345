"""The drift guard by itself: what it writes into a bucket's tail, what it sees after the reduction, what it says."""

from __future__ import annotations

import warnings

import pytest
import torch
from oracle import WORLD
from torch import Tensor, nn
from training import make

from ringreduce._gradients import drift
from ringreduce._gradients.drift import WINDOWS, DriftGuard

pytestmark = pytest.mark.once  # the guard compares what a reduction gives, however that came

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)


class Job:
    """A guard, and what an optimizer does with it."""

    def __init__(self, rr, parameters, process_set=None) -> None:
        self.rr = rr
        self.set = process_set or rr.global_process_set
        self.parameters = dict(parameters)
        self.guard = DriftGuard(lambda: list(self.parameters.items()), self.set)
        self.tail = torch.zeros(DriftGuard.ELEMENTS)

    def agree(self) -> None:
        digests = self.rr.allgather_object(self.guard.full_digest(), process_set=self.set)
        if len(set(digests)) > 1:
            self.guard.report(whole=True)

    def reduce(self) -> bool:
        self.guard.write(self.tail)
        self.rr.allreduce_(self.tail, process_set=self.set)
        differs = self.guard.differs(self.tail)
        if differs:
            self.guard.report()
        return differs

    def steps(self, count: int) -> int:
        """Steps with a reduction each: after how many the ranks differed, else 0."""
        for step in range(1, count + 1):
            self.guard.stepped()
            if self.reduce():
                return step
        return 0


@pytest.fixture
def said(rr):
    """The texts that the body's warnings have on each rank."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: WORLD.allgather([str(warning.message) for warning in caught])


@pytest.fixture
def error_mode(monkeypatch):
    monkeypatch.setattr(drift._core, "setting_texts", lambda: [("RINGREDUCE_DRIFT", "error")])


def net() -> dict[str, Tensor]:
    return dict(make(lambda: nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 5))).named_parameters())


def everywhere(rr, error: Exception) -> str:
    """The error's text, which is the same on all ranks."""
    texts = rr.allgather_object(str(error))
    assert len(set(texts)) == 1
    return texts[0]


several = pytest.mark.usefixtures("_several")


@pytest.fixture
def _several(size):
    if size == 1:
        pytest.skip("one rank agrees with itself")


def test_one_rank_looks_at_nothing(rr, size):
    job = Job(rr, net())
    assert job.guard.mode == ("off" if size == 1 else "warn")
    if size == 1:
        job.agree()
        assert job.steps(3) == 0
        assert job.guard.full_digest() == 0


@several
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("factor", [1.0, 3.0, 1024.0, 1e-3])
def test_digests_travel_in_every_dtype(rr, rank, size, dtype, factor):
    for op in (rr.Sum, rr.Average):
        for odd in (None, *range(size)):
            values = torch.full((1000,), -1.0 if rank == odd else 1.0)
            guard = DriftGuard(lambda values=values: [("p", values)], rr.global_process_set)
            tail = torch.full((DriftGuard.ELEMENTS,), 7.0, dtype=dtype)
            guard.write(tail)
            rr.allreduce_(tail, op=op, prescale_factor=1 / factor, postscale_factor=factor)
            differs = guard.differs(tail)
            assert WORLD.allgather(differs) == [odd is not None] * size, f"{op} with rank {odd} the odd one out"


AWKWARD = {
    "scalar": lambda: torch.tensor(3.0),
    "one of many": lambda: torch.arange(5000.0),
    "bfloat16": lambda: torch.arange(300.0).bfloat16(),
    "complex": lambda: torch.arange(50.0) * 1j,
    "channels last": lambda: torch.arange(240.0).view(2, 4, 5, 6).contiguous(memory_format=torch.channels_last),
    "transposed": lambda: torch.arange(600.0).view(20, 30).t(),
    "with gaps": lambda: torch.arange(900.0).view(30, 30)[::2, 3:20],
    "offset": lambda: torch.arange(100.0)[7:],
    "whole numbers": lambda: torch.arange(100),
}


@several
@pytest.mark.parametrize("name", AWKWARD)
def test_each_element_is_looked_at_every_64_steps(rr, rank, size, said, name):
    tensors = {"before": torch.zeros(333), "none": torch.zeros(0), name: AWKWARD[name](), "after": torch.zeros(7)}
    numel = tensors[name].numel()
    for place in sorted({0, numel // 2, numel - 1}):
        job = Job(rr, tensors | {name: AWKWARD[name]()})
        job.agree()
        assert job.steps(WINDOWS + 3) == 0
        if rank == 0:
            tensor = job.parameters[name]
            tensor[torch.unravel_index(torch.tensor(place), tensor.shape)] = 4711
        assert 0 < job.steps(WINDOWS) <= WINDOWS
        assert job.steps(WINDOWS) == 0, "it is said once"
    assert all(f"{name!r} differs" in text for texts in said() for text in texts)
    assert len(said()[0]) == len({0, numel // 2, numel - 1})


@several
def test_what_is_said(rr, rank, size, said):
    job = Job(rr, net())
    job.agree()
    assert job.steps(40) == 0
    if rank == size - 1:
        job.parameters["0.weight"].data[3:5] += 0.25
    assert job.steps(WINDOWS) > 0
    odd = size - 1
    count = "(40 of 600 elements, by up to 0.25)"
    where = {
        2: f"differs between rank 0 and rank 1 {count}",
        3: f"differs on rank 2 {count}; ranks 0, 1 agree",
        4: f"differs on rank 3 {count}; ranks 0, 1, 2 agree",
    }.get(size, count)
    for of_rank, texts in enumerate(said()):
        assert len(texts) == (of_rank == 0 or (size > 2 and of_rank == odd)), "only where it helps"
        for text in texts:
            assert text.startswith("ringreduce: the ranks' parameters have drifted apart since step ")
            assert f"'0.weight' {where}" in text
            assert "docs/debugging.md" in text
            assert "more differ" not in text
    found = int(said()[0][0].partition("since step ")[2].split()[0])
    assert 40 < found <= 40 + WINDOWS
    before = f"(equal after step {found - WINDOWS})" if found > WINDOWS else "(equal before the first)"
    assert f"since step {found} at the latest {before}: " in said()[0][0]


@pytest.mark.quick
@several
def test_nothing_was_broadcast(rr, rank, said):
    torch.manual_seed(rank)
    job = Job(rr, nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 5)).named_parameters())
    job.agree()
    text = said()[0][0]
    assert "drifted apart before the first step: '0.weight' differs" in text
    assert "; 3 more differ: '0.bias', '1.weight', '1.bias'" in text
    assert "broadcast_parameters()" in text
    assert job.steps(2 * WINDOWS) == 0, "it is said once"
    assert sum(len(texts) for texts in said()) == 1


@several
@pytest.mark.usefixtures("error_mode")
def test_an_error_on_all_ranks(rr, rank):
    job = Job(rr, net())
    assert job.guard.mode == "error"
    job.agree()
    if rank == 0:
        job.parameters["1.bias"].data[2] = 17
    for _ in range(2):  # also if the program goes on
        with pytest.raises(rr.DriftError) as caught:
            job.steps(WINDOWS)
        assert "'1.bias' differs" in everywhere(rr, caught.value)


@several
def test_off(rr, rank, monkeypatch, said):
    monkeypatch.setattr(drift._core, "setting_texts", lambda: [("RINGREDUCE_DRIFT", "off")])
    job = Job(rr, {"p": torch.full((100,), float(rank))})
    job.agree()
    assert job.guard.mode == "off"
    assert job.steps(WINDOWS) == 0
    assert not said()[rank]


@several
@pytest.mark.usefixtures("error_mode")
@pytest.mark.parametrize("change", ["one ulp", "the sign of zero", "another NaN"])
def test_rounding_is_said_once_and_is_no_error(rr, rank, size, said, change):
    values = torch.linspace(-3, 3, 1000)
    values[7], values[8] = 0.0, torch.nan
    job = Job(rr, {"p": values})
    job.agree()
    if rank == size - 1:
        if change == "one ulp":
            values[:] = torch.nextafter(values, torch.tensor(9.0))
        elif change == "the sign of zero":
            values[7] = -0.0
        else:
            values.view(torch.int32)[8] ^= 1
    found = [job.steps(WINDOWS) for _ in range(8)]
    assert found[0] > 0
    assert sum(step > 0 for step in found) <= 4, "it looks less and less often"
    assert len(said()[0]) == 1
    assert "size of rounding" in said()[0][0]
    if rank == size - 1:
        values += 0.01
    with pytest.raises(rr.DriftError, match="'p' differs"):
        job.steps(16 * WINDOWS)


@several
def test_what_was_mended_in_time_is_not_said(rr, rank, said):
    """As where a program averages the weights after each step."""
    job = Job(rr, {"p": torch.zeros(100)})
    job.agree()
    for step in range(WINDOWS):
        job.parameters["p"][:] = rank + step
        job.guard.stepped()
        rr.broadcast_(job.parameters["p"], 0)
        assert job.reduce()
    assert not said()[rank]


@several
def test_weights_that_move_between_steps(rr, rank, said):
    """SAM moves them on each rank in its own way; they are as before when it takes its step."""
    job = Job(rr, net())
    for step in range(2 * WINDOWS):
        if step == 0:
            job.guard.began()
        for parameter in job.parameters.values():
            parameter.data += rank + 1
        if step == 0:
            job.agree()
        assert not job.reduce()
        for parameter in job.parameters.values():
            parameter.data.fill_(step)
        job.guard.stepped()
    assert not said()[rank]


@several
def test_other_storage_dtypes_and_layouts_on_the_way(rr, rank, said):
    model = make(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)))
    job = Job(rr, model.named_parameters())
    job.agree()
    changes = [
        lambda: model.double(),
        lambda: model.to(memory_format=torch.channels_last),
        lambda: model.bfloat16(),
        lambda: [p.data.set_(p.data.clone()) for p in model.parameters()],
        lambda: setattr(model[0].weight, "data", torch.ones(2, 3)),
    ]
    for change in changes:
        change()
        assert job.steps(70) == 0
    assert not said()[rank]
    if rank == 0:
        with torch.no_grad():
            model[1].weight[1, 2] *= 2
    assert job.steps(70) > 0


@several
def test_parameters_come_and_go(rr, rank, said):
    job = Job(rr, net())
    job.agree()
    assert job.steps(10) == 0
    job.parameters["new"] = torch.full((1000,), float(rank == 0))
    job.agree()
    assert "'new' differs" in said()[0][0]
    del job.parameters["0.weight"]
    assert job.steps(2 * WINDOWS) == 0


@several
def test_a_rank_leaves_a_step_out(rr, rank, size, said):
    job = Job(rr, net())
    job.agree()
    for step in range(2 * WINDOWS):
        if rank or step != 20:
            if step >= 20:
                continue_from(job, step)
            job.guard.stepped()
        job.reduce()
    first = said()[0][0]
    assert "steps taken: 20 on rank 0, 21 on rank" in first
    assert "All ranks take a step, or none does" in first


def continue_from(job: Job, step: int) -> None:
    for parameter in job.parameters.values():
        parameter.data += step


@several
def test_a_step_left_out_that_changes_nothing(rr, rank, said):
    job = Job(rr, net())
    job.agree()
    for step in range(3 * WINDOWS):
        if rank or step != 20:
            job.guard.stepped()
        found = job.reduce()
        assert step < 22 or not found, "all look at the same windows again"
    assert not said()[rank]


@several
def test_other_parameters_on_one_rank(rr, rank):
    job = Job(rr, {"p": torch.zeros(10), "q": torch.zeros(10 if rank else 11)})
    with pytest.raises(rr.RingreduceError, match=r"'q' is \(11,\) torch.float32 on rank"):
        job.agree()


@several
def test_a_process_set_names_global_ranks(rr, rank, size, said):
    if size == 2:
        pytest.skip("that set is the world")
    members = [size - 2, size - 1]
    process_set = rr.add_process_set(members)
    try:
        if rank in members:
            job = Job(rr, {"p": torch.full((10,), float(rank))}, process_set)
            job.agree()
        for of_rank, texts in enumerate(said()):
            assert len(texts) == (of_rank == members[0])
        assert f"'p' differs between rank {members[0]} and rank {members[1]} (10 of 10" in said()[members[0]][0]
    finally:
        rr.remove_process_set(process_set)


@several
def test_what_has_no_memory_is_left_alone(rr, rank, said):
    sparse = torch.eye(3).to_sparse()
    job = Job(rr, {"lazy": nn.LazyLinear(3).weight, "sparse": sparse, "meta": torch.empty(5, device="meta")})
    job.agree()
    assert job.steps(WINDOWS) == 0
    assert not said()[rank]


@several
def test_numbers_beyond_all_bounds(rr, rank, said):
    job = Job(rr, {"p": torch.tensor([1.0, torch.inf, torch.nan])})
    job.agree()
    assert job.steps(2 * WINDOWS) == 0
    if rank == 0:
        job.parameters["p"][0] = torch.nan
    assert job.steps(WINDOWS) > 0
    assert "(1 of 3 elements, a NaN or an infinity among them)" in said()[0][0]
