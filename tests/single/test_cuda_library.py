"""The CUDA library: how it is built, and what is built where there is a CUDA toolkit. No GPU is needed."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import setup_cuda  # noqa: E402

ALLOWED = re.compile(r"^(lib(c|m|dl|rt|stdc\+\+|gcc_s|pthread)\.so\.\d+|ld-linux-[\w-]+\.so\.\d+)$")
TOOLKIT = setup_cuda.Toolkit("nvcc", (12, 4), ("70", "75", "80", "86", "90"))


# --- which toolkit, and what for -----------------------------------------------------------------


def fake_nvcc(directory: Path, release: str = "12.4") -> Path:
    nvcc = directory / "nvcc"
    directory.mkdir(parents=True, exist_ok=True)
    nvcc.write_text(
        f'#!/bin/sh\ncase "$1" in\n--version) echo "Cuda compilation tools, release {release}, V{release}.1" ;;\n'
        "--list-gpu-arch) printf 'compute_75\\ncompute_80\\n' ;;\nesac\n"
    )
    nvcc.chmod(0o755)
    return nvcc


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A machine without any toolkit."""
    monkeypatch.setattr(setup_cuda, "USUAL_PLACE", tmp_path / "usual")
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    for name in ("CUDA_HOME", "RINGREDUCE_CUDA", "RINGREDUCE_CUDA_ARCHS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_without_nvcc_one_line_says_so(nowhere, capsys):
    assert setup_cuda.build_where_wanted("g++") is None
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("ringreduce: built for CPUs only")
    assert "no nvcc" in lines[0]


def test_without_nvcc_it_cannot_be_demanded(nowhere, monkeypatch):
    monkeypatch.setenv("RINGREDUCE_CUDA", "1")
    with pytest.raises(SystemExit, match="RINGREDUCE_CUDA is 1, but there is no nvcc"):
        setup_cuda.build_where_wanted("g++")


def test_it_can_be_left_out(nowhere, monkeypatch, capsys):
    fake_nvcc(nowhere / "path")
    monkeypatch.setenv("RINGREDUCE_CUDA", "0")
    assert setup_cuda.build_where_wanted("g++") is None
    assert "RINGREDUCE_CUDA is 0" in capsys.readouterr().out


def test_other_settings_are_refused(nowhere, monkeypatch):
    monkeypatch.setenv("RINGREDUCE_CUDA", "yes")
    with pytest.raises(SystemExit, match='RINGREDUCE_CUDA is "yes"'):
        setup_cuda.build_where_wanted("g++")


def test_where_nvcc_is_looked_for(nowhere):
    """CUDA_HOME, which somebody has set on purpose, then PATH, then the usual place."""
    environment = {"PATH": str(nowhere / "path"), "CUDA_HOME": str(nowhere / "home")}
    for place in ("usual/bin", "path", "home/bin"):
        nvcc = fake_nvcc(nowhere / place)
        assert setup_cuda.find_nvcc(environment) == str(nvcc)


def test_the_toolkit_is_asked_what_it_knows(nowhere):
    nvcc = fake_nvcc(nowhere / "path", "13.2")
    assert setup_cuda.find_toolkit(os.environ) == setup_cuda.Toolkit(str(nvcc), (13, 2), ("75", "80"))


def test_an_old_toolkit_is_no_toolkit(nowhere, capsys):
    fake_nvcc(nowhere / "path", "11.8")
    assert setup_cuda.build_where_wanted("g++") is None
    assert "is of CUDA 11.8, and 12.0 or newer is needed" in capsys.readouterr().out


def test_a_broken_nvcc_is_no_toolkit(nowhere, capsys):
    nvcc = fake_nvcc(nowhere / "path")
    nvcc.write_text("#!/bin/sh\nexit 3\n")
    assert setup_cuda.build_where_wanted("g++") is None
    assert "does not run" in capsys.readouterr().out


def test_targets():
    assert setup_cuda.targets("", TOOLKIT) == ["75", "80", "90"]
    assert setup_cuda.targets("90", TOOLKIT) == ["90"]
    for wanted in ("90;80", "80,90", " 80 90 ", "90;80;90"):
        assert setup_cuda.targets(wanted, TOOLKIT) == ["80", "90"]
    assert setup_cuda.targets("90a;75", TOOLKIT) == ["75", "90a"]


@pytest.mark.parametrize("wanted", ["9.0", "sm_90", "80;ninety", "80+PTX", "8", "-80", "80;9000"])
def test_malformed_targets(wanted):
    with pytest.raises(SystemExit, match=r"RINGREDUCE_CUDA_ARCHS is .* is no architecture; write"):
        setup_cuda.targets(wanted, TOOLKIT)


def test_targets_that_the_toolkit_does_not_know():
    with pytest.raises(SystemExit, match=r"asks for 120, which CUDA 12\.4 does not know; it knows 70, 75, 80, 86, 90"):
        setup_cuda.targets("80;120", TOOLKIT)


def test_programs_for_all_and_ptx_of_the_newest():
    codes = setup_cuda.code_flags(["80", "90"])[1::2]
    assert codes == ["arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90", "arch=compute_90,code=compute_90"]


# --- what was built ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library():
    try:
        setup_cuda.find_toolkit(os.environ)
    except setup_cuda.NotBuilt as reason:
        pytest.skip(str(reason))
    if os.environ.get("RINGREDUCE_CUDA") == "0":
        pytest.skip("RINGREDUCE_CUDA is 0")
    spec = importlib.util.find_spec("ringreduce")
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / setup_cuda.LIBRARY
    assert path.is_file(), "there is a CUDA toolkit, but the library is not built"
    return path


class Api(ctypes.Structure):
    """The beginning of CudaApi (csrc/gpu/cuda_api.h)."""

    _fields_ = [
        ("version", ctypes.c_int),
        ("is_double", ctypes.c_bool),
        ("error_text", ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_int)),
        ("driver_version", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int))),
        ("runtime_version", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int))),
        ("device_count", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int))),
    ]


