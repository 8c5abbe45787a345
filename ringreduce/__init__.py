"""ringreduce: train a torch model on several ranks.

    import ringreduce as rr

    rr.init()
    optimizer = rr.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
    rr.broadcast_parameters(model.state_dict(), root_rank=0)

Importing starts nothing; `init` does. Where PyTorch or the native core is missing or broken the package can
be imported, so that `ringreduce doctor` can say so, but using any of its names is an ImportError.
"""

__all__ = [
    "Average",
    "Compression",
    "DistributedOptimizer",
    "Handle",
    "Max",
    "Min",
    "ProcessSet",
    "Product",
    "ReduceOp",
    "RingreduceError",
    "RingreduceTimeoutError",
    "Sum",
    "add_process_set",
    "allgather",
    "allgather_async",
    "allgather_object",
    "allreduce",
    "allreduce_",
    "allreduce_async",
    "allreduce_async_",
    "alltoall",
    "alltoall_async",
    "barrier",
    "barrier_async",
    "broadcast",
    "broadcast_",
    "broadcast_async",
    "broadcast_async_",
    "broadcast_object",
    "broadcast_optimizer_state",
    "broadcast_parameters",
    "cross_rank",
    "cross_size",
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
    "reducescatter",
    "reducescatter_async",
    "remove_process_set",
    "shutdown",
    "size",
    "synchronize",
]

try:
    import torch as _torch  # noqa: F401

    from ringreduce import _core as _core
except (ImportError, OSError) as _error:
    _problem = _error

    def _explain(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'ringreduce' has no attribute {name!r}")
        if "_torch" in globals():
            what = (
                f"ringreduce's native core cannot be imported ({_problem}): install ringreduce again, for this Python"
            )
        elif isinstance(_problem, ModuleNotFoundError) and _problem.name == "torch":
            what = "ringreduce needs PyTorch, which is not installed here: pip install torch"
        else:
            what = f"ringreduce needs PyTorch, which cannot be imported here ({_problem}): install torch again"
        raise ImportError(what) from _problem

    globals()["__getattr__"] = _explain  # not by its name: type checkers would take any attribute for one of ours
else:
    from ringreduce._bootstrap import init, shutdown
    from ringreduce._membership import add_process_set, remove_process_set
    from ringreduce.collectives import (
        allgather,
        allgather_async,
        allreduce,
        allreduce_,
        allreduce_async,
        allreduce_async_,
        alltoall,
        alltoall_async,
        barrier,
        barrier_async,
        broadcast,
        broadcast_,
        broadcast_async,
        broadcast_async_,
        grouped_allreduce,
        grouped_allreduce_,
        grouped_allreduce_async,
        grouped_allreduce_async_,
        reducescatter,
        reducescatter_async,
    )
    from ringreduce.compression import Compression
    from ringreduce.errors import RingreduceError, RingreduceTimeoutError
    from ringreduce.handle import Handle, poll, synchronize
    from ringreduce.objects import allgather_object, broadcast_object
    from ringreduce.optimizer import DistributedOptimizer
    from ringreduce.process_set import ProcessSet, global_process_set
    from ringreduce.reduction import Average, Max, Min, Product, ReduceOp, Sum
    from ringreduce.state import broadcast_optimizer_state, broadcast_parameters
    from ringreduce.topology import (
        cross_rank,
        cross_size,
        is_initialized,
        local_rank,
        local_size,
        rank,
        size,
    )
