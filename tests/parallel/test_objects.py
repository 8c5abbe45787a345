"""Objects, parameters and optimizer state between ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import WORLD, Digest, raw

import ringreduce as rr

pytestmark = pytest.mark.once  # made of collectives that have tests of their own


@pytest.mark.smoke
def test_broadcast_object(rank, size):
    for root in {0, size - 1}:
        for k, obj in enumerate((None, 0, "text ä", b"", {"a": [1, (2, 3)]}, list(range(20_000)))):
            mine = obj if rank == root else f"rank {rank}"
            assert rr.broadcast_object(mine, root_rank=root, name=f"object {k}") == obj


def test_broadcast_object_leaves_the_roots_own(rank):
    mine = [1, 2]
    result = rr.broadcast_object(mine, root_rank=0)
    assert result == [1, 2]
    if rank == 0:
        assert result is mine


@pytest.mark.quick
def test_allgather_object(rank, size):
    assert rr.allgather_object(["x" * 1_000 * rank, rank]) == [["x" * 1_000 * r, r] for r in range(size)]
    assert rr.allgather_object(None, name="nothing") == [None] * size


class Unreadable:
    """Can be pickled, but not read on rank `at`."""

    def __init__(self, at: int) -> None:
        self.at = at

    def __reduce__(self) -> tuple[Any, ...]:
        return (read_unless, (self.at,))


def read_unless(rank: int) -> int:
    if rr.rank() == rank:
        raise OSError(f"rank {rank} cannot read")
    return rank


def assert_same_error(call: Callable[[], Any], *words: str) -> rr.RingreduceError:
    """The call raises one RingreduceError with the same text on all ranks, and the next call is in step."""
    with pytest.raises(rr.RingreduceError) as info:
        call()
    assert len(set(WORLD.allgather(str(info.value)))) == 1
    for word in words:
        assert word in str(info.value)
    assert rr.allgather_object(rr.rank()) == list(range(rr.size()))
    return info.value


def test_an_object_that_cannot_be_pickled(rank, size):
    culprit = size - 1
    mine = (n for n in range(3)) if rank == culprit else rank
    for call in (
        lambda: rr.broadcast_object(mine, culprit),
        lambda: rr.broadcast_object(mine, culprit, name="generator"),
        lambda: rr.allgather_object(mine),
        lambda: rr.allgather_object(mine, name="generator"),
    ):
        error = assert_same_error(call, f"rank {culprit}: ", "cannot be pickled", "generator")
        assert isinstance(error.__cause__, TypeError) == (rank == culprit)


def test_several_objects_that_cannot_be_pickled(rank, size):
    assert_same_error(lambda: rr.allgather_object(lambda: None), "rank 0: ", f"rank {size - 1}: ")


def test_an_object_that_cannot_be_read(rank, size):
    for at in {0, size - 1}:
        mine = Unreadable(at)
        error = assert_same_error(lambda mine=mine: rr.allgather_object(mine), f"rank {at}: the object of rank 0")
        assert isinstance(error.__cause__, OSError) == (rank == at)
    if size > 1:
        assert_same_error(lambda: rr.broadcast_object(Unreadable(1)), "rank 1: the object of rank 0", "cannot read")


@pytest.mark.quick
def test_broadcast_parameters(rank, size):
    root = size - 1
    torch.manual_seed(rank)
    model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))
    model(torch.randn(4, 7))  # running statistics differ by rank
    expected = WORLD.bcast({k: v.clone() for k, v in model.state_dict().items()}, root=root)
    addresses = {k: v.data_ptr() for k, v in model.state_dict().items()}

    rr.broadcast_parameters(model.state_dict(), root_rank=root)
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name
        assert value.data_ptr() == addresses[name], f"{name} has moved"
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_broadcast_parameters_takes_a_list(rank):
    model = torch.nn.Linear(3, 3)
    torch.nn.init.constant_(model.weight, float(rank))
    rr.broadcast_parameters(list(model.named_parameters()), root_rank=0)
    assert bool((model.weight == 0).all())
    tied = torch.full((3,), float(rank))
    rr.broadcast_parameters([("a", tied), ("b", tied)], root_rank=0)
    assert tied.tolist() == [0.0] * 3


def test_broadcast_parameters_takes_the_items_of_a_state_dict(rank):
    model = torch.nn.Linear(3, 3)
    torch.nn.init.constant_(model.weight, float(rank))
    rr.broadcast_parameters(model.state_dict().items(), root_rank=0)
    assert bool((model.weight == 0).all())


def odd_tensors(rank: int) -> dict[str, torch.Tensor]:
    """Of kinds that only buffers have; each is full of rank + 1."""
    full = torch.full((4, 3), float(rank + 1))
    return {
        "expanded": torch.full((1, 3), float(rank + 1)).expand(4, 3),
        "an expanded number": torch.tensor(float(rank + 1)).expand(2, 3),
        "windows": torch.full((9,), float(rank + 1)).unfold(0, 3, 1),
        "transposed": full.clone().t(),
        "sliced": full.clone()[::2, 1:],
        "float8": full.to(torch.float8_e4m3fn),
        "uint16": full.to(torch.uint16),
        "uint64": full.to(torch.uint64),
        "half complex": full.to(torch.complex32),
        "bool": full == 1,
        "nothing": torch.empty(0, 3),
        "a number": torch.tensor(rank + 1),
        "negated": (-full).to(torch.complex64).conj(),
    }


def test_broadcast_parameters_of_odd_kinds(rank):
    tensors, expected = odd_tensors(rank), odd_tensors(0)
    with torch.inference_mode():
        frozen = torch.full((3, 2), float(rank)).t()
    rr.broadcast_parameters({**tensors, "frozen": frozen, "none": None})
    for name, tensor in tensors.items():
        bits = [raw(t.resolve_conj()) for t in (tensor, expected[name])]
        assert bits[0] == bits[1], name
    assert frozen.tolist() == [[0.0] * 3] * 2


def bad_parameters() -> dict[str, tuple[Any, str]]:
    lazy = torch.nn.LazyLinear(3)
    return {
        "sparse": ({"a": torch.eye(3).to_sparse()}, "'a'.*dense.*sparse_coo"),
        "meta": ({"a": torch.ones(3, device="meta")}, "'a'.*meta"),
        "lazy": (lazy.state_dict(), "'bias' has no shape yet"),
        "quantized": ({"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8)}, "'a'.*quint8"),
        "zeros without memory": ({"a": torch._efficientzerotensor(3)}, "'a'.*without memory"),
        "extra state": ({"a": {"b": 1}}, "'a' is a dict"),
        "a number as a name": ({3: torch.ones(1)}, "each name a str"),
        "a generator": ((pair for pair in [("a", torch.ones(1))]), "params: .*generator"),
        "tensors alone": ([torch.ones(1)], "pairs"),
    }


@pytest.mark.parametrize("kind", bad_parameters())
def test_bad_parameters_on_one_rank(rank, size, kind):
    """The same error on all ranks, at once; if all make the mistake it is theirs: a ValueError."""
    params, words = bad_parameters()[kind]
    with pytest.raises(ValueError, match=words):
        rr.broadcast_parameters(params)
    if size == 1:
        return
    good = {"a": torch.full((3,), float(rank))}
    params = bad_parameters()[kind][0] if rank == 1 else good
    error = assert_same_error(lambda: rr.broadcast_parameters(params), "broadcast_parameters: rank 1: params: ")
    assert isinstance(error.__cause__, ValueError) == (rank == 1)
    assert good["a"].tolist() == [rank] * 3, "something was overwritten"


def test_parameters_that_differ_between_ranks(rank, size):
    if size == 1:
        pytest.skip("nobody to differ from")
    own = torch.full((2, 3), float(rank))
    first = rank == 0
    for mine, words in (
        ({"a" if first else "b": own}, ("'a' is float32 [2, 3] on rank(s) 0, absent", "'b' is absent")),
        ({"a": own if first else own.double()}, ("'a' is float32 [2, 3] on rank(s) 0, float64 [2, 3] on",)),
        ({"a": own if first else own[:1]}, ("'a' is float32 [2, 3] on rank(s) 0, float32 [1, 3] on",)),
        ({"a": own if first else own[:1].expand(2, 3)}, ("'a' is", "repeat memory on rank(s) 1")),
        ([("a", own), ("b", own)][:: 1 if first else -1], ("different orders",)),
    ):
        assert_same_error(lambda mine=mine: rr.broadcast_parameters(mine), *words)
    root = 0 if first else 1
    assert_same_error(lambda: rr.broadcast_parameters({"a": own}, root), "'root_rank' is 0 on rank(s) 0, 1 on")
    assert own.tolist() == [[rank] * 3] * 2


def test_the_same_name_twice(rank):
    """As of two models' parameters in one list."""
    tensors = [torch.full((2,), rank + k) for k in range(3)]
    rr.broadcast_parameters([("weight", tensor) for tensor in tensors])
    assert [tensor.tolist() for tensor in tensors] == [[k, k] for k in range(3)]


