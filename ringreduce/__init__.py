"""ringreduce: train a torch model on several ranks.

    import ringreduce as rr

    rr.init()
    optimizer = rr.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
    rr.broadcast_parameters(model.state_dict(), root_rank=0)

Importing starts nothing; `init` does.
"""

import sys

__all__ = [
    "Average",
    "Compression",
    "DistributedOptimizer",
    "DriftError",
    "Handle",
    "LocalSGD",
    "Max",
    "Min",
    "PlanLeftError",
    "ProcessSet",
    "Product",
    "RankLostError",
    "ReduceOp",
    "RingreduceError",
    "RingreduceTimeoutError",
    "Sum",
    "add_process_set",
    "allgather",
    "allgather_async",
    "allgather_into",
    "allgather_into_async",
    "allgather_object",
    "allreduce",
    "allreduce_",
    "allreduce_async",
    "allreduce_async_",
    "alltoall",
    "alltoall_async",
    "alltoall_into",
    "alltoall_into_async",
    "barrier",
    "barrier_async",
    "broadcast",
    "broadcast_",
    "broadcast_async",
    "broadcast_async_",
    "broadcast_object",
    "broadcast_optimizer_state",
    "broadcast_parameters",
    "check",
    "cross_rank",
    "cross_size",
    "gather",
    "gather_async",
    "global_process_set",
    "grouped_allreduce",
    "grouped_allreduce_",
    "grouped_allreduce_async",
    "grouped_allreduce_async_",
    "init",
    "is_initialized",
    "local_rank",
    "local_size",
    "poll",
    "rank",
    "recv",
    "recv_async",
    "reduce",
    "reduce_",
    "reduce_async",
    "reduce_async_",
    "reducescatter",
    "reducescatter_async",
    "reducescatter_into",
    "reducescatter_into_async",
    "remove_process_set",
    "scatter",
    "scatter_async",
    "send",
    "send_async",
    "shutdown",
    "size",
    "synchronize",
]

try:
    import torch as _torch  # noqa: F401

    from ringreduce import _core as _core
except (ImportError, OSError) as _error:
    # `ringreduce doctor`, alone, goes on without: it says what is missing. In `python -m` the name is -m.
    if not sys.argv[0].endswith(("ringreduce", "-m")):
        if "_torch" in globals():
            raise ImportError(
                f"ringreduce's native core cannot be imported ({_error}): install ringreduce again, for this Python"
            ) from _error
        if isinstance(_error, ModuleNotFoundError) and _error.name == "torch":
            raise ImportError("ringreduce needs PyTorch, which is not installed here: pip install torch") from _error
        raise ImportError(
            f"ringreduce needs PyTorch, which cannot be imported here ({_error}): install torch again"
        ) from _error
else:
    from ringreduce._gradients.local_sgd import LocalSGD
    from ringreduce._lifecycle.bootstrap import init, shutdown
    from ringreduce._lifecycle.membership import add_process_set, remove_process_set
    from ringreduce._ops.handle import Handle, poll, synchronize
    from ringreduce._runtime.process_set import ProcessSet, global_process_set
    from ringreduce._runtime.topology import (
        cross_rank,
        cross_size,
        is_initialized,
        local_rank,
        local_size,
        rank,
        size,
    )
    from ringreduce.collectives import (
        allgather,
        allgather_async,
        allgather_into,
        allgather_into_async,
        allreduce,
        allreduce_,
        allreduce_async,
        allreduce_async_,
        alltoall,
        alltoall_async,
        alltoall_into,
        alltoall_into_async,
        barrier,
        barrier_async,
        broadcast,
        broadcast_,
        broadcast_async,
        broadcast_async_,
        gather,
        gather_async,
        grouped_allreduce,
        grouped_allreduce_,
        grouped_allreduce_async,
        grouped_allreduce_async_,
        reduce,
        reduce_,
        reduce_async,
        reduce_async_,
        reducescatter,
        reducescatter_async,
        reducescatter_into,
        reducescatter_into_async,
        scatter,
        scatter_async,
    )
    from ringreduce.compression import Compression
    from ringreduce.drift import check
    from ringreduce.errors import DriftError, PlanLeftError, RankLostError, RingreduceError, RingreduceTimeoutError
    from ringreduce.objects import allgather_object, broadcast_object
    from ringreduce.optimizer import DistributedOptimizer
    from ringreduce.p2p import recv, recv_async, send, send_async
    from ringreduce.reduction import Average, Max, Min, Product, ReduceOp, Sum
    from ringreduce.state import broadcast_optimizer_state, broadcast_parameters
