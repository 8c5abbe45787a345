"""One parameter's gradient: whose it is, and where it lies.

A gradient is *local* (this rank's own: autograd made it, or the program assigned it) or *delivered*
(the result of a reduction, the same on all ranks). What tells them apart is memory, never objects: a
p.grad is the delivered one only while it is the same storage, offset, dtype and layout that was
handed out, and that memory is kept alive here, so that its address cannot come to mean another one.

    local gradient ──place──► view in the bucket ──reduction──► deliver ──► p.grad, an alias
    a delivered p.grad, not cleared: set aside ──────────────────── added ────┘

`view` is this rank's part of the bucket. What is handed out is an alias of it, or of `home`, memory
of the slot's own, where the bucket has another dtype or may not be handed out (arena.py).
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import torch
from torch import Tensor

from ringreduce import _core
from ringreduce._gradients.holders import Watched
from ringreduce.errors import RingreduceError

_SAMPLED = 64  # values


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


def _sample(gradient: Tensor) -> int:
    """Changes with whatever scales a gradient: a digest of some of its values; on a GPU the count of changes."""
    if gradient.device.type != "cpu":
        return gradient._version
    values = gradient._values() if gradient.is_sparse else gradient
    step = max(1, values.numel() // _SAMPLED)
    sample = values.flatten()[::step].contiguous()
    return _core.digest([(sample.data_ptr(), sample.nbytes)])[0]


def layout_of(parameter: Tensor) -> tuple[object, ...]:
    """What a bucket's place for a gradient is made for; it may change under a parameter."""
    return parameter.dtype, parameter.stride(), parameter.shape


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
        self.noted: tuple[Tensor, int] | None = None  # a local p.grad at the end of the last pass, and its sample

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

    def note(self) -> None:
        """At the end of a pass that only accumulates: what is done to a local p.grad from now on is seen."""
        grad = self.gradient()
        self.noted = (grad, _sample(grad)) if self.local and grad is not None else None

    def was_edited(self) -> bool:
        """Whether a local p.grad was changed in place since then, or replaced while a part of it is set aside."""
        noted, grad = self.noted, self.parameter.grad
        if noted is None or grad is None:
            return False
        edited = _sample(grad) != noted[1] if same_memory(grad, noted[0]) else self.aside is not None
        if edited:
            self.noted = None
        return edited

    def was_rewritten(self) -> bool:
        """Whether the memory of a delivered gradient was written to after the step that used it.

        Nobody can tell whether that is local. Zeros are: the gradient was cleared.
        """
        grad = self.parameter.grad
        if grad is None or self.delivered or self.handed is None or self.version < 0 or self.local or self.placed:
            return False
        if grad._version == self.version or not same_memory(grad, self.handed):
            return False
        self.handed, self.version = None, -1
        return bool((grad._values() if grad.is_sparse else grad).count_nonzero() > 0)

    def was_converted(self) -> bool:
        """Whether the model was converted, and with it a p.grad that the last step has used."""
        kept = self.version >= 0 and self.parameter.grad is not None and not self.delivered
        return kept and self.layout != layout_of(self.parameter)

    def step(self) -> None:
        """The optimizer has used p.grad."""
        grad = self.parameter.grad
        self.version = grad._version if self.delivered and grad is not None else -1
        self.delivered = False

    def watch(self, gradient: Tensor | None) -> None:
        """From now on hooks of the program are not to edit the gradient: they would see only a part of p.grad."""
        others = self.parameter._post_accumulate_grad_hooks or ()
        watching = self.aside is not None and len(others) > 1 and gradient is not None
        self.watched = _sample(gradient) if watching and gradient is not None else None

    def check_hooks(self) -> None:
        """RingreduceError if one has."""
        watched, self.watched = self.watched, None
        grad = self.gradient()
        if watched is not None and (grad is None or _sample(grad) != watched):
            raise RingreduceError(
                f"a post-accumulate hook of {self.name!r} has changed p.grad, of which it sees only what this backward "
                "pass adds to the gradient that the last one has left reduced: clear gradients between the passes, or "
                "run all but the last one within optimizer.no_sync()"
            )

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

    def place_in_view(self, hand_out: bool) -> None:
        """Bring p.grad into the view. With `hand_out` it lies there from then on."""
        view, grad = self.view, self.gradient()
        assert view is not None
        assert grad is not None
        if not same_memory(grad, view):
            self.keep_aside()
            view.copy_(grad.to_dense() if grad.is_sparse else grad)
            if hand_out and not (self.parameter.grad is not None and self.parameter.grad.requires_grad):
                self.parameter.grad = view.detach()
        self.placed = True

    def place_nothing(self) -> None:
        """This rank has no gradient: zeros. A delivered p.grad is set aside."""
        self.aside = self.parameter.grad
        self.parameter.grad = None
        if self.view is not None:
            self.keep_aside()
            self.view.zero_()

    def keep_aside(self) -> None:
        """The view is about to be overwritten: if what was set aside is there, keep a copy of it."""
        if self.aside is not None and self.view is not None and same_memory(self.aside, self.view):
            self.saved = self.view.clone()

    def unplace(self) -> None:
        """The plan is given up before anything of this step was reduced: as before `place_...`."""
        if self.saved is not None:
            if self.placed:
                self.aside = self.saved
            elif self.aside is not None:
                self.aside.copy_(self.saved)
                self.version = self.aside._version if self.version >= 0 else -1
        if self.placed:
            self.handed = None  # its memory has the local gradient
        if not self.placed and self.parameter.grad is None:
            self.parameter.grad, self.aside = self.aside, None
        self.saved = None
        self.placed = False

    # The end of a reduction

    def home_memory(self, allocate: Callable[[Tensor], Tensor]) -> Tensor:
        """Memory of the slot's own for a result: the last one's, unless somebody holds it."""
        home = self.home
        if home is None or self.aside is not None or home.is_held(self.handed):
            home = self.home = Watched(allocate(self.parameter.detach()))
        return home.tensor

    def deliver(self, result: Tensor | None) -> None:
        """`result` is the same on all ranks: it becomes p.grad, or is added to what was set aside.

        None: no rank had a gradient. The memory of `result` is the slot's, and an alias is handed out.
        """
        late = self.parameter.grad if self.late else None
        if self.alone and result is not None and self._is_like(result):
            self.delivered = True  # the same numbers
        elif result is None:
            if self.aside is not None:
                if self.saved is not None:  # the view had to be zeroed
                    self.aside.copy_(self.saved)
                    self.version = self.aside._version if self.version >= 0 else -1
                self.parameter.grad = self.aside
        else:
            self.parameter.grad, self.handed = self._added(result)
            self.delivered = True
        self.settle()
        if late is not None:  # a reduction of its own is to come
            self.aside, self.parameter.grad = self.parameter.grad, late
            self.local, self.delivered = True, False

    def _is_like(self, result: Tensor) -> bool:
        """Whether p.grad may stay where a result has the same numbers."""
        grad = self.parameter.grad
        return grad is not None and grad.layout is result.layout

    def _added(self, result: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient to hand out, and its memory for `handed`."""
        aside = self.aside
        if aside is None:
            return (self.parameter.grad if self.in_view() else result.detach()), result  # type: ignore[return-value]
        if self.saved is not None:  # `aside` is the memory of `result`: its holders see the sum, as in plain torch
            result.add_(self.saved)
            return aside, result
        if aside.is_sparse:
            aside = aside + result if result.is_sparse else result.add(aside)
        else:
            aside.add_(result)
        return aside, aside.detach()

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
        self.handed = None

    def drop(self) -> None:
        """A pass has failed: what was not reduced is gone, what was delivered before it stays."""
        if self.saved is not None:  # other ranks may still write into the view
            self.aside = self.handed = self.saved
            self.version = self.saved._version if self.version >= 0 else -1
        if self.local:
            self.delivered = self.was_delivered
        if self.local or self.placed or self.moved or self.aside is not None:
            self.parameter.grad = self.aside
        self.settle()
