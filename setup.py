"""Builds ringreduce/_core: every csrc/**/*.cc (but gpu/cuda) and nanobind's own sources in one library.

The sources of a folder, and of all folders below the engine, are compiled as one unit, which includes them all:
reading the headers costs more than compiling what is in one of our files. So what one file defines for itself,
its neighbours see.

The build has its own build_ext command so that `pip install .`, `pip install -e .` and `make`
share objects: they lie in build/objects/, are compiled in parallel, and only those whose sources
or command changed are compiled again. Nothing is looked for on the machine but a C++17 compiler;
MPI, CUDA and torch are found at run time. Settings, all environment variables:

    CXX                      the compiler
    MAX_JOBS                 how many compilers run at once
    RINGREDUCE_ABI3_HEADERS  folders, as in CPATH, with headers of Python 3.12 or newer, whichever Python builds:
                             the core is for the stable ABI of 3.12, one for it and all that come later

Where there is a CUDA toolkit, a second library is built for GPUs (setup_cuda.py).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nanobind
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).resolve().parent))  # pip does not put it there
from setup_cuda import LIBRARY, build_where_wanted
from setup_objects import OBJECTS, ROOT, dependencies, is_current, jobs, run, write_if_changed

NANOBIND = Path(nanobind.source_dir())
ABI3_HEADERS = os.environ.get("RINGREDUCE_ABI3_HEADERS", "")
PYTHON_HEADERS = ABI3_HEADERS.split(os.pathsep) if ABI3_HEADERS else [sysconfig.get_path("include")]
# What sees Python is built for each ABI, all else once.
OF_PYTHON = OBJECTS / ("abi3" if ABI3_HEADERS else str(sysconfig.get_config_var("SOABI")))

# No -march: the library must run on another machine; kernels choose by CPU at run time.
# No contraction into fused multiply-adds: all ranks and all kernels give the same bits.
FLAGS = shlex.split(
    "-O2 -std=c++17 -fPIC -pthread -g0 -ffp-contract=off -fvisibility=hidden -ffunction-sections -fdata-sections"
)
# Folders whose headers cost more than their sources.
BELOW_THE_ENGINE = ("agreement", "buckets", "collectives", "common", "liveness", "net", "ops", "shm")
OWN_FLAGS = ["-Wall", "-Wextra"]
KERNEL_FLAGS = ["-O3"]
# Sources that see Python and nanobind. NDEBUG and the compact assertions are nanobind's release
# configuration; nanobind itself cannot stand strict aliasing.
PYTHON_FLAGS = ["-DNDEBUG", "-DNB_COMPACT_ASSERTIONS"]
if ABI3_HEADERS:
    PYTHON_FLAGS += ["-DPy_LIMITED_API=0x030C0000"]
NANOBIND_FLAGS = ["-fno-strict-aliasing", "-w"]
LINK_FLAGS = shlex.split("-shared -pthread -Wl,--gc-sections -Wl,--as-needed -Wl,-z,relro,-z,now -ldl")


def compiler() -> str:
    """The C++ compiler: $CXX, else the one Python was built with, else the usual names."""
    built_with = shlex.split(sysconfig.get_config_var("CXX") or "")[:1]
    for name in [*shlex.split(os.environ.get("CXX", ""))[:1], *built_with, "g++", "c++", "clang++"]:
        if shutil.which(name):
            return name
    raise SystemExit("ringreduce: no C++ compiler found; install g++ (Debian: apt-get install g++) or set CXX")


def check_headers(cxx: str) -> None:
    """Ends the build with one clear line where Python's own headers are missing."""
    probe = [cxx, "-E", "-x", "c++", *(f"-I{path}" for path in PYTHON_HEADERS), "-", "-o", os.devnull]
    if subprocess.run(probe, input="#include <Python.h>", stderr=subprocess.DEVNULL, text=True).returncode:
        raise SystemExit(
            f"ringreduce: Python.h is not in {PYTHON_HEADERS[0]}; install Python's headers "
            "(Debian: apt-get install python3-dev) or name their directory in CPATH"
        )


def core_sources() -> list[Path]:
    """The core's sources, relative to the root; csrc/gpu/cuda is a library of its own."""
    found = (path.relative_to(ROOT) for path in ROOT.glob("csrc/**/*.cc"))
    return sorted(path for path in found if path.parts[1:3] != ("gpu", "cuda"))


def unit_of(source: Path) -> str:
    folder = source.parts[1]
    return "below" if folder in BELOW_THE_ENGINE else folder


