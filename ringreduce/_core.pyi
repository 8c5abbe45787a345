"""The native core's interface. Converts, releases the GIL, calls; no logic.

Tensors pass as addresses (`data_ptr()`), element counts and dtype codes.
"""

from collections.abc import Sequence
from typing import Any

class RingreduceError(RuntimeError): ...
class RankLostError(RingreduceError):  # a rank has died, or has shut down while others wait for it
    rank: int | None  # None: none in particular, or not known
    pid: int | None
    host: str | None
class RingreduceTimeoutError(RingreduceError): ...  # a deadline passed; the operation is still in flight
class PlanLeftError(RingreduceError): ...  # a rank has left the gradient plan in the middle of a step; all else goes on

# dtype codes: index into this tuple. Reduction operations have Horovod's numbers.
DTYPES: tuple[str, ...]  # ("uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64", "complex64", "complex128", "bool")
REDUCE_OPS: tuple[tuple[str, int, tuple[str, ...]], ...]  # ("Average", 0, ("bool",)), ...: the dtypes for which it has no meaning

SMALL_BYTES: int  # up to here the data of an operation travel with the agreement on it

class Segment:
    """Memory shared by the ranks of one host."""

    @staticmethod
    def create(kind: str, nbytes: int, reserve: int) -> Segment: ...  # kind: "memfd" or "posix"; how much will be reserved at once
    @staticmethod
    def open(offer: tuple[str, int, int, int], nbytes: int) -> Segment: ...  # the creator's offer
    @property
    def offer(self) -> tuple[str, int, int, int]: ...  # path, device, inode, secret
    # Before the first touch of these bytes, where the system may have no memory for them (/dev/shm); by any rank, also again.
    def reserve(self, offset: int, nbytes: int) -> None: ...
    @property
    def path(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    def unlink(self) -> None: ...

def offer_memory() -> tuple[int, int]: ...  # address and value of a word that other ranks read; allows them to, where Yama wants that
def read_memory(pid: int, word: tuple[int, int]) -> str: ...  # "", or why the word of another process cannot be read
def wire_format() -> str: ...  # what must be equal on all ranks for them to understand each other

class Deadline:
    """Ends the process with `message`, from a thread of its own, unless it is cancelled in time.

    questions: what to run after how many seconds (command line), in their order; it writes to standard error.
    """

    def __init__(self, seconds: float, message: str, questions: list[tuple[float, list[str]]]) -> None: ...
    def say(self, message: str) -> None: ...  # instead of the message before
    def cancel(self) -> None: ...

class Op:
    """One submitted operation."""

    @property
    def name(self) -> str: ...
    def done(self) -> bool: ...  # never blocks; True also after a failure
    # Raises what the operation failed with. timeout: seconds from this call on; None: RINGREDUCE_TIMEOUT, from the
    # submission on, or from renew().
    def wait(self, timeout: float | None = None) -> None: ...
    def renew(self) -> None: ...
    def output(self) -> memoryview_like: ...  # where it is not as large as the input: the bytes received (numpy-free ndarray, uint8[nbytes], owner kept)
    def counts(self) -> list[int]: ...  # elements received from each rank
    # GPU operations (submitted with a stream): wait() returns once the work is enqueued, done() says whether the GPU
    # has finished it.
    @property
    def on_gpu(self) -> bool: ...
    @property
    def stream(self) -> int: ...  # after wait(): on which the GPU's work runs (for record_stream)
    # After wait(): `stream` waits for the GPU's work; the host does not. Gives back what was kept for the operation:
    # it is the caller's to keep now (record_stream).
    def join(self, stream: int) -> Any: ...
    @property
    def output_bytes(self) -> int: ...
    def take_output(self, to: int, stream: int) -> None: ...  # after join(): copies it to device memory on `stream`, frees it then
    @property
    def submission_stream(self) -> int: ...

class Gpu:
    """CUDA and NCCL as this process found them, and the GPU of this rank."""

    # Loads the CUDA library (csrc/gpu/cuda, or a double) and NCCL: the one already loaded, else RINGREDUCE_NCCL, else
    # `nccl_candidates` (files), else "libnccl.so.2". ValueError with the reason where CUDA's cannot be used; a missing
    # NCCL is no error.
    def __init__(self, cuda_library: str, nccl_candidates: list[str], device: int) -> None: ...
    @property
    def device(self) -> int: ...
    @property
    def is_double(self) -> bool: ...  # the tests' double: device memory is host memory
    @property
    def nccl_path(self) -> str: ...  # "" where there is none
    @property
    def nccl_problem(self) -> str: ...  # why there is none
    @property
    def nccl_version(self) -> int: ...  # 22703, 0 where there is none
    @staticmethod
    def probe(cuda_library: str) -> dict[str, object]: ...  # for doctor: problem ("" if it works), driver, runtime, devices: [(name, pci bus id)]
    def order(self, before: int, after: int) -> None: ...  # stream `after` waits for what is on `before` now
    def capturing(self, stream: int) -> bool: ...  # a CUDA graph
    # Kernels, enqueued on `stream`; parallel lists, one entry a tensor: its address, first element in the bucket, elements.
    def pack(self, bucket: int, bucket_dtype: int, tensor_dtype: int, tensors: list[int], offsets: list[int],
             counts: list[int], scale: float, stream: int) -> None: ...
    def unpack(self, bucket: int, bucket_dtype: int, tensor_dtype: int, tensors: list[int], offsets: list[int],
               counts: list[int], scale: float, stream: int) -> None: ...
    # out[r] = scale * sum of the rows values[order[first[r]:first[r + 1]]]; order and first: int64 on the device.
    def merge_rows(self, out: int, values: int, order: int, first: int, out_rows: int, width: int, dtype: int,
                   scale: float, stream: int) -> None: ...
    # dst = the sources reduced in their order (kernels of the CPU are the reference).
    def reduce(self, dst: int, sources: list[int], count: int, dtype: int, op: int, prescale: float, postscale: float,
               stream: int) -> None: ...

class Message:
    """One message from this rank to another, or from another one. As Op; it is never on a GPU."""

    def done(self) -> bool: ...
    def wait(self, timeout: float | None = None) -> None: ...
    def renew(self) -> None: ...
    def take_back(self) -> bool: ...  # a receive that nothing has come for; False for any other
    @property
    def peer(self) -> int: ...  # world rank: where it goes; where it has come from, once that is known, else -1
    @property
    def on_gpu(self) -> bool: ...

class Engine:
    def __init__(
        self,
        rank: int,
        size: int,
        host_of: list[int],  # world rank -> host index 0..H-1, numbered by first appearance
        segment: Segment,  # the world set's segment of this host, nbytes = segment_bytes(host_of, host)[0]
        mpi_comm: int,  # mpi4py.MPI._addressof(duplicated communicator); 0 where size == 1 or one host only
        oversubscribed: bool,  # more ranks than cores on some host: never spin
        peer_pids: list[int],  # pid of every local rank in local order, [] where unknown
        processes: list[tuple[int, str]],  # pid and host name by world rank
        lifeline: tuple[int, str, Sequence[tuple[int, int, bool]]],  # ringreduce._lifecycle.lifeline.Lifeline
        spare_cores: bool = False,  # each local rank has at least two cores to itself: the background thread reduces buckets
        single_copy: bool = False,  # the ranks of this host can read each other's memory
    ) -> None: ...
    def failed(self) -> bool: ...  # nothing works any more, and it was not shut down
    def lost(self) -> str: ...  # which rank or host the job has lost, "" for none
    def close(self, timeout: float, why: str = "") -> None: ...  # fails what is outstanding; idempotent. why: told to the peers

    # Process sets. Set 0 is the world and exists already. Every member calls add_set.
    @staticmethod
    # Of a set: the host of each of its ranks; this host. Returns the bytes of its segment, and how many are reserved at once.
    def segment_bytes(host_of: list[int], host: int) -> tuple[int, int]: ...
    def add_set(self, set_id: int, ranks: list[int], segment: Segment) -> None: ...
    def set_idle(self, set_id: int) -> bool: ...  # no operation of this rank in flight on it
    def remove_set(self, set_id: int) -> None: ...

    # Submissions. `kind`: the name of a collective (csrc/collectives/kinds.cc). `requests`: tuples as
    # ringreduce._ops.submit.Request, all of which are submitted, or none. A name that is None: matched by the set's
    # counter of unnamed operations. `keep`: an object that the core keeps alive until it is done with the memory; it is
    # released in a later call. Shapes must agree over ranks; they are compared and shown, not interpreted.
    # `stream`: the caller's current CUDA stream (0 is the default stream) where the addresses are on the GPU, else -1.
    # Asynchronous; ValueError for a caller's mistake. wake=False: the caller waits at once, so the background thread
    # need not be woken.
    def submit(self, set_id: int, kind: str, requests: Sequence[tuple[Any, ...]], stream: int = -1, wake: bool = True) -> list[Op]: ...
    # Of a plain tensor (see use_exchange_api), done on return. `kind` and `name` as for submit; `output`: the tensor itself,
    # another one for the result, or this rank's number in the set and the set's size for a new one (a barrier has none);
    # `root`: a rank of the world. Ranks get nearly equal parts. None: nothing was done, since an argument must be looked
    # at first. Else the result, True for a barrier. If it raises, the core keeps the tensors until it is done with them.
    def call_plain(self, set_id: int, kind: str, name: object, tensor: object, output: object, op: object,
                   prescale: object, postscale: object, root: object) -> Any: ...
    # Messages from rank to rank. peer, dest, source: a rank of the world; None to receive from any.
    def post(self, set_id: int, is_send: bool, data: int, count: int, dtype: int, peer: int | None, tag: int, keep: object,
             wake: bool) -> Message: ...
    # Done on return, of plain tensors and plain numbers. False, None: nothing was done, since an argument must be
    # looked at first. recv_plain returns the source. As call_plain else.
    def send_plain(self, set_id: int, tensor: object, dest: object, tag: object) -> bool: ...
    def recv_plain(self, set_id: int, tensor: object, source: object, tag: object) -> int | None: ...
    # Messages sent to, and received from, each rank of the world that there were any of.
    def message_counts(self, set_id: int) -> tuple[dict[int, int], dict[int, int]]: ...
    # GPU.
    def attach_gpu(self, gpu: Gpu) -> None: ...  # before the first GPU operation; once
    # By all ranks of the world after add_set: the set's communicator is split from the world's where there is one.
    def split_gpu(self, set_id: int) -> Op: ...
    def gpu_info(self, set_id: int) -> bytes: ...  # this rank's part in making a communicator of the set
    # How the set's GPU operations run: ("nccl", "") or ("host", why). ValueError before its first one.
    def gpu_path(self, set_id: int) -> tuple[str, str]: ...
    # This rank's part in agreeing on the channel of a new plan: gather it from all ranks of the set, then agree_channel.
    # One plan after the other on a rank: until it is made or given up, another offer would lead to the same tags.
    def offer_channel(self) -> str: ...

    # The status pages of this host (csrc/liveness/status_page.h), by local index: rank, pid, state ("running", "failed", "shutting
    # down", "gone", "unknown"), since_ns, steps, submitters, blocked, last, failure, verdict, verdict_ns, waits: [what, set,
    # since_ns, title, place]. since_ns: of time.monotonic_ns().
    def statuses(self) -> list[dict[str, Any]]: ...
    # Whether this rank is to report a stall, or a time-out, for all of its host, or which does, and
    # since when. Another one's claim holds for so long.
    def claim_report(self, timed_out: bool, seconds: float) -> tuple[bool, int, int]: ...
    def say_verdict(self, verdict: str) -> None: ...  # on this rank's page
    def count_step(self) -> None: ...  # of an optimizer, on this rank's page

    def state(self) -> str: ...  # multi-line: what is pending, since when, who is missing (for hang reports)

class Plan:
    """Gradient buckets, agreed once by all ranks of a process set: what all kinds of them have in common."""

    # Of the arena: what is on that side. Of the GPU: what is there behind what is on `stream` now. Buckets in order 0, 1,
    # ... within a step. Returns at once, and makes a little progress.
    def launch(self, bucket: int, side: int = 0, stream: int = 0) -> None: ...
    # Until the bucket's last launch is complete on this rank; raises RingreduceError. On the GPU `stream` waits for it, the
    # host at most until it is enqueued.
    def wait(self, bucket: int, stream: int = 0) -> None: ...
    def set_contents(self, contents: list[str]) -> None: ...  # of its buckets, for texts
    # This rank's backward pass has failed, and `why` (at most 960 bytes of it) says how: on every rank launch() and wait()
    # of a bucket that is not complete raise PlanLeftError at once. Returns at once, and raises nothing where the engine is
    # broken anyway. Close the plan afterwards and agree on a new one. Until then other ranks may still read and write
    # this rank's arena; NCCL's communicator is aborted on ranks that learn of it, so that streams run on.
    def leave(self, why: str) -> None: ...
    # In the middle of a step the plan is left. Memory that messages still use is kept until they are over.
    def close(self) -> None: ...

class ArenaPlan(Plan):
    """In shared memory. Created by every member with the same arguments (agree on them first, through allgather_object)."""

    # buckets: (elements, dtype code). Bytes, and how many of the first ones are sure to be touched.
    @staticmethod
    def segment_bytes(local_size: int, buckets: list[tuple[int, int]]) -> tuple[int, int]: ...
    def __init__(self, engine: Engine, set_id: int, buckets: list[tuple[int, int]], op: int,
                 prescale: float, postscale: float, segment: Segment, channel: int) -> None: ...
    # A part of this rank's bucket, in bytes, on one of its two sides: uint8[nbytes] in the arena, for torch.from_dlpack.
    def part(self, bucket: int, side: int, offset: int, nbytes: int) -> memoryview_like: ...

class GpuPlan(Plan):
    """In GPU memory, reduced in place.

    Created by every member with the same arguments and the infos of all of them (Engine.gpu_info, by set rank).
    """

    # buckets: (device address, elements, dtype code); the memory outlives close() by the GPU's work.
    # host: where gpu_path says "host": a plan with the same buckets, through which the data goes; its channel counts.
    def __init__(self, engine: Engine, set_id: int, infos: list[bytes], buckets: list[tuple[int, int, int]], op: int,
                 prescale: float, postscale: float, host: ArenaPlan | None, channel: int) -> None: ...
    @property
    def stream(self) -> int: ...  # on which the reductions run
    def set_buffer(self, bucket: int, data: int) -> None: ...  # its device address from its next launch on

# Engine.statuses() of another job, in the segment of its world on this host.
def statuses(world: Segment, ranks: int) -> list[dict[str, Any]]: ...
# What is called for a thread that waits: ringreduce/_runtime/watcher.py.
def set_watcher(watcher: object) -> None: ...
# Reads tensors of the type through DLPack's C exchange API, if the type has it (torch from 2.10 on). Plain are then
# tensors of the very type, on the CPU, contiguous, of real numbers (no bool), and without requires_grad.
def use_exchange_api(tensor_type: type) -> None: ...
# The digest of the drift guard (csrc/kernels/digest.h). `regions`: (address, bytes). Returns one of all of them in
# their order, and one of each.
def digest(regions: list[tuple[int, int]]) -> tuple[int, list[int]]: ...
DIGEST_ELEMENTS: int  # 128
# To and from DIGEST_ELEMENTS elements of a floating point or complex type at an address.
def write_pairs(dtype: int, digest: int, to: int) -> None: ...
def pairs_differ(dtype: int, address: int) -> bool: ...  # after a reduction: the ranks have written different digests
# The channel of a new plan from the offers of all ranks of its set, by set rank; ValueError on all of them if there is none left.
# Looks for one from number `start` on, the same on all ranks.
def agree_channel(offers: list[str], start: int) -> int: ...
def kernels_name() -> str: ...
def load_settings() -> tuple[tuple[str, str], ...]: ...  # reads the environment; returns the settings that must agree over ranks; ValueError for a malformed one
def setting_texts() -> list[tuple[str, str]]: ...  # every setting's variable and value in force, as load_settings found them
def setting_table() -> list[tuple[str, str, str, bool]]: ...  # of every setting: variable, default, what is allowed, whether ranks must agree
def log(level: int, message: str) -> None: ...  # "ringreduce[rank]: message" on stderr, where RINGREDUCE_LOG is `level` or more

class memoryview_like:  # a nanobind ndarray: __dlpack__, __dlpack_device__
    def __dlpack__(self, *args: object, **kwargs: object) -> object: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
