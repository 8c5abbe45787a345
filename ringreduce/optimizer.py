"""DistributedOptimizer: an optimizer whose gradients are reduced over all ranks.

It is an instance of a subclass of the optimizer's own class and shares its state,
param_groups and defaults objects, so everything that works on an optimizer works on it.
What the ranks exchange is `_gradients`'; here is only what the optimizer's methods add.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import operator
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor

from ringreduce._gradients.averaging import Averaging
from ringreduce._gradients.exchange import GradientExchange, MakeExchange
from ringreduce._gradients.options import Options, check_groups, check_passes, check_reduction, named_parameters_of
from ringreduce._ops.compiled import untraced
from ringreduce._runtime import running
from ringreduce._runtime.process_set import ProcessSet, global_process_set
from ringreduce.compression import Compression, Compressor
from ringreduce.errors import RingreduceError
from ringreduce.reduction import ReduceOp


class DistributedMixin(torch.optim.Optimizer):
    """What a wrapped optimizer does besides what its own class does."""

    _ringreduce_plain: type[torch.optim.Optimizer]  # the optimizer's own class
    _ringreduce_source: torch.optim.Optimizer  # the optimizer that was wrapped
    _ringreduce_options: Options
    _ringreduce_make: MakeExchange
    _ringreduce_names: list[str]
    _ringreduce_parameters: list[Tensor]  # as param_groups had them last, in the order of the names
    _ringreduce_exchange: GradientExchange | None  # None outside the process set: trains locally
    _ringreduce_synchronized = False  # synchronize() was called since the last step
    _ringreduce_skip = False  # under skip_synchronize()

    def synchronize(self) -> None:
        """Reduce what is still local, and wait.

        Only needed after passes under `no_sync()`, as reductions are complete when
        `backward()` returns. Follow it with `step()` under `skip_synchronize()`.
        """
        exchange = self._ringreduce_exchange
        self._ringreduce_synchronized = exchange is None or exchange.synchronize()

    @contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        """Within, `step()` reduces nothing: `synchronize()` was called before."""
        before, self._ringreduce_skip = self._ringreduce_skip, True
        try:
            yield
        finally:
            self._ringreduce_skip = before

    def no_sync(self) -> AbstractContextManager[None]:
        """Backward passes within only accumulate; the next one outside reduces the sum."""
        exchange = self._ringreduce_exchange
        return nullcontext() if exchange is None else exchange.no_sync()

    @untraced
    def step(self, *args: Any, **kwargs: Any) -> Any:
        """One step of the optimizer, after the reduction of what is still local. Arguments are the optimizer's own.

        With a closure, gradients are reduced in its backward pass, and its loss with the optimizer's operation, so
        that a line search decides alike on all ranks. Warns if `synchronize()` was called before and this is not
        within `skip_synchronize()`. RingreduceError if another DistributedOptimizer has taken a parameter over.
        """
        if self._ringreduce_synchronized and not self._ringreduce_skip:
            warnings.warn(
                "step() after synchronize() outside of optimizer.skip_synchronize(): gradients "
                "are reduced already; write 'with optimizer.skip_synchronize(): optimizer.step()'",
                stacklevel=2,
            )
        self._ringreduce_synchronized = False
        exchange = self._ringreduce_exchange
        if "step" in vars(self._ringreduce_source):  # a scheduler made before watches that one
            self._ringreduce_source._opt_called = True  # type: ignore[attr-defined]
        if exchange is None:
            return super().step(*args, **kwargs)
        self._ringreduce_follow()
        if exchange.superseded:
            raise RingreduceError(
                "step() of a DistributedOptimizer some of whose parameters are in a newer one, which reduces their "
                "gradients now; use the newer one"
            )
        args, kwargs = _with_closure(self._ringreduce_plain, exchange, args, kwargs)
        if not self._ringreduce_skip:
            exchange.before_step()
        result = exchange.step(self, functools.partial(super().step, *args, **kwargs))
        if running.current is not None:
            running.current.engine.count_step()
        return result

    # torch wraps `step` of a class to run hooks, whenever an optimizer is made, loaded or copied: the plain class's
    # step runs them.
    step.hooked = True  # type: ignore[attr-defined]

    @untraced
    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Clear the gradients. AssertionError while a reduction is in flight."""
        if self._ringreduce_exchange is not None:
            self._ringreduce_follow()
            self._ringreduce_exchange.cleared()
        super().zero_grad(*args, **kwargs)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, on all ranks the same."""
        super().add_param_group(param_group)
        at = len(self.param_groups) - 1
        added = [(f"group{at}.{i}", parameter) for i, parameter in enumerate(self.param_groups[at]["params"])]
        self._ringreduce_names += [name for name, _ in added]
        self._ringreduce_parameters += [parameter for _, parameter in added]
        if self._ringreduce_exchange is not None:
            self._ringreduce_exchange.add(added)
            _take_over(added, self._ringreduce_exchange)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As the optimizer's own. A scheduler that was made before wrapping goes on with what is loaded."""
        super().load_state_dict(state_dict)
        vars(self._ringreduce_source).update(state=self.state, param_groups=self.param_groups)

    def _ringreduce_follow(self) -> None:
        """Parameters may have been exchanged in param_groups by hand: those that are there are reduced."""
        now = [parameter for group in self.param_groups for parameter in group["params"]]
        known = self._ringreduce_parameters
        if len(now) == len(known) and all(map(operator.is_, now, known)):
            return
        names = dict(zip(map(id, known), self._ringreduce_names, strict=True))
        used, count = set(names.values()), itertools.count(len(known))
        for parameter in now:
            if id(parameter) not in names:
                names[id(parameter)] = next(name for name in (f"exchanged.{i}" for i in count) if name not in used)
        self._ringreduce_parameters = now
        self._ringreduce_names = [names[id(parameter)] for parameter in now]
        if self._ringreduce_exchange is not None:
            before = set(map(id, known))
            new = [(names[id(p)], p) for p in now if id(p) not in before]
            self._ringreduce_exchange.follow(now)
            self._ringreduce_exchange.add(new)
            _take_over(new, self._ringreduce_exchange)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles as the plain optimizer, which loads without ringreduce."""
        plain = self._ringreduce_plain
        return object.__new__, (plain,), self.__getstate__()

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.optim.Optimizer:
        """A DistributedOptimizer over copies of the parameters."""
        plain = object.__new__(self._ringreduce_plain)
        state = self.__getstate__()
        plain.__setstate__(copy.deepcopy(state, memo))
        parameters = [p for group in plain.param_groups for p in group["params"]]
        named = list(zip(self._ringreduce_names, parameters, strict=True))
        result = memo[id(self)] = _wrap(plain, named, self._ringreduce_options, self._ringreduce_make)
        return result


def _with_closure(
    plain: type[torch.optim.Optimizer], exchange: GradientExchange, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of step(), the closure among them replaced by one that leaves reduced gradients and loss."""
    names = [name for name in inspect.signature(plain.step).parameters if name != "self"]
    at = names.index("closure") if "closure" in names else 0
    if callable(kwargs.get("closure")):
        return args, {**kwargs, "closure": _exchanging(kwargs["closure"], exchange)}
    if at < len(args) and callable(args[at]):
        return (*args[:at], _exchanging(args[at], exchange), *args[at + 1 :]), kwargs
    return args, kwargs


