"""One parameter's place in the reduction, and how its gradient moves in and out of a bucket.

    autograd's gradient ──fill──► view in the bucket ──reduction──► deliver ──► p.grad
    a reduced p.grad that was not cleared ──► aside ──────────────── added ────────┘

Without compression the view is the gradient itself (`home`). With compression the view
has fewer bits, and `home` is a tensor of the parameter's own dtype.
"""

from __future__ import annotations

import enum

import torch
from torch import Tensor


class Kind(enum.IntEnum):
    """What is known about a parameter's gradients, on any rank. The larger one wins."""

    UNSEEN = 0  # no rank has had one: takes no room, only a presence element
    DENSE = 1
    SPARSE = 2


class Slot:
    """State of one parameter. `bucket` and `place` are where its presence element is."""

    __slots__ = (
        "arrived", "aside", "bucket", "home", "index", "kind", "name", "parameter", "pass_number",
        "place", "reduced", "view",
    )  # fmt: skip

    def __init__(self, index: int, name: str, parameter: Tensor) -> None:
        self.index = index
        self.name = name
        self.parameter = parameter
        self.kind = Kind.UNSEEN
        self.bucket = self.place = -1
        self.view: Tensor | None = None
        self.home: Tensor | None = None
        self.aside: Tensor | None = None  # a reduced gradient to which this step's is added
        self.reduced = False  # p.grad is the result of a reduction
        self.arrived = False  # the view holds this step's gradient
        self.pass_number = 0  # the backward pass in which the gradient came last

    def assign(self, bucket: int, place: int, view: Tensor | None) -> None:
        """Take a place in a new plan."""
        self.bucket, self.place, self.view, self.home = bucket, place, view, view
        if view is not None and view.dtype != self.parameter.dtype:
            self.home = torch.empty_like(self.parameter, requires_grad=False)

    def has_local_gradient(self) -> bool:
        """Whether p.grad holds something that was not reduced yet."""
        return self.parameter.grad is not None and not self.reduced

    def set_aside(self) -> None:
        """Before a gradient comes in: take a reduced one out of autograd's way."""
        self.aside, self.parameter.grad, self.reduced = self.parameter.grad, None, False

    def put_back(self) -> None:
        """Undo `set_aside`: no gradient came."""
        self.parameter.grad, self.aside, self.reduced = self.aside, None, True

    def save_home(self) -> None:
        """`home` is about to be overwritten: if it is what was set aside, keep a copy."""
        if self.aside is not None and self.aside is self.home:
            self.aside = self.home.clone()

    def gradient(self) -> Tensor | None:
        """p.grad, without the graph that backward(create_graph=True) gives it."""
        grad = self.parameter.grad
        return grad.detach() if grad is not None and grad.requires_grad else grad

    def fill(self) -> None:
        """Bring p.grad into the view."""
        view, grad = self.view, self.gradient()
        assert view is not None
        assert grad is not None
        if grad is not view:
            view.copy_(grad.to_dense() if grad.is_sparse else grad)
            self.settle_in_view()
        self.arrived = True

    def settle_in_view(self) -> None:
        """The view has the gradient: without compression it is p.grad from here on."""
        if self.home is self.view:
            self.parameter.grad = self.view

    def must_convert(self, present: bool) -> bool:
        """Whether the reduced gradient has to be brought from the view to `home`."""
        return present and self.home is not None and self.home is not self.view

    def fill_absent(self) -> None:
        """This rank has no gradient: zeros. A reduced one from before is set aside."""
        view, grad = self.view, self.parameter.grad
        self.aside = grad
        self.save_home()
        if view is not None:
            view.zero_()

    def deliver(self, present: bool) -> None:
        """After the reduction: p.grad becomes the result, if any rank had a gradient.

        `home` has it already (`must_convert`).
        """
        home = self.home
        if self.arrived and self.aside is None and home is self.view:  # p.grad is the view already
            self.reduced, self.arrived = True, False
            return
        if home is not None and self.view is not None:
            if present:
                if self.aside is not None:
                    home.add_(self.aside)
                self.parameter.grad = home
            elif self.aside is not None and self.parameter.grad is home:
                home.copy_(self.aside)
        self.finish()

    def deliver_sparse(self, merged: Tensor | None) -> None:
        """The same for a gathered gradient."""
        if merged is not None:
            self.parameter.grad = merged if self.aside is None else merged + self.aside
        self.finish()

    def finish(self) -> None:
        """End of a reduction for this parameter."""
        self.reduced = self.parameter.grad is not None
        self.aside = None
        self.arrived = False

    def clear(self) -> None:
        """The gradient was cleared."""
        self.reduced = self.arrived = False
        self.aside = None
