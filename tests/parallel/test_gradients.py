"""The tables of docs/gradients.md, row by row: N ranks come to what one process comes to on the whole batch."""

from __future__ import annotations

import copy
import pickle
import re
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import ringreduce as rr
from ringreduce._gradients.backward_pass import BackwardPass
from ringreduce._gradients.phases import Phase
from ringreduce.errors import PlanLeftError

pytestmark = pytest.mark.once  # about torch's side of the optimizer

Train = Callable[[nn.Module, torch.optim.Optimizer, Callable[[Tensor], Tensor]], None]
mse = nn.functional.mse_loss


def mlp(seed: int = 1, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).to(dtype)


def data(steps: int, rows: int = 12) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    make = torch.randn
    return [
        (make(rows, 8, generator=generator).double(), make(rows, 4, generator=generator).double()) for _ in range(steps)
    ]


def share(whole: Tensor) -> Tensor:
    return whole.tensor_split(rr.size())[rr.rank()]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def flat(tensors: Any) -> Tensor:
    return torch.cat(
        [t.detach().to_dense().double().flatten() if t.is_sparse else t.detach().double().flatten() for t in tensors]
    )


def same_everywhere(model: nn.Module) -> None:
    mine = flat(model.parameters())
    assert (rr.allgather(mine.unsqueeze(0)) == mine).all(), "the ranks have different parameters"


def check(
    train: Train, make: Callable[[nn.Module], Any] = sgd, build: Callable[[], nn.Module] = mlp, rtol: float = 1e-9,
    **options: Any,
) -> None:  # fmt: skip
    """`train` on the ranks' shares and on whole batches: the same parameters, and gradients where there are any."""
    model, reference = build(), build()
    optimizer = rr.DistributedOptimizer(make(model), model.named_parameters(), **options)
    train(model, optimizer, share)
    train(reference, make(reference), lambda whole: whole)
    torch.testing.assert_close(flat(model.parameters()), flat(reference.parameters()), rtol=rtol, atol=rtol / 10)
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad.to(p.grad.dtype), rtol=rtol, atol=rtol / 10, check_stride=False)
    same_everywhere(model)


def step_with(act: Callable[[nn.Module], None], steps: int = 3) -> Train:
    """Steps with `act` between backward() and step()."""

    def train(model, optimizer, part):
        for x, y in data(steps):
            optimizer.zero_grad()
            mse(model(part(x)), part(y)).backward()
            act(model)
            optimizer.step()

    return train


def raises_everywhere(error: type[Exception], pattern: str, call: Callable[[], Any]) -> None:
    """On every rank, and not by a time-out; with one rank alone there is nobody to disagree with."""
    with pytest.raises(error, match=pattern) as caught:
        call()
    assert not isinstance(caught.value, rr.RingreduceTimeoutError)


# Between a backward pass and the next.


@pytest.mark.quick
def test_plain():
    check(step_with(lambda model: None))


CLEAR = {
    "optimizer": lambda m, o: o.zero_grad(),
    "in place": lambda m, o: o.zero_grad(set_to_none=False),
    "model": lambda m, o: m.zero_grad(),
    "model in place": lambda m, o: m.zero_grad(set_to_none=False),
    "None": lambda m, o: [setattr(p, "grad", None) for p in m.parameters()],
    "data": lambda m, o: [p.grad.data.zero_() for p in m.parameters() if p.grad is not None],
    "detach": lambda m, o: [p.grad.detach_().zero_() for p in m.parameters() if p.grad is not None],
}


@pytest.mark.quick
@pytest.mark.parametrize("how", CLEAR)
@pytest.mark.parametrize("op", [rr.Average, rr.Sum])
def test_cleared(how, op, size):
    def train(model, optimizer, part):
        for x, y in data(4):
            CLEAR[how](model, optimizer)
            (mse(model(part(x)), part(y)) / (size if op is rr.Sum and part is share else 1)).backward()
            optimizer.step()

    check(train, op=op)


@pytest.mark.quick
@pytest.mark.parametrize("op", [rr.Average, rr.Sum])
def test_again(op, size):
    def train(model, optimizer, part):
        scale = size if op is rr.Sum and part is share else 1
        for i, (x, y) in enumerate(data(6)):
            (mse(model(part(x)), part(y)) / scale).backward()
            grad = model[0].weight.grad
            (mse(model(2 * part(x)), part(y)) / scale).backward()
            assert model[0].weight.grad is grad, "plain torch accumulates in place"
            if i % 2:
                optimizer.step()
                optimizer.zero_grad()

    check(train, op=op)