def _exchanging(closure: Callable[[], Any], exchange: GradientExchange) -> Callable[[], Any]:
    return lambda: exchange.closure_called(closure())


# Which optimizer a parameter belongs to: the newest.
# By the parameters' ids, which are theirs as long as the exchange lives (weak references would forbid swap_tensors()).
_owners: dict[int, weakref.ref[GradientExchange]] = {}


def _take_over(named: Sequence[tuple[str, Tensor]], exchange: GradientExchange) -> None:
    ours = weakref.ref(exchange)
    for _, parameter in named:
        owner = _owners.get(id(parameter))
        older = owner() if owner is not None else None
        if older is not None and older is not exchange and not older.superseded:
            older.supersede()
        _owners[id(parameter)] = ours
    weakref.finalize(exchange, _forget, [id(parameter) for _, parameter in named], ours).atexit = False


def _forget(ids: Sequence[int], exchange: weakref.ref[GradientExchange]) -> None:
    for key in ids:
        if _owners.get(key) is exchange:
            del _owners[key]


def _wrap(
    optimizer: torch.optim.Optimizer, named: list[tuple[str, Tensor]], options: Options, make: MakeExchange
) -> torch.optim.Optimizer:
    plain = type(optimizer)
    members = {"__module__": plain.__module__, "__doc__": plain.__doc__}
    wrapper = cast(type[DistributedMixin], type(plain.__name__, (DistributedMixin, plain), members))
    result = object.__new__(wrapper)
    vars(result).update(vars(optimizer))
    vars(result).pop("step", None)  # a scheduler's patch is bound to the other object
    result._ringreduce_plain = plain
    result._ringreduce_source = optimizer
    result._ringreduce_options = options
    result._ringreduce_make = make
    result._ringreduce_names = [name for name, _ in named]
    result._ringreduce_parameters = [parameter for _, parameter in named]
    result._ringreduce_exchange = None
    if options.process_set.included():
        result._ringreduce_exchange = make(named, options, _named_now(result))
        _take_over(named, result._ringreduce_exchange)
    return result