def units() -> list[Path]:
    """What is compiled: sources that are written here; the kernels, as each is for another instruction set."""
    sources = core_sources()
    found = [source for source in sources if unit_of(source) == "kernels"]
    for name in sorted({unit_of(source) for source in sources} - {"kernels"}):
        includes = (f'#include "{source.relative_to("csrc")}"\n' for source in sources if unit_of(source) == name)
        unit = write_if_changed(OBJECTS / "csrc" / name / "unit.cc", "".join(includes))
        found.append(unit.relative_to(ROOT))
    return found


def sees_python(source: Path) -> bool:
    return source.is_relative_to(NANOBIND) or source.parent.name == "bindings"


def compile_command(source: Path) -> tuple[list[str], list[str]]:
    """The flags that decide what the object is, and the include paths.

    Includes outside this repository pass as -isystem: no warnings from there, and their paths,
    which differ from one isolated pip build to the next, stay out of the dependency files.
    """
    flags, includes = list(FLAGS), ["-I", "csrc"]
    if sees_python(source):
        flags += PYTHON_FLAGS
        for directory in (
            nanobind.include_dir(),
            NANOBIND.parent / "ext" / "robin_map" / "include",
            *PYTHON_HEADERS,
        ):
            includes += ["-isystem", str(directory)]
    elif source.parent.name == "kernels":
        flags += KERNEL_FLAGS
    return flags + (NANOBIND_FLAGS if source.is_relative_to(NANOBIND) else OWN_FLAGS), includes


def compile_object(cxx: str, source: Path) -> Path:
    """Compiles one unit unless its object is current; returns the object."""
    of_nanobind = source.is_relative_to(NANOBIND)
    output = (OF_PYTHON if sees_python(source) else OBJECTS / "csrc") / source.parent.name / f"{source.stem}.o"
    flags, includes = compile_command(source)
    signature = [cxx, *flags]
    inputs = [ROOT / source]
    depfile = output.with_suffix(".d")
    if sees_python(source):
        signature += [f"nanobind-{nanobind.__version__}"]
    if of_nanobind:
        inputs = []  # a released nanobind never changes under its version number
    else:
        inputs += dependencies(depfile)
    if not is_current(output, inputs, signature):
        run([cxx, *flags, *includes, "-MMD", "-c", str(source), "-o", str(output)], output, signature)
    return output


class BuildPackage(build_py):
    """build_py into an empty folder: modules of an earlier build that are gone do not get into the wheel."""

    def run(self) -> None:
        shutil.rmtree(Path(self.build_lib) / "ringreduce", ignore_errors=True)
        super().run()


class BuildLibraries(build_ext):
    """build_ext for the one extension that there is, and for the CUDA library.

    The latter is no Extension: one that comes to nothing, as where there is no nvcc, breaks `pip install -e`.
    """

    with_cuda = False

    def cuda_libraries(self) -> list[Path]:
        """Where the CUDA library goes; first the one that is packed."""
        packages = [Path(self.build_lib) / "ringreduce", ROOT / "ringreduce"]
        return [package / LIBRARY for package in packages[: 1 + bool(self.inplace)]]

    def run(self) -> None:
        super().run()
        library = build_where_wanted(compiler())
        self.with_cuda = library is not None
        for target in self.cuda_libraries():
            target.unlink(missing_ok=True)  # may be of an earlier build
            if library:
                shutil.copyfile(library, target)

    def get_outputs(self) -> list[str]:
        packed = [] if self.inplace else [str(self.cuda_libraries()[0])] * self.with_cuda
        return super().get_outputs() + packed

    def get_output_mapping(self) -> dict[str, str]:
        mapping = super().get_output_mapping()
        if self.inplace and self.with_cuda:
            packed, in_place = map(str, self.cuda_libraries())
            mapping[packed] = in_place
        return mapping

    def build_extension(self, ext: Extension) -> None:
        cxx = compiler()
        check_headers(cxx)
        with ThreadPoolExecutor(jobs()) as pool:
            # nanobind first: it takes longest.
            sources = [NANOBIND / "nb_combined.cpp", *units()]
            objects = list(pool.map(lambda source: compile_object(cxx, source), sources))
        library = OF_PYTHON / "_core.so"
        command = [cxx, *map(str, objects), *LINK_FLAGS, "-o", str(library)]
        if not is_current(library, objects, command):
            run(command, library, command)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library, target)


class BuildWheel(bdist_wheel):
    """bdist_wheel that lets a Python older than 3.12 build for the stable ABI of 3.12."""

    def get_tag(self) -> tuple[str, str, str]:
        tag = super().get_tag()
        return ("cp312", "abi3", tag[2]) if ABI3_HEADERS else tag


CORE = Extension(
    "ringreduce._core",
    [str(path) for path in core_sources()],
    language="c++",
    py_limited_api=bool(ABI3_HEADERS),
)
setup(
    ext_modules=[CORE],
    cmdclass={"build_ext": BuildLibraries, "build_py": BuildPackage, "bdist_wheel": BuildWheel},
)