def held_back(optimizer: torch.optim.Optimizer) -> Any:
    return optimizer.no_sync() if hasattr(optimizer, "no_sync") else warnings.catch_warnings()


@pytest.mark.quick
def test_no_sync():
    def train(model, optimizer, part):
        for i, (x, y) in enumerate(data(4)):
            optimizer.zero_grad()
            for k in range(3):
                if k == 2 and i % 2:
                    mse(model(part(x)), part(y)).backward()
                else:
                    with held_back(optimizer):
                        mse(model((k + 1) * part(x)), part(y)).backward()
            optimizer.step()

    check(train)


def test_short_group():
    def train(model, optimizer, part):
        for passes in (3, 3, 2, 1, 3):
            optimizer.zero_grad()
            for x, y in data(passes):
                mse(model(part(x)), part(y)).backward()
            optimizer.step()

    check(train, backward_passes_per_step=3)


EDIT = {
    "in place": lambda p: p.grad.mul_(0.5),
    "replaced": lambda p: setattr(p, "grad", p.grad * 0.5),
    "data": lambda p: setattr(p.grad, "data", p.grad.data * 0.5),
    "set_": lambda p: p.grad.set_(p.grad * 0.5),
    "clone": lambda p: setattr(p, "grad", p.grad.clone()),
    "detach_": lambda p: p.grad.detach_().mul_(0.5),
}


@pytest.mark.parametrize("how", EDIT)
@pytest.mark.parametrize("clear", ["optimizer", "in place", "data"])
def test_edited(how, clear):
    def train(model, optimizer, part):
        for x, y in data(5):
            CLEAR[clear](model, optimizer)
            mse(model(part(x)), part(y)).backward()
            for p in model.parameters():
                EDIT[how](p)
            nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            optimizer.step()

    check(train)


@pytest.mark.parametrize("clear", [True, False])
def test_assigned(clear):
    def train(model, optimizer, part):
        for x, y in data(4):
            if clear:
                optimizer.zero_grad()
            grads = torch.autograd.grad(mse(model(part(x)), part(y)), list(model.parameters()))
            for p, g in zip(model.parameters(), grads, strict=True):
                p.grad = g
            optimizer.step()

    check(train)


def test_assigned_below():
    def train(model, optimizer, part):
        for i, (x, y) in enumerate(data(4)):
            if i % 2:
                optimizer.zero_grad()
            grads = torch.autograd.grad(mse(model(part(x)), part(y)), list(model.parameters()))
            for p, g in zip(model.parameters(), grads, strict=True):
                p.grad = g
            mse(model(part(x) * 3), part(y)).backward()
            optimizer.step()

    check(train)


def test_strides():
    def transpose(model):
        model[0].weight.grad = model[0].weight.grad.t().contiguous().t()
        model[2].weight.grad.data = model[2].weight.grad.t().contiguous().t()

    check(step_with(transpose))


@pytest.mark.parametrize("what", ["gradients", "views", "numpy", "both"])
@pytest.mark.parametrize("clear", ["optimizer", "None", "model"])
def test_held(what, clear):
    if what == "numpy":
        pytest.importorskip("numpy")

    def train(model, optimizer, part):
        kept = []
        for x, y in data(5):
            CLEAR[clear](model, optimizer)
            mse(model(part(x)), part(y)).backward()
            optimizer.step()
            for p in model.parameters():
                held = [p.grad] if what in ("gradients", "both") else []
                held += [p.grad[0]] if what in ("views", "both") else []
                held += [p.grad.numpy()] if what == "numpy" else []
                kept += [(h, copy.deepcopy(h)) for h in held]
        assert all((h == c).all() for h, c in kept)

    check(train)


def test_shared_memory():
    def train(model, optimizer, part):
        for i, (x, y) in enumerate(data(5)):
            if i == 2:
                model.share_memory()
            if i == 3:
                model[0].weight.grad.share_memory_()
            if i != 4:
                optimizer.zero_grad()
            mse(model(part(x)), part(y)).backward()
            optimizer.step()

    check(train)


@pytest.mark.parametrize("early", [True, False])
def test_hooks(early):
    def hook(model):
        model[0].weight.register_hook(lambda g: g * 3)
        model[2].weight.register_post_accumulate_grad_hook(lambda p: (p.grad.mul_(2), None)[1])
        model[2].bias.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", p.grad * 2))
        return model

    def train(model, optimizer, part):
        if not early:
            hook(model)
        step_with(lambda model: None)(model, optimizer, part)

    check(train, build=lambda: hook(mlp()) if early else mlp(), num_groups=3)