@pytest.fixture(scope="module")
def api(library):
    get = ctypes.CDLL(str(library)).ringreduce_cuda_api
    get.restype = ctypes.POINTER(Api)
    return get().contents


def test_the_table_is_of_this_version(api):
    header = (ROOT / "csrc" / "gpu" / "cuda_api.h").read_text()
    version = re.search(r"constexpr int kVersion = (\d+);", header)
    assert version is not None
    assert api.version == int(version[1])
    assert not api.is_double


def test_the_toolkit_s_runtime_is_in_it(api):
    version = ctypes.c_int()
    assert api.runtime_version(version) == 0
    major, minor = setup_cuda.find_toolkit(os.environ).version
    assert version.value // 10 == major * 100 + minor


def test_without_a_driver_it_says_so(api):
    driver, count = ctypes.c_int(), ctypes.c_int()
    assert api.driver_version(driver) == 0
    if driver.value:
        pytest.skip(f"there is a driver for CUDA {driver.value // 1000}.{driver.value // 10 % 100}")
    error = api.device_count(count)
    assert error == 35  # cudaErrorInsufficientDriver
    assert "no NVIDIA driver" in api.error_text(error).decode()
    assert api.error_text(0).decode() == "no error"


def test_exports_one_function(library):
    with open(library, "rb") as file:
        symbols = ELFFile(file).get_section_by_name(".dynsym").iter_symbols()
        exported = [s.name for s in symbols if s.name and s["st_shndx"] != "SHN_UNDEF"]
    assert exported == ["ringreduce_cuda_api"]


def test_needs_only_the_c_and_cpp_libraries(library):
    with open(library, "rb") as file:
        tags = list(ELFFile(file).get_section_by_name(".dynamic").iter_tags())
    needed = [tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"]
    assert "libc.so.6" in needed
    assert not [name for name in needed if not ALLOWED.match(name)]
    assert not [tag for tag in tags if tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH")]


def test_has_a_program_for_each_target(library):
    toolkit = setup_cuda.find_toolkit(os.environ)
    cuobjdump = shutil.which("cuobjdump") or shutil.which("cuobjdump", path=str(setup_cuda.USUAL_PLACE / "bin"))
    if cuobjdump is None:
        pytest.skip("there is no cuobjdump")
    targets = setup_cuda.targets(os.environ.get("RINGREDUCE_CUDA_ARCHS", ""), toolkit)
    for what, expected in (("--list-elf", set(targets)), ("--list-ptx", {targets[-1]})):
        done = subprocess.run([cuobjdump, what, library], capture_output=True, text=True, check=True)
        assert set(re.findall(r"sm_(\w+)\.", done.stdout)) == expected
