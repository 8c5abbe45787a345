"""From tensors to the core's messages: each function checks, posts and returns a Handle.

A tensor on a GPU is copied to host memory before it is sent, and from there when its message has come.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ringreduce._ops import check, gpus, memory
from ringreduce._ops.compiled import untraced
from ringreduce._ops.handle import Handle
from ringreduce._ops.submit import packed
from ringreduce._ops.versions import increment_version
from ringreduce._runtime.process_set import ProcessSet


def _address(argument: str, rank: Any, tag: Any) -> tuple[int, int]:
    """A rank and a tag as ints; which of them there are, the core knows."""
    rank, tag = check.index(argument, rank), check.index("tag", tag)
    for name, value in ((argument, rank), ("tag", tag)):
        if not 0 <= value < 2**31:
            raise ValueError(f"{name}: expected 0 to {2**31 - 1}, got {value}")
    return rank, tag


@untraced
def send(tensor: Any, dest: Any, tag: Any, process_set: ProcessSet, wake: bool = True) -> Handle[None]:
    """Send to the global rank `dest`."""
    engine, set_id = process_set.usable_engine(), process_set.process_set_id or 0
    code = check.tensor("tensor", tensor)
    dest, tag = _address("dest", dest, tag)
    source = packed(tensor)
    if gpus.stream_of("tensor", tensor) != gpus.NO_STREAM:
        source = gpus.backend.to_host(source)
    message = engine.post(set_id, True, source.data_ptr(), source.numel(), code, dest, tag, source, wake)
    return Handle([message], lambda: None)


@untraced
def recv(tensor: Any, source: Any, tag: Any, process_set: ProcessSet, wake: bool = True) -> Handle[int]:
    """Receive from the global rank `source`, or any, into the tensor; the result is the source."""
    engine, set_id = process_set.usable_engine(), process_set.process_set_id or 0
    code = check.tensor("tensor", tensor)
    check.writable("tensor", tensor)
    if memory.may_overlap(tensor.shape, tensor.stride()):
        raise ValueError(
            f"tensor: strides {list(tensor.stride())} repeat memory, so that no message fits; pass tensor.clone()"
        )
    rank, tag = _address("source", 0 if source is None else source, tag)
    on_cpu = gpus.stream_of("tensor", tensor) == gpus.NO_STREAM
    in_place = on_cpu and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()
    target = tensor.detach() if in_place else torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    message = engine.post(
        set_id, False, target.data_ptr(), target.numel(), code, None if source is None else rank, tag,
        (target, tensor), wake,
    )  # fmt: skip

    copy = Tensor.copy_ if on_cpu else gpus.backend.from_host

    def finish() -> int:
        if in_place:
            increment_version((tensor,))
        else:
            with torch.inference_mode() if tensor.is_inference() else nullcontext():
                copy(tensor.detach(), target)
        return message.peer

    return Handle([message], finish)


def recv_now(tensor: Any, source: Any, tag: Any, process_set: ProcessSet) -> int:
    """The same, awaited. Whoever is interrupted has no handle: the next message is another call's."""
    handle = recv(tensor, source, tag, process_set, wake=False)
    try:
        return handle.wait()
    except BaseException:
        handle.take_back()
        raise