def test_parts():
    def train(model, optimizer, part):
        for i, (x, y) in enumerate(data(6)):
            optimizer.zero_grad(set_to_none=i < 3)
            out = model(part(x))
            mse(out, part(y)).backward(inputs=list(model[i % 2 * 2].parameters()), retain_graph=True)
            loss = mse(out, part(y))
            loss.backward(retain_graph=True)
            (2 * loss).backward(retain_graph=True)
            torch.autograd.backward([loss, out.square().mean()])
            optimizer.step()

    check(train)


class Within(torch.autograd.Function):
    """Calls something in backward()."""

    @staticmethod
    def forward(ctx, x, call):
        ctx.call = call
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        with torch.enable_grad():
            ctx.call()
        return grad, None


@pytest.mark.parametrize("clear", [True, False])
@pytest.mark.parametrize("where", ["node", "hook"])
def test_nested(clear, where):
    def train(model, optimizer, part):
        for x, y in data(4):
            if clear:
                optimizer.zero_grad()
            hidden = torch.tanh(model[0](part(x)))

            def inner(x=x):
                torch.tanh(model[0](part(x) * 2)).square().mean().backward()

            if where == "node":
                hidden = Within.apply(hidden, inner)
            else:
                hidden.register_hook(lambda g, inner=inner: torch.enable_grad()(inner)())
            mse(model[2](hidden), part(y)).backward()
            optimizer.step()

    check(train, num_groups=4)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints(reentrant):
    def train(model, optimizer, part):
        for x, y in data(4):
            optimizer.zero_grad()
            hidden = checkpoint(model[0], part(x).requires_grad_(), use_reentrant=reentrant)
            mse(checkpoint(model[2], torch.tanh(hidden), use_reentrant=reentrant), part(y)).backward()
            optimizer.step()

    check(train, num_groups=4)


def test_autograd_grad():
    def train(model, optimizer, part):
        for x, y in data(3):
            optimizer.zero_grad()
            mse(model(part(x)), part(y)).backward()
            loss = mse(model(part(x)), part(y))
            grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
            torch.autograd.grad(sum(g.square().sum() for g in grads), list(model.parameters()))
            optimizer.step()

    check(train)


# The model and the optimizer.


CONVERT = {
    "double": lambda m: m.double(),
    "bfloat16 and back": lambda m: m.bfloat16().double(),
    "channels_last": lambda m: m.to(memory_format=torch.channels_last),
    "vector": lambda m: nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(m.parameters()).detach(), m.parameters()
    ),
    "same": lambda m: m.to("cpu"),
    "swapped": lambda m: m.float().double(),
}


def convnet() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).double()


@pytest.mark.parametrize("how", CONVERT)
def test_converted(how):
    def train(model, optimizer, part):
        generator = torch.Generator().manual_seed(1)
        for i in range(5):
            x = torch.randn(12, 3, 8, 8, generator=generator).double()
            if i == 2:
                CONVERT[how](model)
            optimizer.zero_grad()
            model(part(x)).square().mean().backward()
            optimizer.step()

    torch.__future__.set_swap_module_params_on_conversion(how == "swapped")
    try:
        check(train, build=convnet)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def swap_storage(model: nn.Module) -> None:
    """Other memory under the same tensors, with the same numbers, in all ways that leave the tensor where it is."""
    for at, parameter in enumerate(model.parameters()):
        if parameter.grad is None:
            continue
        if at % 2:
            parameter.grad.data = parameter.grad.data.clone()
        else:
            parameter.grad.set_(parameter.grad.clone())


# What rounds would round a rank's share, or the whole batch: these lose nothing.
MOVE = {
    **{how: CONVERT[how] for how in ("channels_last", "vector", "same")},
    "from single": lambda m: m.double(),
    "storage": swap_storage,
}
# Also what rounds, alike on all ranks.
ROUND = MOVE | {"there and back": lambda m: m.bfloat16().double()}


@pytest.mark.parametrize("accumulate", ["no_sync", "group"])
@pytest.mark.parametrize("how", MOVE)
def test_converted_while_accumulating(how, accumulate):
    """Between the passes of one step, with gradients that are still local."""

    def train(model, optimizer, part):
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            for last in (False, True):
                x = torch.randn(12, 3, 8, 8, generator=generator).to(next(model.parameters()).dtype)
                quiet = accumulate == "no_sync" and not last and hasattr(optimizer, "no_sync")
                with optimizer.no_sync() if quiet else warnings.catch_warnings():
                    model(part(x)).square().mean().backward()
                if not last:
                    MOVE[how](model)
            optimizer.step()
            optimizer.zero_grad()

    single = how == "from single"
    options = {"backward_passes_per_step": 2} if accumulate == "group" else {}
    build = (lambda: convnet().float()) if single else convnet
    check(train, build=build, rtol=1e-4 if single else 1e-9, **options)


