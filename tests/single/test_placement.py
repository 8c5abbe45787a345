"""Which GPU a rank takes, and what is warned of: decisions from made-up reports and a made-up NVML."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from ringreduce._placement import nvml, placement
from ringreduce._placement.nvml import Gpu
from ringreduce._placement.oddities import oddities
from ringreduce._placement.seats import Report, Seat, by_device, ranks, spans

H100 = "NVIDIA H100 80GB HBM3"
ALL_CORES = frozenset(range(64))


def machine(count, name=H100, per_node=4):
    """`count` GPUs, `per_node` of them near each half of 64 cores."""
    return [
        Gpu(
            i, f"GPU-{i:04x}-aaaa", name, f"0000:{0x10 + i:02x}:00.0",
            frozenset(range(32 * (i // per_node), 32 * (i // per_node) + 32)), (i // per_node,), 80 << 30,
        )
        for i in range(count)
    ]  # fmt: skip


def instances(gpu, count):
    """A partitioned GPU, as NVML tells of it."""
    return [gpu, *(gpu._replace(uuid=f"MIG-{i}{gpu.uuid}", name=f"{gpu.name} MIG 1g.10gb") for i in range(count))]


def report(gpus, visible=None, chosen=None):
    """What a rank sees on a machine with these GPUs, with NVML."""
    seen = by_device(gpus, visible, None)
    return Report(len(seen), chosen, visible, seen)


def nameless(devices, visible=None, chosen=None):
    """The same without NVML."""
    return Report(devices, chosen, visible)


def seats(reports, cores=ALL_CORES, host=0, first=0):
    return [Seat(first + i, host, f"host{host}", i, cores, one) for i, one in enumerate(reports)]


# --- the choice ------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpus", [1, 2, 8])
@pytest.mark.parametrize("ranks_here", [1, 2, 3, 8, 16])
def test_local_ranks_take_the_gpus_in_turn(gpus, ranks_here):
    one = report(machine(gpus))
    taken = [one.device(local_rank) for local_rank in range(ranks_here)]
    assert taken == [i % gpus for i in range(ranks_here)]


def test_the_programs_choice_stays():
    assert report(machine(8), chosen=5).device(local_rank=2) == 5


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        (None, [0, 1, 2, 3]),
        ("2,0", [2, 0]),
        (" 1 , 3", [1, 3]),
        ("GPU-0003-aaaa,GPU-0001", [3, 1]),
        ("0,GPU-0002", [0, 2]),
        ("0,-1,1", [0]),
        ("1,9,2", [1]),  # CUDA stops at what it does not find
        ("GPU-00,1", []),  # the beginning of several
        ("", []),
    ],
)
def test_visible_devices(visible, indices):
    assert [gpu.number for gpu in by_device(machine(4), visible, None)] == indices


def test_numbers_are_known_only_where_all_gpus_are_alike():
    mixed = [*machine(2), *(g._replace(number=2 + g.number, uuid=f"GPU-b{g.number}") for g in machine(2, "NVIDIA T4"))]
    assert by_device(mixed, None, None) == ()
    assert by_device(mixed, "0,1", None) == ()
    assert by_device(mixed, None, "PCI_BUS_ID") == tuple(mixed)
    assert by_device(mixed, "GPU-b1,GPU-0000", None) == (mixed[3], mixed[0])


def test_instances_are_known_by_uuid_only():
    gpu = machine(1)[0]
    parts = instances(gpu, 2)
    assert by_device(parts, None, "PCI_BUS_ID") == ()
    assert by_device(parts, "MIG-1GPU-0000-aaaa", None) == (parts[2],)


# --- what is odd -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [report, lambda gpus, *a, **k: nameless(len(gpus), *a, **k)], ids=["NVML", "no NVML"])
class TestSharing:
    def test_one_rank_a_gpu(self, make):
        assert oddities(seats([make(machine(8))] * 8)) == []

    def test_more_ranks_than_gpus(self, make):
        ((speaker, text),) = oddities(seats([make(machine(2))] * 5))
        assert speaker == 0
        assert text.startswith("on host0 ranks 0, 2, 4 use GPU 0")
        assert "; ranks 1, 3 use GPU 1" in text

    def test_the_same_choice(self, make):
        chosen = [make(machine(4), chosen=device) for device in (0, 3, 1, 3)]
        ((speaker, text),) = oddities(seats(chosen))
        assert speaker == 1
        assert text.startswith("on host0 ranks 1, 3 use GPU 3")
        assert "GPU 1" not in text

    def test_many_are_not_listed(self, make):
        ((_, text),) = oddities(seats([make(machine(8))] * 16))
        assert "ranks 3, 11 use GPU 3" in text
        assert "GPU 4" not in text
        assert "; and 4 more:" in text

    def test_hosts_are_apart(self, make):
        two = seats([make(machine(1))], host=0) + seats([make(machine(1))] * 2, host=1, first=1)
        ((speaker, text),) = oddities(two)
        assert speaker == 1
        assert text.startswith("on host1 ranks 1-2 use GPU 0")

    def test_ranks_without_a_gpu_share_none(self, make):
        assert oddities(seats([None, make(machine(1)), None])) == []


def test_the_text_names_the_gpu():
    ((_, text),) = oddities(seats([report(machine(1))] * 2))
    assert f"use GPU 0 ({H100}, 0000:10:00.0): " in text
    assert "torch.cuda.set_device" in text


def test_instances_of_one_gpu_are_not_shared():
    parts = instances(machine(1)[0], 3)
    own = [report(parts, visible=part.uuid) for part in parts[1:]]
    assert oddities(seats(own)) == []
    ((_, text),) = oddities(seats([own[0], own[1], own[0]]))
    assert text.startswith("on host0 ranks 0, 2 use GPU 0 (NVIDIA H100 80GB HBM3 MIG 1g.10gb, 0000:10:00.0)")


def test_uuids_and_numbers_can_mean_one_gpu():
    both = [report(machine(2), "0"), report(machine(2), "GPU-0000")]
    texts = [text for _, text in oddities(seats(both))]
    assert len(texts) == 1
    assert texts[0].startswith("on host0 ranks 0-1 use GPU 0")


@pytest.mark.parametrize("make", [report, lambda gpus, v: nameless(v.count(",") + 1, v)], ids=["NVML", "no NVML"])
class TestDisagreement:
    def test_different_orders(self, make):
        found = oddities(seats([make(machine(2), "0,1"), make(machine(2), "1,0"), make(machine(2), "0,1")]))
        disagreement = [(s, t) for s, t in found if "CUDA_VISIBLE_DEVICES is" in t]
        assert len(disagreement) == 1
        assert disagreement[0][0] == 0
        assert "CUDA_VISIBLE_DEVICES is '0,1' on ranks 0, 2; '1,0' on rank 1:" in disagreement[0][1]

    def test_overlapping_sets(self, make):
        found = oddities(seats([make(machine(3), "0,1"), make(machine(3), "1,2")]))
        assert [s for s, t in found if "CUDA_VISIBLE_DEVICES is '0,1' on rank 0; '1,2' on rank 1" in t] == [0]

    def test_a_gpu_of_its_own_for_each_rank_is_right(self, make):
        assert oddities(seats([make(machine(4), str(i)) for i in range(4)])) == []

    def test_two_for_each_rank_are_right(self, make):
        assert (
            oddities(
                seats(
                    [
                        make(
                            machine(4),
                            "0,1",
                        ),
                        make(machine(4), "2,3"),
                    ]
                )
            )
            == []
        )

    def test_hosts_may_differ(self, make):
        there = [make(machine(4), "2,3")] * 2
        assert oddities(seats([make(machine(4), "0,1")] * 2) + seats(there, host=1, first=2)) == []


def test_set_and_not_set_disagree():
    found = oddities(seats([report(machine(2)), report(machine(2), "1")]))
    assert any("CUDA_VISIBLE_DEVICES is not set on rank 0; '1' on rank 1" in text for _, text in found)


def test_far_from_the_gpu():
    near, far = frozenset(range(8)), frozenset(range(40, 48))
    there = [
        seat._replace(cores=far if seat.rank in (1, 2) else near)
        for seat in seats([report(machine(4), chosen=i) for i in range(4)])
    ]
    ((speaker, text),) = oddities(there)
    assert speaker == 1
    assert (
        f"rank 1 runs on cores 40-47, and GPU 1 ({H100}, 0000:11:00.0) is near cores 0-31 (NUMA node 0); rank 2" in text
    )
    assert "rank 0" not in text


@pytest.mark.parametrize(
    "cores",
    [pytest.param({0, 63}, id="on both sides"), pytest.param(set(range(32, 64)), id="near")],
)
def test_near_enough(cores):
    assert oddities(seats([report(machine(8), "5")], cores=frozenset(cores))) == []


def test_distance_is_unknown_without_nvml():
    assert oddities(seats([nameless(1)], cores=frozenset({63}))) == []
    unknown = tuple(gpu._replace(cores=frozenset()) for gpu in machine(1))
    assert oddities(seats([Report(1, gpus=unknown)], cores=frozenset({63}))) == []


def test_numbers_for_people():
    assert spans({8, 2, 0, 1}) == "0-2, 8"
    assert (ranks([3]), ranks([0, 1])) == ("rank 3", "ranks 0-1")


# --- NVML ------------------------------------------------------------------------------------------


class FakeNvml:
    """As much of pynvml as ringreduce uses."""

    class NVMLError(Exception):
        pass

    NVML_P2P_CAPS_INDEX_NVLINK = 2
    NVML_P2P_STATUS_OK = 0
    NVML_AFFINITY_SCOPE_NODE = 0

    def __init__(self, gpus, *, parts=(), cannot=(), text=str):
        self.gpus, self.parts, self.cannot, self.text = gpus, parts, cannot, text
        self.running = 0

    def __getattribute__(self, name):
        if name.startswith("nvml") and name in self.cannot:
            raise self.NVMLError("Not Supported")
        return super().__getattribute__(name)

    def nvmlInit(self):
        self.running += 1

    def nvmlShutdown(self):
        self.running -= 1

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):
        return self.gpus[index]

    def nvmlDeviceGetUUID(self, handle):
        return self.text(handle.uuid)

    def nvmlDeviceGetName(self, handle):
        return self.text(handle.name)

    def nvmlDeviceGetPciInfo(self, handle):
        return SimpleNamespace(busId=self.text("0000" + handle.pci.upper()))

    def nvmlDeviceGetCpuAffinity(self, handle, words):
        return [sum(1 << core - 64 * w for core in handle.cores if core // 64 == w) for w in range(words)]

    def nvmlDeviceGetMemoryAffinity(self, handle, words, scope):
        return [sum(1 << node for node in handle.nodes)]

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(total=handle.memory_bytes)

    def nvmlDeviceGetMaxMigDeviceCount(self, handle):
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle, number):
        if number >= len(self.parts):
            raise self.NVMLError("Not Found")
        return self.parts[number]

    def nvmlDeviceGetP2PStatus(self, one, other, kind):
        return 0 if abs(one.number - other.number) == 1 else 5


@pytest.mark.parametrize("text", [str, str.encode])
def test_nvml_is_read(text):
    gpus = machine(8, per_node=8)
    assert nvml.read(FakeNvml(gpus, text=text)) == gpus


def test_nvml_is_read_where_it_knows_little():
    cannot = {"nvmlDeviceGetCpuAffinity", "nvmlDeviceGetMemoryAffinity", "nvmlDeviceGetMemoryInfo",
              "nvmlDeviceGetMaxMigDeviceCount", "nvmlDeviceGetP2PStatus"}  # fmt: skip
    library = FakeNvml(machine(2), cannot=cannot)
    assert nvml.read(library) == [g._replace(cores=frozenset(), nodes=(), memory_bytes=0) for g in machine(2)]
    assert nvml.nvlinks(library, machine(2)) == {0: [], 1: []}


def test_instances_follow_their_gpu():
    parts = instances(machine(1, per_node=8)[0], 3)
    assert nvml.read(FakeNvml(parts[:1], parts=parts[1:])) == parts


def test_links():
    gpus = machine(3)
    assert nvml.nvlinks(FakeNvml(gpus), gpus) == {0: [1], 1: [0, 2], 2: [1]}


def test_what_is_used_of_pynvml_is_there():
    pynvml = pytest.importorskip("pynvml")
    used = {name for name in vars(FakeNvml) if name.startswith(("nvml", "NVML"))}
    assert [name for name in used if not hasattr(pynvml, name)] == []
    library, problem = nvml.load()
    assert (library is None) == bool(problem)


def test_without_nvidia_ml_py(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.load() == (None, "nvidia-ml-py is not installed: pip install 'ringreduce[gpu]'")


# --- torch -----------------------------------------------------------------------------------------


class FakeCuda:
    """torch.cuda on a machine with GPUs: queues what is to be done when CUDA starts."""

    def __init__(self, devices):
        self.devices, self.current, self.running, self.queue = devices, 0, False, []

    def device_count(self):
        return self.devices

    def is_initialized(self):
        return self.running

    def start(self):
        self.running = True
        for call in self.queue:
            call()

    def current_device(self):
        if not self.running:
            self.start()
        return self.current

    def set_device(self, device):
        self.current_device()
        self.current = device

    def _lazy_call(self, call):
        call() if self.running else self.queue.append(call)


@pytest.fixture
def cuda(monkeypatch):
    """A machine with two GPUs, with NVML, on which nothing has been placed yet."""
    fake = FakeCuda(2)
    for name in ("device_count", "is_initialized", "current_device", "set_device", "_lazy_call"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name), raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    fake.nvml = FakeNvml(machine(2, per_node=8))
    monkeypatch.setitem(sys.modules, "pynvml", fake.nvml)
    monkeypatch.setattr(placement, "_pending", None)
    monkeypatch.setattr(placement, "_said", set())
    fake.lines = []
    monkeypatch.setattr(placement._core, "log", lambda level, text: fake.lines.append((level, text)))
    return fake


def warnings(cuda):
    return [text for level, text in cuda.lines if level == 1]


def test_looking_starts_nothing(cuda):
    seen = placement.look({"CUDA_VISIBLE_DEVICES": "1,0"})
    assert seen == Report(2, None, "1,0", tuple(reversed(machine(2, per_node=8))))
    assert not cuda.running
    assert cuda.nvml.running == 0  # shut down again


def test_what_nvml_does_not_say_is_no_error(cuda):
    cuda.nvml.cannot = {"nvmlDeviceGetCount"}
    assert placement.look({}) == Report(2, problem="NVML: Not Supported")
    cuda.nvml.cannot = {"nvmlInit"}
    assert placement.look({}) == Report(2, problem="NVML cannot be used: Not Supported")
    cuda.nvml.cannot = ()
    assert placement.look({"CUDA_VISIBLE_DEVICES": "0"}) == Report(2, None, "0", (), "of 2 devices NVML names 1")


def test_the_gpu_is_set_when_cuda_starts(cuda):
    placement.settle(1, seats([placement.look({})] * 2))
    assert not cuda.running
    assert cuda.current_device() == 1
    assert cuda.lines == [(2, f"this rank uses GPU 1 ({H100}, 0000:11:00.0)")]


def test_the_programs_own_set_device_wins_later_and_earlier(cuda):
    placement.settle(1, seats([placement.look({})] * 2))
    cuda.set_device(0)
    assert cuda.current_device() == 0
    placement.settle(1, seats([placement.look({})] * 2))  # init once more
    assert cuda.current_device() == 0


def test_warnings_wait_for_cuda_and_come_once(cuda):
    there = seats([placement.look({})] * 3)
    for _ in range(2):
        placement.settle(0, there)
    assert warnings(cuda) == []
    assert len(cuda.queue) == 1
    cuda.start()
    assert len(warnings(cuda)) == 1
    assert "ranks 0, 2 use GPU 0" in warnings(cuda)[0]
    placement.settle(0, there)
    assert len(warnings(cuda)) == 1


def test_only_the_lowest_rank_concerned_warns(cuda):
    cuda.start()
    placement.settle(2, seats([placement.look({})] * 3))
    assert warnings(cuda) == []


def test_a_missing_nvml_is_told_to_those_who_debug(cuda, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    cuda.start()
    placement.settle(0, seats([placement.look({})]))
    assert cuda.lines[0] == (
        3,
        "GPUs are not known by name: nvidia-ml-py is not installed: pip install 'ringreduce[gpu]'",
    )
    assert cuda.lines[1] == (2, "this rank uses GPU 0")


def test_without_a_gpu_nothing_happens(cuda, monkeypatch):
    cuda.devices = 0
    assert placement.look({}) is None
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: pytest.fail("a torch without CUDA is asked for GPUs"))
    assert placement.look({}) is None
    placement.settle(0, seats([None, Report(2)]))
    assert cuda.queue == []
    assert cuda.lines == []
