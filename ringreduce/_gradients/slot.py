"""One parameter's gradient: whose it is, and where it lies.

A gradient is *local* (this rank's own: autograd made it, or the program assigned it) or *delivered*
(the result of a reduction, the same on all ranks). What tells them apart is memory, never objects: a
p.grad is the delivered one only while it is the same storage, offset, dtype and layout that was
handed out, and that memory is kept alive here, so that its address cannot come to mean another one.

`view` is this rank's part of the bucket. What is handed out is an alias of it, or of `home`, memory
of the slot's own, where the bucket has another dtype or may not be handed out (arena.py).

edits.py sees what a program has done to a gradient, delivery.py brings it into the bucket and out of it.
"""

from __future__ import annotations

import enum

import torch
from torch import Tensor

from ringreduce._gradients.holders import Watched


class Kind(enum.IntEnum):
    """What is known about a parameter's gradients, on any rank. The larger one wins."""

    UNSEEN = 0  # no rank has had one: takes no room, only a mark
    DENSE = 1
    SPARSE = 2


def same_memory(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same elements: address, dtype and layout."""
    if tensor.layout is not other.layout or tensor.dtype is not other.dtype or tensor.shape != other.shape:
        return False
    if tensor.layout is torch.strided:
        return tensor.data_ptr() == other.data_ptr() and tensor.stride() == other.stride()
    return tensor.is_sparse and tensor._values().data_ptr() == other._values().data_ptr()


def layout_of(parameter: Tensor) -> tuple[object, ...]:
    """What a bucket's place for a gradient is made for; it may change under a parameter."""
    return parameter.dtype, parameter.stride(), tuple(parameter.shape)


class Slot:
    """State of one parameter. `bucket` and `place` are where its presence mark is.

    Where a rank is `alone`, nothing is ever set aside: what is in p.grad is its own, and stays what autograd and
    the program make of it.
    """

    __slots__ = (
        "alone", "appeared", "aside", "bucket", "came", "content", "delivered", "handed", "home", "index", "kind",
        "late", "layout", "local", "moved", "name", "noted", "parameter", "place", "placed", "saved", "version", "view",
        "was_delivered", "watched",
    )  # fmt: skip

    def __init__(self, index: int, name: str, parameter: Tensor) -> None:
        self.index = index
        self.alone = False
        self.name = name
        self.parameter = parameter
        self.kind = Kind.UNSEEN
        self.bucket = self.place = -1
        self.content = parameter._cdata  # what lies under the parameter, and has its hooks
        self.layout: tuple[object, ...] = ()
        self.view: Tensor | None = None
        self.home: Watched | None = None
        self.handed: Tensor | None = None  # the memory that was delivered last
        self.aside: Tensor | None = None  # a delivered gradient to which this step's is added
        self.saved: Tensor | None = None  # its values, where the view is the same memory
        self.delivered = False  # since the last step() or zero_grad(): the same on all ranks
        self.was_delivered = False  # before the gradients came that are local now
        self.local = False  # p.grad has gradients of backward passes that were not reduced yet
        self.placed = False  # the view holds this step's gradient
        self.moved = False  # p.grad was set aside, and nothing has come yet
        self.late = False  # p.grad came again when its bucket was under way already
        self.appeared = False  # a rank has a gradient, and there is no place for it yet
        self.came = 0  # the backward pass in which the gradient came last
        self.watched: int | None = None  # a sample of what hooks of the program must leave as it is
        self.version = -1  # of a delivered p.grad when the optimizer had used it
        self.noted: tuple[Tensor, int] | None = None  # a local p.grad after the last pass, and its sample

    def reset(self) -> None:
        """A new plan is made for the parameter as it is now."""
        self.assign(-1, -1)
        self.layout = layout_of(self.parameter)

    def assign(self, bucket: int, place: int) -> None:
        """Take a place in a new plan."""
        self.bucket, self.place = bucket, place
        self.view = self.home = None
        self.placed = False

    def was_swapped(self) -> bool:
        """Whether torch.utils.swap_tensors() has put something without hooks under the parameter."""
        return bool(self.content != self.parameter._cdata)

    # Whose is p.grad?

    def is_delivered(self) -> bool:
        """Whether p.grad is, or was made from, the result of a reduction."""
        grad = self.parameter.grad
        if grad is None or self.local or self.placed or self.alone:
            return False
        return self.delivered or (self.handed is not None and same_memory(grad, self.handed))

    def is_local(self) -> bool:
        """Whether p.grad holds something that was not reduced yet."""
        return self.parameter.grad is not None and not self.is_delivered()

    def in_view(self) -> bool:
        """Whether p.grad is this rank's part of the bucket."""
        grad = self.parameter.grad
        return grad is not None and self.view is not None and same_memory(grad, self.view)

    def keeps(self) -> tuple[Tensor | None, ...]:
        """The aliases by which memory that p.grad had is known again."""
        return self.handed, self.noted and self.noted[0]

    # A backward pass

    def before_gradient(self) -> bool:
        """A gradient is about to be accumulated. Whether a delivered one was taken out of its way."""
        if self.moved:
            return False
        grad = self.parameter.grad
        if grad is None:  # the program has cleared it
            self.aside, self.local = None, False
        elif self.is_delivered():
            self.aside, self.parameter.grad, self.moved = grad, None, True
        return self.moved

    def step(self) -> None:
        """The optimizer has used p.grad."""
        grad = self.parameter.grad
        self.version = grad._version if self.delivered and grad is not None else -1
        self.delivered = False

    def has_come(self) -> None:
        """p.grad has the gradient."""
        if not self.local:
            self.was_delivered = self.delivered
        self.local, self.moved, self.delivered = True, False, False
        self.noted = None

    def put_back(self) -> None:
        """No gradient came after `before_gradient` (autograd.grad() does that): undo it."""
        if self.moved:
            self.parameter.grad, self.aside, self.moved = self.aside, None, False

    def gradient(self) -> Tensor | None:
        """p.grad without a graph."""
        grad = self.parameter.grad
        return grad.detach() if grad is not None and grad.requires_grad else grad

    # The end of a reduction

    def settle(self) -> None:
        """Nothing is under way, nothing is local."""
        self.aside = self.saved = None
        self.local = self.placed = self.moved = self.late = False
        self.watched = None
        self.noted = None

    def clear(self) -> None:
        """The gradient is being cleared: nothing of it counts any more."""
        self.settle()
        self.delivered = False
        self.handed, self.version = None, -1
