"""The buckets of one optimizer in GPU memory: what `_plan.GradientPlan` has on a GPU.

    hook: gradient of p7 ──► noted         hook: gradient of p5 ──► noted, bucket full:
    hook: gradient of p6 ──► noted                                  one pack of all three, launch

All gradients of a bucket are copied (and converted) into it by one kernel, when it is launched.
Until then p.grad is what autograd made. The host waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ringreduce import _context, _dtypes, _gpu, _submit
from ringreduce._buckets import is_dense
from ringreduce._core import Gpu, GpuPlan, Plan
from ringreduce._slots import Slot
from ringreduce.objects import allgather_object
from ringreduce.process_set import ProcessSet
from ringreduce.reduction import ReduceOp

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class GpuBuckets:
    """Memory and reductions of the buckets.

    Args:
        spec: (elements, dtype code) of each bucket.
        index: the GPU.
        op, prescale, postscale: the reduction.
        channel: of the plan.
        make_host_plan: the same buckets on the CPU, for where NCCL cannot be used.
    """

    def __init__(
        self, spec: Sequence[tuple[int, int]], index: int, op: int, prescale: float, postscale: float,
        process_set: ProcessSet, channel: int, make_host_plan: Callable[[], Plan],
    ) -> None:  # fmt: skip
        engine, set_id = _context.require().engine, process_set.process_set_id or 0
        self._gpu: Gpu = _gpu.attached(index)
        # How a set's operations run is known after its first.
        probe = _gpu.backend.empty((1,), torch.float32, index).zero_()
        _submit.allreduce([probe], True, "ringreduce.gpu_plan", ReduceOp.Sum, 1.0, 1.0, process_set).wait()
        path, _why = engine.gpu_path(set_id)
        infos = allgather_object(engine.gpu_info(set_id), "ringreduce.gpu_plan", process_set)
        self._host = make_host_plan() if path == "host" else None
        dtypes = [_dtypes.BY_CODE[code] for _, code in spec]
        self.flat = [
            _gpu.backend.empty((elements,), dtype, index).zero_()
            for (elements, _), dtype in zip(spec, dtypes, strict=True)
        ]
        buckets = [(flat.data_ptr(), *each) for flat, each in zip(self.flat, spec, strict=True)]
        self._plan = GpuPlan(engine, set_id, infos, buckets, op, prescale, postscale, self._host, channel)
        for flat in self.flat:
            _gpu.backend.record(flat, self._plan.stream, index)
        self._noted: list[list[Slot]] = [[] for _ in spec]
        self._streams: list[set[int]] = [set() for _ in spec]  # on which they came

    def fill(self, slot: Slot) -> None:
        """The parameter's gradient is there, or has changed."""
        if not slot.arrived:
            self._noted[slot.bucket].append(slot)
        slot.arrived = True
        self._streams[slot.bucket].add(self._stream())

    def launch(self, bucket: int) -> None:
        """Bring the noted gradients into the bucket, and start its reduction."""
        noted = self._noted[bucket]
        gradients = [(slot, slot.gradient()) for slot in noted]
        moves = [(slot, gradient) for slot, gradient in gradients if gradient is not None and gradient is not slot.view]
        self._gather_streams(bucket, [gradient for _, gradient in moves])
        self._move(bucket, moves, unpack=False)
        for slot in noted:
            slot.settle_in_view()
        self._plan.launch(bucket, self._stream())
        noted.clear()
        self._streams[bucket].clear()

    def _gather_streams(self, bucket: int, gradients: Sequence[Tensor]) -> None:
        """Order the current stream behind the others on which gradients came (autograd's are the forward pass's)."""
        current, index = self._stream(), self._gpu.device
        others = self._streams[bucket] - {current}
        for stream in others:
            self._gpu.order(stream, current)
        if others:
            for tensor in (*gradients, self.flat[bucket]):
                _gpu.backend.record(tensor, current, index)

    def check_readable(self) -> None:
        """ValueError while a CUDA graph is captured: the host cannot read what has not run."""
        if self._gpu.capturing(self._stream()):
            raise ValueError(
                "a step in which a parameter got no gradient cannot be captured in a CUDA graph, "
                "since the host reads whether another rank had one"
            )

    def convert(self, bucket: int, slots: Sequence[Slot]) -> None:
        """Bring reduced gradients from the bucket to where p.grad will be."""
        self._move(bucket, [(slot, slot.home) for slot in slots if slot.home is not None], unpack=True)

    def wait(self, bucket: int) -> None:
        """The current stream waits for the bucket's reduction."""
        self._plan.wait(bucket, self._stream())
        _gpu.backend.joined(self._plan.stream)

    def begin_step(self) -> None:
        """Forget what was noted and not launched."""
        for noted, streams in zip(self._noted, self._streams, strict=True):
            noted.clear()
            streams.clear()

    def close(self) -> None:
        """Give the plan up; its memory lives as long as it is used."""
        self._plan.close()
        if self._host is not None:
            self._host.close()

    def _stream(self) -> int:
        return _gpu.backend.current_stream(self._gpu.device)

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
                flat.data_ptr(), _dtypes.CODES[flat.dtype], _dtypes.CODES[dtype],
                [tensor.data_ptr() for tensor, _ in group],
                [int(view.storage_offset() - flat.storage_offset()) for _, view in group],
                [tensor.numel() for tensor, _ in group], 1.0, self._stream(),
            )  # fmt: skip
        if groups:
            _gpu.backend.joined(self._stream())