def test_optimizer_state_that_one_rank_cannot_take_or_load(rank, size):
    def refuse(*_arguments: Any) -> None:
        raise KeyError("no state today")

    culprit = size - 1
    _, optimizer = build(torch.optim.SGD, {"lr": 0.1, "momentum": 0.5}, seed=rank)
    if rank == culprit:
        hook = optimizer.register_state_dict_pre_hook(refuse)
    error = assert_same_error(lambda: rr.broadcast_optimizer_state(optimizer, culprit), f"rank {culprit}: ", "today")
    assert isinstance(error.__cause__, KeyError) == (rank == culprit)
    if rank == culprit:
        hook.remove()
        optimizer.register_load_state_dict_pre_hook(refuse)
    if size > 1:
        assert_same_error(lambda: rr.broadcast_optimizer_state(optimizer, 0), f"rank {culprit}: ", "today")


def test_broadcast_parameters_refuses(rank):
    model = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match="params"):
        rr.broadcast_parameters(model.named_parameters(), root_rank=0)
    with pytest.raises(ValueError, match="params"):
        rr.broadcast_parameters([model.weight], root_rank=0)
    with pytest.raises(ValueError, match="root_rank"):
        rr.broadcast_parameters(model.state_dict(), root_rank=1_000)


def optimizer_classes() -> list[type[torch.optim.Optimizer]]:
    found = [c for c in vars(torch.optim).values() if isinstance(c, type) and issubclass(c, torch.optim.Optimizer)]
    return sorted((c for c in found if c not in (torch.optim.Optimizer, torch.optim.LBFGS)), key=lambda c: c.__name__)


