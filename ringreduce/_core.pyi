"""The native core's interface. Converts, releases the GIL, calls; no logic.

Tensors pass as addresses (`data_ptr()`), element counts and dtype codes.
"""

import numpy

class RingreduceError(RuntimeError): ...
class RingreduceTimeoutError(RingreduceError): ...  # a deadline passed; the operation is still in flight

# dtype codes: index into this tuple; likewise reduction operations (Horovod's numbers).
DTYPES: tuple[str, ...]  # ("uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64", "complex64", "complex128", "bool")
AVERAGE: int  # 0
SUM: int  # 1
MIN: int  # 3
MAX: int  # 4
PRODUCT: int  # 5

class Segment:
    """Memory shared by the ranks of one host."""

    @staticmethod
    def create(kind: str, nbytes: int) -> Segment: ...  # kind: "memfd" or "posix"
    @staticmethod
    def open(path: str, nbytes: int) -> Segment: ...
    @property
    def path(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    def unlink(self) -> None: ...

class Op:
    """One submitted operation."""

    @property
    def name(self) -> str: ...
    def done(self) -> bool: ...  # never blocks; True also after a failure
    def wait(self, timeout: float | None = None) -> None: ...  # raises what the operation failed with
    def output(self) -> memoryview_like: ...  # allgather, alltoall: the bytes received (numpy-free ndarray, uint8[nbytes], owner kept)
    def counts(self) -> list[int]: ...  # allgather: elements from each rank; alltoall: elements received from each

class Engine:
    def __init__(
        self,
        rank: int,
        size: int,
        host_of: list[int],  # world rank -> host index 0..H-1, numbered by first appearance
        segment: Segment,  # the world set's segment of this host, nbytes = segment_bytes(local_size, host_count)
        mpi_comm: int,  # mpi4py.MPI._addressof(duplicated communicator); 0 where size == 1 or one host only
        oversubscribed: bool,  # more ranks than cores on some host: never spin
        peer_pids: list[int],  # pid of every local rank in local order, [] where unknown
        spare_cores: bool = False,  # each local rank has at least two cores to itself: the background thread reduces buckets
    ) -> None: ...
    def close(self, timeout: float) -> None: ...  # fails what is outstanding; idempotent

    # Process sets. Set 0 is the world and exists already. Every member calls add_set.
    @staticmethod
    def segment_bytes(local_size: int, host_count: int) -> int: ...  # of the set: its ranks on this host, its hosts
    def add_set(self, set_id: int, ranks: list[int], segment: Segment) -> None: ...
    def remove_set(self, set_id: int) -> None: ...

    # Submissions. `name` None: matched by the set's counter of unnamed operations.
    # Asynchronous; ValueError for a caller's mistake.
    # `shapes` (one tuple a tensor) must agree over ranks; it is compared and shown, not interpreted.
    def allreduce(self, set_id: int, name: str | None, inputs: list[int], outputs: list[int], counts: list[int],
                  shapes: list[tuple[int, ...]], dtype: int, op: int, prescale: float, postscale: float) -> Op: ...
    # Blocking one-tensor fast path: submit and wait in one call.
    def allreduce_sync(self, set_id: int, name: str | None, input: int, output: int, count: int,
                       shape: tuple[int, ...], dtype: int, op: int, prescale: float, postscale: float) -> None: ...
    def broadcast(self, set_id: int, name: str | None, input: int, output: int, count: int,
                  shape: tuple[int, ...], dtype: int, root: int) -> Op: ...  # root: rank within the set
    # `shape` is the shape without dimension 0 (row shape); count: elements on this rank.
    def allgather(self, set_id: int, name: str | None, input: int, count: int, shape: tuple[int, ...], dtype: int) -> Op: ...
    # full shape; recv_counts: elements that each rank of the set receives
    def reducescatter(self, set_id: int, name: str | None, input: int, output: int, recv_counts: list[int],
                      shape: tuple[int, ...], dtype: int, op: int, prescale: float, postscale: float) -> Op: ...
    def alltoall(self, set_id: int, name: str | None, input: int, send_counts: list[int], shape: tuple[int, ...], dtype: int) -> Op: ...
    def barrier(self, set_id: int) -> Op: ...
    def next_channel(self) -> int: ...  # the lowest channel number free on this rank; a plan needs one that is free on all its ranks (the maximum)

    def state(self) -> str: ...  # multi-line: what is pending, since when, who is missing (for hang reports)

class Plan:
    """Gradient buckets that live in shared memory, agreed once by all ranks of the set.

    Created by every member with the same arguments (agree on them first, through allgather_object).
    """

    @staticmethod
    def segment_bytes(local_size: int, buckets: list[tuple[int, int]]) -> int: ...  # (elements, dtype code)
    def __init__(self, engine: Engine, set_id: int, buckets: list[tuple[int, int]], op: int,
                 prescale: float, postscale: float, segment: Segment, channel: int) -> None: ...
    def buffer(self, bucket: int) -> memoryview_like: ...  # this rank's bucket: uint8[nbytes] in the arena, for torch.from_dlpack
    def launch(self, bucket: int) -> None: ...  # buckets in order 0, 1, ... within a step; returns at once, makes a little progress
    def wait(self, bucket: int) -> None: ...  # until this bucket's last launch is complete on this rank; raises RingreduceError
    def close(self) -> None: ...

def kernels_name() -> str: ...
def load_settings() -> tuple[tuple[str, int], ...]: ...  # reads the environment; returns the settings that must agree over ranks; ValueError for a malformed one

class memoryview_like:  # a nanobind ndarray: __dlpack__, __dlpack_device__
    def __dlpack__(self, *args: object, **kwargs: object) -> object: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
