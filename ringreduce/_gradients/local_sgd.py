"""Local SGD: each rank steps on its own gradients, and every few steps the parameters are averaged.

    step       1    2    3    4              5    6    7    8
    rank 0   ──────────────────► ┐        ┌──────────────────► ┐
                                 ├─ mean ─┤                    ├─ mean ─► ...
    rank 1   ──────────────────► ┘        └──────────────────► ┘

(Stich, "Local SGD Converges Fast and Communicates Little", 2019.) Gradients are plain torch's: nothing is hooked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ringreduce._gradients.exchange import GradientExchange
from ringreduce._gradients.names import optimizer_name
from ringreduce._gradients.options import AllParameters, Named, Options
from ringreduce._ops import agreement, check, submit
from ringreduce.compression import Compression
from ringreduce.reduction import ReduceOp

# Options that say how gradients are reduced, as they are where nothing was asked for.
_OF_GRADIENTS = {
    "compression": Compression.none, "op": ReduceOp.Average, "gradient_predivide_factor": 1.0, "num_groups": 0,
    "sparse_as_dense": False,
}  # fmt: skip


@dataclass(frozen=True)
class LocalSGD:
    """For `DistributedOptimizer(..., exchange=LocalSGD(period))`: parameters are averaged instead of gradients.

    Each rank takes `period` steps on gradients of its own, and then the parameters that were trained in them are
    replaced by their mean over the process set: 1/period of the communication, and ranks wait for each other that
    much less often. The optimizer's state and the model's buffers stay each rank's own. Between two averages the
    ranks' parameters differ: call `optimizer.synchronize()` on all ranks, which averages at once, before a
    checkpoint or an evaluation. One rank alone is plain torch, bit for bit.

    To begin with gradients that are averaged (post-local SGD), wrap the plain optimizer twice: first without
    `exchange`, and after the first epochs with it; its state goes on.

    Args:
        period: number of steps, the same on all ranks. ValueError if it is below 1.

    DistributedOptimizer raises ValueError for options that say how gradients are reduced. RingreduceError on all
    ranks, at the first average, where period or parameters differ.
    """

    period: int

    def __post_init__(self) -> None:
        if check.index("period", self.period) < 1:
            raise ValueError(f"period: expected 1 or more steps, got {self.period}")

    def __call__(self, named: Sequence[Named], options: Options, all_parameters: AllParameters) -> GradientExchange:
        """The exchange of one optimizer."""
        for option, unset in _OF_GRADIENTS.items():
            if getattr(options, option) != unset:
                raise ValueError(f"{option}: says how gradients are reduced, which LocalSGD does not do")
        return PeriodicAveraging(self.period, options, all_parameters)


class PeriodicAveraging(GradientExchange):
    """The exchange of one optimizer.

    Args:
        period: in steps.
        all_parameters: of the optimizer now.
    """

    def __init__(self, period: int, options: Options, all_parameters: AllParameters) -> None:
        self._period = period
        self._set = options.process_set
        self._all_parameters = all_parameters
        self._name = optimizer_name(options.process_set)
        self._steps = 0
        self._trained: set[str] = set()  # since the last average: frozen parameters must not change, to the bit

    def step(self, optimizer: torch.optim.Optimizer, run: Callable[[], Any]) -> Any:
        """The optimizer's own, on this rank's gradients; then, if it is time, the average."""
        self._trained.update(name for name, parameter in self._all_parameters() if parameter.requires_grad)
        result = run()
        self._steps += 1
        if self._steps % self._period == 0:
            self._average()
        return result

    def synchronize(self) -> bool:
        """Average the parameters now. The next periodic average comes when it would have come."""
        self._average()
        return False

    def _average(self) -> None:
        """The ranks compare each time which parameters it is about: it depends on what each has trained since."""
        named = [(name, parameter) for name, parameter in self._all_parameters() if name in self._trained]
        self._trained.clear()
        if self._set.size() == 1:
            return
        said = [("the period", str(self._period))]
        said += [(name, f"{tuple(parameter.shape)} {parameter.dtype}") for name, parameter in named]
        agreement.require_same("the ranks average different parameters", said, None, self._set)
        if named:
            parameters = [parameter.detach() for _, parameter in named]
            submit.allreduce(parameters, True, f"{self._name}.average", ReduceOp.Average, 1.0, 1.0, self._set).wait()