OPTIONS: dict[str, list[dict[str, Any]]] = {  # besides the defaults
    "SGD": [{"momentum": 0.9, "nesterov": True}, {"momentum": 0.5, "dampening": 0.1}],
    "Adam": [{"amsgrad": True, "betas": (0.8, 0.9)}, {"lr": torch.tensor(0.01)}],
    "AdamW": [{"foreach": False, "weight_decay": 0.2}],
    "RMSprop": [{"momentum": 0.9, "centered": True}],
}
VARIANTS = [(c, options) for c in optimizer_classes() for options in [{}, *OPTIONS.get(c.__name__, [])]]


def build(cls: type[torch.optim.Optimizer], options: dict[str, Any], seed: int) -> tuple[torch.nn.Module, Any]:
    torch.manual_seed(seed)
    model: torch.nn.Module = torch.nn.Embedding(6, 4, sparse=cls is torch.optim.SparseAdam)
    if cls is not torch.optim.SparseAdam:
        model = torch.nn.Sequential(torch.nn.Linear(4, 6, bias=False), torch.nn.Linear(6, 2, bias=False))
    parameters = list(model.parameters())
    groups = [{"params": parameters[:1]}]
    if len(parameters) > 1:  # a second group with options of its own
        groups.append({"params": parameters[1:], "weight_decay": 0.125})
    return model, cls(groups, **copy.deepcopy(options))


def steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for step in range(count):
        optimizer.zero_grad()
        if isinstance(model, torch.nn.Embedding):
            model(torch.tensor([1, 3, step % 6])).square().sum().backward()
        else:
            model(torch.full((3, 4), 0.1 * (step + 1))).square().sum().backward()
        optimizer.step()


def plain(tree: Any) -> Any:
    """A state_dict as something that can be compared: tensors as (dtype, values), types kept."""
    if isinstance(tree, torch.Tensor):
        return ("tensor", str(tree.dtype), tree.tolist())
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(plain(value) for value in tree)
    return (type(tree), tree)


@pytest.mark.parametrize(
    ("cls", "options"), VARIANTS, ids=lambda value: getattr(value, "__name__", None) or ",".join(value)
)
def test_broadcast_optimizer_state(rank, size, cls, options):
    """Only the root has made steps, others none or another number; all end with the root's state."""
    root = size - 1
    model, optimizer = build(cls, options, seed=rank)
    steps(model, optimizer, 3 if rank == root else rank % 2)
    if rank != root:
        for group in optimizer.param_groups:
            if not isinstance(group["lr"], torch.Tensor):
                group["lr"] *= 2
    parameters = {name: value.detach().clone() for name, value in model.named_parameters()}
    expected = WORLD.bcast(plain(optimizer.state_dict()), root=root)

    rr.broadcast_optimizer_state(optimizer, root_rank=root)
    assert plain(optimizer.state_dict()) == expected
    for name, value in model.named_parameters():
        assert torch.equal(value, parameters[name]), f"{name} was changed"

    rr.broadcast_parameters(model.state_dict(), root_rank=root)
    steps(model, optimizer, 2)  # the state is usable, and the same
    digest = Digest()
    digest.add(*model.parameters())
    digest.assert_same_everywhere()


def test_broadcast_optimizer_state_when_nobody_has_any(rank):
    _, optimizer = build(torch.optim.AdamW, {"lr": 0.5 if rank == 0 else 0.25}, seed=0)
    rr.broadcast_optimizer_state(optimizer, root_rank=0)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.state_dict()["state"] == {}


def test_lbfgs_is_refused():
    optimizer = torch.optim.LBFGS(torch.nn.Linear(2, 2).parameters())
    with pytest.raises(ValueError, match="LBFGS"):
        rr.broadcast_optimizer_state(optimizer, root_rank=0)


def test_keyword_names_of_programs_written_for_horovod(rank):
    model, optimizer = build(torch.optim.SGD, {"lr": 0.1}, seed=rank)
    rr.broadcast_optimizer_state(optimizer, root_rank=0, model=model)
    rr.broadcast_parameters(params=model.state_dict(), root_rank=0)
    assert rr.broadcast_object(obj=rank, root_rank=0, name="keyword") == 0
    assert rr.allgather_object(obj=1, name="keyword") == [1] * rr.size()