def _named_now(optimizer: DistributedMixin) -> Callable[[], list[tuple[str, Tensor]]]:
    """All parameters of the optimizer, whenever asked; holds it weakly."""
    alive = weakref.ref(optimizer)

    def named() -> list[tuple[str, Tensor]]:
        one = alive()
        if one is None:
            return []
        return list(zip(one._ringreduce_names, one._ringreduce_parameters, strict=True))

    return named


def DistributedOptimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, Tensor]] | None = None,
    compression: type[Compressor] = Compression.none,
    backward_passes_per_step: int = 1,
    op: ReduceOp | int = ReduceOp.Average,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: int | Sequence[Sequence[Tensor]] | None = None,
    sparse_as_dense: bool = False,
    process_set: ProcessSet = global_process_set,
    exchange: MakeExchange = Averaging,
) -> torch.optim.Optimizer:
    """Wrap an optimizer so that its gradients are reduced over the ranks of a process set.

    The result is an instance of the optimizer's class with the same state, param_groups
    and defaults. Gradients are complete when `backward()` returns, so gradient clipping and
    GradScaler need no special call. docs/gradients.md has a table of what a program may do with them.
    A parameter that is in another DistributedOptimizer is reduced by the newer one; the older one raises at `step()`.

    Args:
        optimizer: any torch optimizer; use the returned one in its place.
        named_parameters: (name, parameter) pairs, for messages; all or none are named.
        compression: how gradients travel between hosts; no effect on a set within one host.
        backward_passes_per_step: gradients of so many passes are summed before they are
            reduced; a shorter last group works. See also `no_sync()` of the result.
        op: Average or Sum.
        gradient_predivide_factor: f divides by f before the sum and multiplies by f/size
            after it; Average only.
        num_groups: number of buckets to aim at; 0 chooses by size.
        groups: as num_groups, or lists of parameters, of which only the number is used:
            buckets follow the order in which gradients arrive.
        sparse_as_dense: reduce sparse gradients as dense ones instead of gathering them.
        process_set: ranks that train together; others train on their own.
        exchange: what the ranks exchange: gradients before each step, or as `LocalSGD` says.

    A parameter without a gradient on this rank counts as zero; one without a gradient on any
    rank keeps `grad = None`. Sparse gradients are gathered and stay sparse. Parameters are
    the same on all ranks, or the first `backward()` raises a RingreduceError that names them.

    Raises ValueError for bad names, groups, op or factors, before `init` too; AssertionError
    from `zero_grad()` during a reduction, and from `backward()` after more passes than
    `backward_passes_per_step` (if above 1) since the gradients were cleared.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if isinstance(optimizer, DistributedMixin):
        raise ValueError("optimizer: got one that is a DistributedOptimizer already")
    named = named_parameters_of(optimizer, named_parameters)
    options = Options(
        compression=compression,
        backward_passes_per_step=check_passes(backward_passes_per_step),
        op=check_reduction(op, gradient_predivide_factor),
        gradient_predivide_factor=float(gradient_predivide_factor),
        num_groups=check_groups(num_groups, groups, [parameter for _, parameter in named]),
        sparse_as_dense=sparse_as_dense,
        process_set=process_set,
    )
    return _wrap(optimizer, named, options, exchange)