@pytest.mark.parametrize("op", [rr.Average, rr.Sum])
@pytest.mark.parametrize("how", ROUND)
def test_converted_beside_a_delivered_part(how, op, size):
    """Between the passes of a step whose gradients are added to those that an incomplete group has left."""

    def train(model, optimizer, part):
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            for at in range(3):
                x = torch.randn(12, 3, 8, 8, generator=generator).to(next(model.parameters()).dtype)
                (model(part(x)).square().mean() / (size if op is rr.Sum and part is share else 1)).backward()
                if at == 0:
                    optimizer.step()
                elif at == 1:
                    ROUND[how](model)
            optimizer.step()
            optimizer.zero_grad()

    single = how == "from single"
    build = (lambda: convnet().float()) if single else convnet
    rtol = {"from single": 1e-4, "there and back": 0.05}.get(how, 1e-9)
    check(train, build=build, rtol=rtol, op=op, backward_passes_per_step=2)


def test_edited_and_then_converted(size):
    """What is converted is known by its values; those were changed before."""
    if size == 1:
        pytest.skip("nothing is set aside on one rank")
    model = convnet()
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = rr.DistributedOptimizer(plain, model.named_parameters(), backward_passes_per_step=2)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for at in range(2):
        model(x).square().mean().backward()
        if at == 0:
            optimizer.step()
    for parameter in model.parameters():
        parameter.grad.mul_(0.5)
    model.float().double()
    raises_everywhere(rr.RingreduceError, "changed in place", lambda: model(x).square().mean().backward())


@pytest.mark.parametrize("how", ROUND)
def test_converted_after_zero_grad(how, size):
    """What the last step has used is gone: the gradient that is converted is this rank's own."""

    def train(model, optimizer, part):
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            for at in range(2):
                x = torch.randn(12, 3, 8, 8, generator=generator).to(next(model.parameters()).dtype)
                (model(part(x)).square().mean() / (size if part is share else 1)).backward()
                if at == 0:
                    ROUND[how](model)
            optimizer.step()
            optimizer.zero_grad()

    single = how == "from single"
    build = (lambda: convnet().float()) if single else convnet
    rtol = {"from single": 1e-4, "there and back": 0.05}.get(how, 1e-9)
    check(train, build=build, rtol=rtol, op=rr.Sum, backward_passes_per_step=2)


def test_exchanged():
    def train(model, optimizer, part):
        for i, (x, y) in enumerate(data(8)):
            if i == 2:
                old, new = model[2].weight, nn.Parameter(model[2].weight.detach() * 0.5)
                group = optimizer.param_groups[0]["params"]
                group[next(at for at, p in enumerate(group) if p is old)] = new
                model[2].weight = new
            if i == 5:
                model.extra = nn.Linear(4, 4, dtype=torch.float64)
                nn.init.eye_(model.extra.weight)
                nn.init.zeros_(model.extra.bias)
                optimizer.add_param_group({"params": list(model.extra.parameters())})
            optimizer.zero_grad()
            out = model[2](model[1](model[0](part(x))))
            mse(model.extra(out) if i >= 5 else out, part(y)).backward()
            optimizer.step()

    check(train, make=lambda m: torch.optim.SGD(m.parameters(), lr=0.1))


def test_unused(rank, size):
    layers = nn.ModuleList(nn.Linear(3, 3, bias=False) for _ in range(size + 1))
    for layer in layers:
        nn.init.ones_(layer.weight)
    optimizer = rr.DistributedOptimizer(torch.optim.SGD(layers.parameters(), lr=0.1), layers.named_parameters())
    for step in range(4):
        optimizer.zero_grad()
        layers[(rank + step) % size].weight.sum().backward()
        if step == 3:  # assigned by one rank, of a parameter that nobody has used
            layers[size].weight.grad = torch.ones(3, 3) * size if rank == 0 else None
        optimizer.step()
        for layer in list(layers)[:size]:
            torch.testing.assert_close(layer.weight.grad, torch.full((3, 3), 1 / size))
        assert step == 3 or layers[size].weight.grad is None
    assert (layers[size].weight.grad == 1).all()
    same_everywhere(layers)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("kind", ["tensor", "float"])
