"""The buckets of one optimizer in GPU memory: what `arena.Arena` is on the CPU.

    hook: gradient of p7 ──► noted         hook: gradient of p5 ──► noted, bucket full:
    hook: gradient of p6 ──► noted                                  one pack of all three, launch

All gradients of a bucket are copied (and converted) into it by one kernel, when it is launched.
Until then p.grad is what autograd made. The host waits for nothing. A bucket of which the program
still holds gradients that p.grad no longer has leaves its memory to them, and gets new memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ringreduce._core import ArenaPlan, Gpu, GpuPlan
from ringreduce._gradients import delivery
from ringreduce._gradients.holders import Watched
from ringreduce._gradients.layout import Bucket, is_dense, view_like
from ringreduce._gradients.slot import Slot, same_memory
from ringreduce._ops import dtypes, gpus, submit
from ringreduce._runtime import running
from ringreduce._runtime.process_set import ProcessSet
from ringreduce.objects import allgather_object
from ringreduce.reduction import ReduceOp

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class GpuMemory:
    """Memory and reductions of the buckets.

    Args:
        buckets: their layout.
        spec: (elements, dtype code) of each bucket.
        index: the GPU.
        op, prescale, postscale: the reduction.
        channel: number that is free on all ranks of the set.
        name: of the optimizer.
        channel: of the plan.
        make_host_plan: the same buckets on the CPU, for where NCCL cannot be used.
    """

    reads_at_once = False

    def __init__(
        self, buckets: Sequence[Bucket], spec: Sequence[tuple[int, int]], index: int, op: int, prescale: float,
        postscale: float, process_set: ProcessSet, channel: int, name: str,
        make_host_plan: Callable[[], ArenaPlan],
    ) -> None:  # fmt: skip
        engine, set_id = running.require().engine, process_set.process_set_id or 0
        self._gpu: Gpu = gpus.attached(index)
        # How a set's operations run is known after its first.
        probe = gpus.backend.empty((1,), torch.float32, index).zero_()
        submit.allreduce([probe], True, f"{name}.gpu_plan", ReduceOp.Sum, 1.0, 1.0, process_set).wait()
        path, _why = engine.gpu_path(set_id)
        infos = allgather_object(engine.gpu_info(set_id), f"{name}.gpu_plan", process_set)
        self._host = make_host_plan() if path == "host" else None
        self._buckets = buckets
        self.flat = [self._allocate(bucket.elements, bucket.dtype) for bucket in buckets]
        native = [(flat.data_ptr(), *each) for flat, each in zip(self.flat, spec, strict=True)]
        self._plan = GpuPlan(engine, set_id, infos, native, op, prescale, postscale, self._host, channel)
        self.set_contents = self._plan.set_contents
        for flat in self.flat:
            gpus.backend.record(flat, self._plan.stream, index)
        self._offsets: dict[int, int] = {}  # slot -> element of its bucket at which the view begins
        self._streams: list[set[int]] = [set() for _ in spec]  # on which gradients came
        self._watched: list[Watched | None] = [None] * len(buckets)

    def _allocate(self, elements: int, dtype: torch.dtype) -> Tensor:
        return gpus.backend.empty((elements,), dtype, self._gpu.device).zero_()

    def assign(self, slot: Slot, offset: int) -> None:
        """Give the slot its view, from element `offset` of its bucket on."""
        self._offsets[slot.index] = offset
        slot.view = view_like(self.flat[slot.bucket], offset, slot.parameter)

    def begin(self, bucket: int, slots: Sequence[Slot]) -> None:
        """See that nobody holds the memory. A CUDA graph has the addresses: there it stays what it is."""
        watched = self._watched[bucket]
        if watched is None:  # nothing is handed out yet: what refers to it now is ours
            self._watched[bucket] = Watched(self.flat[bucket])
        elif not self._gpu.capturing(self._stream()) and self._is_held(watched, slots):
            self._watched[bucket] = None
            flat = self.flat[bucket] = self._allocate(self._buckets[bucket].elements, self._buckets[bucket].dtype)
            gpus.backend.record(flat, self._plan.stream, self._gpu.device)
            self._plan.set_buffer(bucket, flat.data_ptr())
            for slot in slots:
                self.assign(slot, self._offsets[slot.index])

    @staticmethod
    def _is_held(watched: Watched, slots: Sequence[Slot]) -> bool:
        """Whether the program has an alias of a view that is not p.grad."""
        ours = [t for slot in slots for t in (slot.parameter.grad, slot.aside, *slot.keeps()) if t is not slot.view]
        return watched.is_held(*ours)

    def place(self, slot: Slot) -> None:
        """The parameter's gradient is there, or has changed."""
        slot.placed = True
        self._streams[slot.bucket].add(self._stream())

    def launch(self, bucket: int, placed: Sequence[Slot]) -> None:
        """Bring the gradients into the bucket, and start its reduction."""
        moves = []
        for slot in placed:
            gradient = slot.gradient()
            assert gradient is not None
            assert slot.view is not None
            if not same_memory(gradient, slot.view):
                delivery.keep_aside(slot)
                moves.append((slot, gradient))
        self._gather_streams(bucket, [gradient for _, gradient in moves])
        self._move(bucket, moves, unpack=False)
        for slot, _ in moves:
            if slot.view is not None and slot.view.dtype is slot.parameter.dtype:
                slot.parameter.grad = slot.view.detach()
        self._plan.launch(bucket, stream=self._stream())
        self._streams[bucket].clear()

    def _gather_streams(self, bucket: int, gradients: Sequence[Tensor]) -> None:
        """Order the current stream behind the others on which gradients came (autograd's are the forward pass's)."""
        current, index = self._stream(), self._gpu.device
        others = self._streams[bucket] - {current}
        for stream in others:
            self._gpu.order(stream, current)
        if others:
            for tensor in (*gradients, self.flat[bucket]):
                gpus.backend.record(tensor, current, index)

    def check_readable(self) -> None:
        """ValueError while a CUDA graph is captured: the host cannot read what has not run."""
        if self._gpu.capturing(self._stream()):
            raise ValueError(
                "a step in which a parameter got no gradient cannot be captured in a CUDA graph, "
                "since the host reads whether another rank had one"
            )

    def results(self, bucket: int, slots: Sequence[Slot]) -> list[Tensor]:
        """The reduced gradients, in memory that may be handed out and has the parameters' dtype."""
        results, converted = [], []
        for slot in slots:
            assert slot.view is not None
            if slot.view.dtype is slot.parameter.dtype:
                results.append(slot.view)
                continue
            home = delivery.home_memory(slot, gpus.backend.empty_like)
            converted.append((slot, home))
            results.append(home)
        self._move(bucket, converted, unpack=True)
        return results

    def wait(self, bucket: int) -> None:
        """The current stream waits for the bucket's reduction."""
        self._plan.wait(bucket, stream=self._stream())
        gpus.backend.joined(self._plan.stream)

    def leave(self, text: str) -> None:
        """Tell the peers that this rank gives the plan up, and why."""
        self._plan.leave(text)

    def close(self) -> None:
        """Give the plan up; its memory lives as long as it is used."""
        self._plan.close()
        if self._host is not None:
            self._host.close()

    def _stream(self) -> int:
        return gpus.backend.current_stream(self._gpu.device)

    def _move(self, bucket: int, pairs: Sequence[tuple[Slot, Tensor]], unpack: bool) -> None:
        """Between tensors and views: one kernel for each dtype; what it cannot do, tensor by tensor."""
        groups: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
        for slot, tensor in pairs:
            view = slot.view
            assert view is not None
            same = tensor.dtype == view.dtype or (tensor.dtype in _FLOATS and view.dtype in _FLOATS)
            if same and not tensor.is_sparse and tensor.stride() == view.stride() and is_dense(view):
                groups.setdefault(tensor.dtype, []).append((tensor, view))
            elif unpack:
                tensor.copy_(view)
            else:
                view.copy_(tensor.to_dense() if tensor.is_sparse else tensor)
        flat = self.flat[bucket]
        kernel = self._gpu.unpack if unpack else self._gpu.pack
        for dtype, group in groups.items():
            kernel(
                flat.data_ptr(), dtypes.CODES[flat.dtype], dtypes.CODES[dtype],
                [tensor.data_ptr() for tensor, _ in group],
                [int(view.storage_offset() - flat.storage_offset()) for _, view in group],
                [tensor.numel() for tensor, _ in group], 1.0, self._stream(),
            )  # fmt: skip
        if groups:
            gpus.backend.joined(self._stream())
