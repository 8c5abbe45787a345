"""Messages from one rank to another: what users call.

A message has a source, a destination and a tag. Those of one source, destination and tag arrive in the order in
which they were sent; messages of different tags, and collectives, do not wait for each other. Any number may be
in flight, within a host and between hosts, to oneself too. Each process set has messages of its own: what is sent
on a set is received on it.

A message of at most 4 KiB is sent at once, whether it is awaited or not, as long as there is room for it. A larger
one waits until its receiver has asked for it, so two ranks that `send` to each other first, and `recv` then, wait
for ever: use `send_async`, or let one of them `recv` first.

Nothing here is differentiable, as in torch.distributed: `send` sends the values, and `recv` refuses a tensor that
requires grad. A tensor on a GPU goes through host memory: `send` waits for it, the current stream for what `recv`
has received.

Raises, in all of them: TypeError or ValueError for a bad argument; RingreduceError if the message has another dtype
or number of elements than the tensor that receives it (on the receiver, and on the sender where it still waits), if a
rank is lost or has shut down, or before `init` and after `shutdown`; RingreduceTimeoutError after RINGREDUCE_TIMEOUT.
"""

from __future__ import annotations

from torch import Tensor
from torch.autograd import forward_ad

from ringreduce._ops import messages
from ringreduce._ops.handle import Handle
from ringreduce._ops.versions import increment_version
from ringreduce._runtime.process_set import ProcessSet, global_process_set


def send(tensor: Tensor, dest: int, tag: int = 0, process_set: ProcessSet = global_process_set) -> None:
    """Send a tensor to the global rank `dest`. On return the tensor may be changed.

    Args:
        tensor: any shape, any supported dtype.
        dest: the receiver, a rank of the process set.
        tag: 0 to 2**31 - 1. What the receiver asks for.
    """
    engine = process_set.engine
    if engine is not None and engine.send_plain(process_set.process_set_id or 0, tensor, dest, tag):
        return
    messages.send(tensor, dest, tag, process_set, wake=False).wait()


def send_async(tensor: Tensor, dest: int, tag: int = 0, process_set: ProcessSet = global_process_set) -> Handle[None]:
    """`send` without waiting: leave `tensor` as it is until the handle is synchronized."""
    return messages.send(tensor, dest, tag, process_set)


def recv(tensor: Tensor, source: int | None = None, tag: int = 0, process_set: ProcessSet = global_process_set) -> int:
    """Receive a message into `tensor`, whose dtype and number of elements it must have.

    Args:
        tensor: any shape; its values are overwritten.
        source: the sender, a rank of the process set; None: whoever sends first.
        tag: that of the message.

    Returns the global rank that has sent it.
    """
    engine = process_set.engine
    if engine is not None and forward_ad._current_level < 0:
        rank = engine.recv_plain(process_set.process_set_id or 0, tensor, source, tag)
        if rank is not None:
            increment_version((tensor,))
            return rank
    return messages.recv_now(tensor, source, tag, process_set)


def recv_async(
    tensor: Tensor, source: int | None = None, tag: int = 0, process_set: ProcessSet = global_process_set
) -> Handle[int]:
    """`recv` without waiting: leave `tensor` alone until the handle is synchronized; its result is the source."""
    return messages.recv(tensor, source, tag, process_set)
