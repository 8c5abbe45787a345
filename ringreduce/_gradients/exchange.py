"""The seam between an optimizer and what its ranks exchange.

    backward()             hooks.Hooked: a gradient comes, has come       an exchange that wants gradients
                           backward.Listener: the pass ends, or fails     as they come subscribes to these
    optimizer.step()       before_step(), step()
    zero_grad(), ...       cleared(), add(), follow(), supersede(), no_sync()

DistributedOptimizer knows this interface only. An exchange may reduce gradients before the step (averaging.py) or
parameters after it (local_sgd.py). It may also do the step in a way of its own, as `step` is given the optimizer and
its class's step, to be called when and on what the exchange likes: on changed `param_groups`, on memory to which it
has moved the parameters when it was made, several times, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ringreduce._gradients.options import AllParameters, Named, Options


class GradientExchange:
    """Of one optimizer, over a process set of which we are a member. What is not overridden does nothing.

    All ranks call the methods at the same points of their programs. An exchange must not hold its optimizer.
    """

    superseded = False  # another optimizer has taken a parameter over

    def supersede(self) -> None:
        """One has: do nothing more."""
        self.superseded = True

    def add(self, named: Sequence[Named]) -> None:
        """More parameters."""

    def follow(self, parameters: Sequence[Tensor]) -> None:
        """The optimizer has these parameters now; new ones are added by `add`."""

    def no_sync(self) -> AbstractContextManager[None]:
        """Backward passes within only accumulate."""
        return nullcontext()

    def cleared(self) -> None:
        """zero_grad() is being called. AssertionError while something is in flight."""

    def before_step(self) -> None:
        """See to it that p.grad is what the step is to use."""

    def synchronize(self) -> bool:
        """The program asks for the exchange, at a point of its own. Whether `before_step` is not to follow."""
        self.before_step()
        return True

    def closure_called(self, loss: Any) -> Any:
        """A closure of step() was called, and has left gradients; returns the loss on which the step may decide."""
        return loss

    def step(self, optimizer: torch.optim.Optimizer, run: Callable[[], Any]) -> Any:
        """Do the step, of which `run` is that of the optimizer's own class, and return what that returns."""
        return run()


# What makes one for an optimizer that is wrapped, or a copy. ValueError for options that have no meaning in it.
MakeExchange = Callable[[Sequence[Named], Options, AllParameters], GradientExchange]