def test_closures(search, kind):
    def train(model, optimizer, part):
        x, y = data(1, rows=24)[0]
        for _ in range(3):

            def closure():
                optimizer.zero_grad()
                loss = mse(model(part(x)), part(y))
                loss.backward()
                losses.append(float(loss))  # noqa: B023
                return loss if kind == "tensor" else loss.item()

            losses: list[float] = []
            optimizer.step(closure)
            calls.append(len(losses))

    calls: list[int] = []
    make = lambda m: torch.optim.LBFGS(m.parameters(), lr=0.5, max_iter=6, line_search_fn=search)  # noqa: E731
    check(train, make=make)
    assert calls[:3] == calls[3:], "the line search has branched otherwise"


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimisation, as it is written everywhere: two passes a step."""

    def __init__(self, parameters, lr=0.1, rho=0.05):
        super().__init__(parameters, {"lr": lr, "rho": rho})

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        ps = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in ps]).norm()
        for p in ps:
            self.state[p]["moved"] = p.grad * (self.param_groups[0]["rho"] / norm)
            p.add_(self.state[p]["moved"])
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for g in self.param_groups:
            for p in g["params"]:
                p.sub_(self.state[p]["moved"])
                p.sub_(p.grad, alpha=g["lr"])

    def step(self, closure=None):
        self.first_step(zero_grad=True)
        torch.enable_grad()(closure)()
        self.second_step()


def test_sam():
    def train(model, optimizer, part):
        for x, y in data(4):
            optimizer.zero_grad()
            mse(model(part(x)), part(y)).backward()
            optimizer.step(lambda x=x, y=y: mse(model(part(x)), part(y)).backward())

    check(train, make=lambda m: Sam(m.parameters()))


@pytest.mark.parametrize("after", ["nothing", "load", "broadcast", "deepcopy"])
def test_step_hooks(after):
    model = mlp()
    optimizer = rr.DistributedOptimizer(sgd(model), model.named_parameters())
    calls: list[str] = []
    if after == "load":
        optimizer.load_state_dict(optimizer.state_dict())
    elif after == "broadcast":
        rr.broadcast_optimizer_state(optimizer, 0)
    elif after == "deepcopy":
        model, optimizer = copy.deepcopy([model, optimizer])
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    step_with(lambda model: None)(model, optimizer, share)
    assert calls == ["before", "after"] * 3
    plain = pickle.loads(pickle.dumps(optimizer))
    assert type(plain) is torch.optim.SGD


class Odd(torch.optim.SGD):
    def zero_grad(self):
        super().zero_grad(set_to_none=True)

    def step(self, closure, loss):
        self.seen = loss
        closure()
        return super().step()


def test_signatures():
    def train(model, optimizer, part):
        for x, y in data(3):
            optimizer.zero_grad()
            optimizer.step(lambda x=x, y=y: mse(model(part(x)), part(y)).backward(), "loss")
            assert optimizer.seen == "loss"

    check(train, make=lambda m: Odd(m.parameters(), lr=0.1))


def test_scheduler():
    def train(model, optimizer, part):
        scheduler = schedulers[id(model)]
        for i, (x, y) in enumerate(data(6)):
            if i == 3:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            optimizer.zero_grad()
            mse(model(part(x)), part(y)).backward()
            optimizer.step()
            scheduler.step()

    def make(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
        schedulers[id(model)] = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        return optimizer

    schedulers: dict[int, Any] = {}
    check(train, make=make)


def test_wrapped_again():
    model, reference = mlp(), mlp()
    older = rr.DistributedOptimizer(sgd(model), model.named_parameters())
    x, y = data(1)[0]
    for _ in range(3):
        optimizer = rr.DistributedOptimizer(sgd(model), model.named_parameters())
        mse(model(share(x)), share(y)).backward()
        optimizer.step()
        optimizer.zero_grad()
        plain = sgd(reference)
        mse(reference(x), y).backward()
        plain.step()
        plain.zero_grad()
    torch.testing.assert_close(flat(model.parameters()), flat(reference.parameters()))
    with pytest.raises(rr.RingreduceError, match="newer one"):
        older.step()


def test_threads():
    results: dict[int, float | str] = {}
    models = [(mlp(k + 1), mlp(k + 1)) for k in range(2)]  # here: threads share torch's generator

    def work(k: int) -> None:
        try:
            model, reference = models[k]
            optimizer, plain = rr.DistributedOptimizer(sgd(model), model.named_parameters()), sgd(reference)
            for x, y in data(10):
                if (rr.rank() + k) % 2:
                    time.sleep(0.002)
                for mod, opt, part in ((model, optimizer, share), (reference, plain, lambda whole: whole)):
                    opt.zero_grad()
                    mse(mod(part(x)), part(y)).backward()
                    opt.step()
            results[k] = float((flat(model.parameters()) - flat(reference.parameters())).abs().max())
        except Exception as error:
            results[k] = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(isinstance(result, float) and result < 1e-9 for result in results.values()), results


@pytest.mark.pair
def test_compiled():
    import torch._dynamo
    from torch._dynamo import compiled_autograd

    def whole(model, optimizer, part):
        torch._dynamo.reset()

        @torch.compile(backend="eager")
        def step(x, y):
            optimizer.zero_grad()
            mse(model(x), y).backward()
            optimizer.step()

        for x, y in data(3):
            step(part(x), part(y))

    def backward(model, optimizer, part):
        torch._dynamo.reset()
        for x, y in data(3):
            optimizer.zero_grad()
            loss = mse(model(part(x)), part(y))
            with compiled_autograd._enable(lambda graph: torch.compile(graph, backend="eager")):
                loss.backward()
            optimizer.step()

    check(whole)
    check(backward)


def test_scaler(rank):
    def train(model, optimizer, part):
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        for i, (x, y) in enumerate(data(4)):
            optimizer.zero_grad()
            factor = float("inf") if i == 1 and (part is not share or rank == 0) else 1.0
            scaler.scale(mse(model(part(x)), part(y)) * factor).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()

    check(train)


# Errors.


class Boom(torch.autograd.Function):
    """Raises in backward() where it is told to."""

    armed = False

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        if Boom.armed:
            raise RuntimeError("out of memory, says the test")
        return grad


def fragile() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.ModuleList([nn.Linear(8, 300), nn.Linear(300, 300), nn.Linear(300, 4)]).double()


def run(model: nn.Module, x: Tensor) -> Tensor:
    return model[2](torch.tanh(model[1](Boom.apply(torch.tanh(model[0](x))))))


@pytest.mark.parametrize("clear", ["optimizer", "model", "None", "nothing"])
@pytest.mark.parametrize("at", [0, 2])
def test_failed_everywhere(clear, at):
    def train(model, optimizer, part):
        for i, (x, y) in enumerate(data(5)):
            if clear != "nothing" or i != at + 1:
                CLEAR["optimizer" if clear == "nothing" else clear](model, optimizer)
            elif part is not share or rr.size() == 1:
                model.zero_grad()  # plain torch has partial gradients
            Boom.armed = i == at
            try:
                mse(run(model, part(x)), part(y)).backward()
            except RuntimeError as error:
                assert "says the test" in str(error)  # noqa: PT017
                continue
            finally:
                Boom.armed = False
            optimizer.step()

    check(train, build=fragile, num_groups=4)


@pytest.mark.quick
@pytest.mark.parametrize("fails", [(0,), (2,), (0, 1), (2, 3, 4)])
@pytest.mark.parametrize("optimizers", [1, 2])
def test_failed_on_one(rank, size, fails, optimizers):
    if size == 1:
        pytest.skip("needs 2 ranks")
    model = fragile()
    parts = [list(model.named_parameters())[k::optimizers] for k in range(optimizers)]
    wrapped = [
        rr.DistributedOptimizer(torch.optim.SGD([p for _, p in part], lr=0.1), part, num_groups=4) for part in parts
    ]
    for i, (x, y) in enumerate(data(6)):
        for optimizer in wrapped:
            optimizer.zero_grad()
        Boom.armed = i in fails and rank == size - 1
        backward = mse(run(model, share(x)), share(y)).backward
        if i not in fails:
            backward()
        elif Boom.armed:
            with pytest.raises(RuntimeError, match="says the test"):
                backward()
        else:
            raises_everywhere(PlanLeftError, f"rank {size - 1} has left the gradient step.*says the test", backward)
        Boom.armed = False
        if i not in fails:
            for optimizer in wrapped:
                optimizer.step()
    same_everywhere(model)


def test_failed_beside(rank, size, monkeypatch):
    """The rank that fails has no part in the other optimizer, of which one rank hears late."""
    if size < 3:
        pytest.skip("needs 3 ranks")
    others = rr.add_process_set(list(range(size - 1)))
    one, two = fragile(), mlp()
    optimizers = [rr.DistributedOptimizer(torch.optim.SGD(one.parameters(), lr=0.1), one.named_parameters())]
    if rank < size - 1:
        named = [(f"beside.{name}", p) for name, p in two.named_parameters()]
        optimizers.append(rr.DistributedOptimizer(torch.optim.SGD(two.parameters(), lr=0.1), named, process_set=others))
    launched, launch = threading.local(), BackwardPass.launch

    def late_launch(one: BackwardPass) -> None:
        """Of the first optimizer the launch comes before the failure, of the second one after it was told."""
        if rank == 0 and i == 2 and getattr(launched, "first", False):
            time.sleep(1)
        launch(one)
        launched.first = one.step.phase is Phase.REDUCING

    monkeypatch.setattr(BackwardPass, "launch", late_launch)
    for i, (x, y) in enumerate(data(5)):
        for optimizer in optimizers:
            optimizer.zero_grad()
        Boom.armed = i == 2 and rank == size - 1
        loss = mse(run(one, share(x)), share(y))
        if rank < size - 1:
            loss = loss + mse(two(x * (rank + 1)), y)
        if i != 2:
            loss.backward()
            if rank < size - 1:
                expected = [
                    torch.autograd.grad(mse(two(x * (r + 1)), y), list(two.parameters())) for r in range(size - 1)
                ]
                for p, *parts in zip(two.parameters(), *expected, strict=True):
                    assert torch.allclose(p.grad, torch.stack(parts).mean(0))
            for optimizer in optimizers:
                optimizer.step()
        elif Boom.armed:
            time.sleep(0.3)
            with pytest.raises(RuntimeError, match="says the test"):
                loss.backward()
        else:
            time.sleep(0.6 if rank else 0)
            why = f"rank {size - 1} has left the gradient step.*says the test"
            raises_everywhere(PlanLeftError, why, loss.backward)
        Boom.armed = False
    same_everywhere(one)
    rr.remove_process_set(others)


def test_lost_passes(rank, size):
    if size == 1:
        pytest.skip("needs 2 ranks")
    model = fragile()
    optimizer = rr.DistributedOptimizer(sgd(model), model.named_parameters())
    for i, (x, y) in enumerate(data(4)):
        optimizer.zero_grad()
        Boom.armed = i == 2 and rank == 0
        try:
            with optimizer.no_sync():
                mse(run(model, share(x)), share(y)).backward()
        except RuntimeError as error:
            assert "says the test" in str(error)  # noqa: PT017
        finally:
            Boom.armed = False
        backward = mse(run(model, share(x)), share(y)).backward
        if i == 2:
            raises_everywhere(rr.RingreduceError, "rank 0: RuntimeError: out of memory, says the test", backward)
        else:
            backward()
            optimizer.step()
    same_everywhere(model)


@pytest.mark.parametrize("how", ["double", "channels_last", "requires_grad", "group"])
@pytest.mark.parametrize("at", [0, 2])
def test_converted_on_one(rank, size, how, at):
    if size == 1:
        pytest.skip("needs 2 ranks")
    model = convnet().float()
    optimizer = rr.DistributedOptimizer(sgd(model), model.named_parameters())
    for i in range(at + 1):
        optimizer.zero_grad()
        if i == at and rank == size - 1:
            if how == "double":
                model.double()
            elif how == "channels_last":
                model.to(memory_format=torch.channels_last)
            elif how == "requires_grad":
                optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
            else:
                optimizer.param_groups[0]["params"].append(nn.Parameter(torch.ones(1)))
                optimizer.zero_grad()
        loss = model(torch.ones(1, 3, 8, 8, dtype=model[0].weight.dtype)).square().mean()
        if i == at:
            raises_everywhere(rr.RingreduceError, "different parameters", loss.backward)
        else:
            loss.backward()
            optimizer.step()


def test_skipped_step(rank, size):
    if size == 1:
        pytest.skip("needs 2 ranks")
    model = mlp()
    optimizer = rr.DistributedOptimizer(sgd(model), model.named_parameters())
    x, y = data(1)[0]
    for i in range(4):
        optimizer.zero_grad()
        backward = mse(model(share(x)), share(y)).backward
        if i == 2:
            raises_everywhere(rr.RingreduceError, f"rank 0: 1, rank 1: {2 if size > 1 else 1}", backward)
        else:
            backward()
        if i != 1 or rank:
            optimizer.step()


def test_extra_pass(rank, size):
    if size == 1:
        pytest.skip("needs 2 ranks")
    model = mlp()
    optimizer = rr.DistributedOptimizer(sgd(model), model.named_parameters())
    x, y = data(1)[0]
    for i in range(3):
        optimizer.zero_grad()
        backward = mse(model(share(x)), share(y)).backward
        why = r"step\(\) on rank\(s\) 0 has to reduce what a pass under no_sync\(\) has added"
        if i == 2 and rank:
            raises_everywhere(rr.RingreduceError, why, backward)
            continue
        backward()
        if i == 1 and rank == 0:
            with optimizer.no_sync():
                mse(model(share(x)), share(y)).backward()
            raises_everywhere(rr.RingreduceError, why, optimizer.step)
            break
        optimizer.step()


@pytest.mark.parametrize("how", ["clip", "unscale"])
@pytest.mark.parametrize("accumulate", ["no_sync", "group"])
def test_changed_while_local(rank, size, how, accumulate):
    if size == 1:
        pytest.skip("needs 2 ranks")
    model = mlp()
    options = {"backward_passes_per_step": 2} if accumulate == "group" else {}
    optimizer = rr.DistributedOptimizer(sgd(model), model.named_parameters(), **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    x, y = data(1)[0]

    def one_pass():
        with optimizer.no_sync() if accumulate == "no_sync" else warnings.catch_warnings():
            scaler.scale(mse(model(share(x)), share(y))).backward()

    def change():
        if how == "clip":
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        else:
            scaler.unscale_(optimizer)

    one_pass()
    change()
    raises_everywhere(rr.RingreduceError, "call optimizer.synchronize", optimizer.step)
    scaler.update(64.0)
    optimizer.zero_grad()
    one_pass()
    optimizer.synchronize()
    change()
    with optimizer.skip_synchronize():
        optimizer.step()
    same_everywhere(model)


def test_rewritten(size):
    if size == 1:
        pytest.skip("needs 2 ranks")
    model = mlp()
    optimizer = rr.DistributedOptimizer(sgd(model), model.named_parameters())
    x, y = data(1)[0]
    mse(model(share(x)), share(y)).backward()
    optimizer.step()
    grads = torch.autograd.grad(mse(model(share(x)), share(y)), list(model.parameters()))
    for p, g in zip(model.parameters(), grads, strict=True):
        p.grad.copy_(g)
    raises_everywhere(rr.RingreduceError, "written to since", optimizer.step)
    optimizer.zero_grad()
    mse(model(share(x)), share(y)).backward()
    optimizer.step()
    same_everywhere(model)


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_hook_on_top(size, early, how):
    if size == 1:
        pytest.skip("needs 2 ranks")
    model = mlp()
    seen: list[float] = []
    model[2].weight.register_post_accumulate_grad_hook(lambda p: seen.append(float(p.grad.norm())))  # may look
    hook = (lambda p: (p.grad.mul_(2), None)[1]) if how == "in place" else lambda p: setattr(p, "grad", p.grad * 2)
    if early:
        model[0].weight.register_post_accumulate_grad_hook(hook)
    optimizer = rr.DistributedOptimizer(sgd(model), model.named_parameters())
    if not early:
        model[0].weight.register_post_accumulate_grad_hook(hook)
    x, y = data(1)[0]
    mse(model(share(x)), share(y)).backward()
    raises_everywhere(rr.RingreduceError, "post-accumulate hook of '0.weight'", mse(model(share(x)), share(y)).backward)
    optimizer.zero_grad()
    mse(model(share(x)), share(y)).backward()
    optimizer.step()
    same_everywhere(model)


def test_create_graph(size):
    model = mlp()
    optimizer = rr.DistributedOptimizer(sgd(model), model.named_parameters())
    x, y = data(1)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = mse(model(share(x)), share(y))
        if size == 1:
            loss.backward(create_graph=True)
            assert model[0].weight.grad.requires_grad
            optimizer.zero_grad()
            return
        raises_everywhere(rr.RingreduceError, "create_graph", lambda: loss.backward(create_graph=True))
    mse(model(share(x)), share(y)).backward()
    optimizer.step()
    same_everywhere(model)


# Beside the tables.


def test_every_row_has_its_test():
    text = (Path(__file__).parents[2] / "docs" / "gradients.md").read_text()
    rows = re.findall(r"\| (\w+) \|$", text, re.MULTILINE)
    rows = [row for row in rows if row != "test"]
    assert len(rows) > 35
    assert [row for row in rows if f"test_{row}" not in globals()] == []


def test_wrapping_many_parameters():
    parameters = [(f"p{i}", nn.Parameter(torch.zeros(1))) for i in range(20_000)]
    begun = time.process_time()
    rr.DistributedOptimizer(torch.optim.SGD([p for _, p in parameters], lr=0.1), parameters)
    assert time.process_time() - begun < 15, "46 s where names are searched one by one; 0.3 s otherwise"
