"""Builds ringreduce/_core: every csrc/**/*.cc (but gpu/) and nanobind's own sources in one library.

The build has its own build_ext command so that `pip install .`, `pip install -e .` and `make`
share objects: they lie in build/objects/, are compiled in parallel, and only those whose sources
or command changed are compiled again. Nothing is looked for on the machine but a C++17 compiler;
MPI, CUDA and torch are found at run time. Settings: CXX (compiler), MAX_JOBS (parallel compiles).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nanobind
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OBJECTS = ROOT / "build" / "objects" / str(sysconfig.get_config_var("SOABI"))
NANOBIND = Path(nanobind.source_dir())

# No -march: the library must run on another machine; kernels choose by CPU at run time.
# No contraction into fused multiply-adds: all ranks and all kernels give the same bits.
FLAGS = shlex.split(
    "-O3 -std=c++17 -fPIC -pthread -g0 -ffp-contract=off -fvisibility=hidden -ffunction-sections -fdata-sections"
)
OWN_FLAGS = ["-Wall", "-Wextra"]
# Sources that see Python and nanobind. NDEBUG and the compact assertions are nanobind's release
# configuration; nanobind itself cannot stand strict aliasing.
PYTHON_FLAGS = ["-DNDEBUG", "-DNB_COMPACT_ASSERTIONS"]
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
    probe = [cxx, "-E", "-x", "c++", "-I", sysconfig.get_path("include"), "-", "-o", os.devnull]
    if subprocess.run(probe, input="#include <Python.h>", stderr=subprocess.DEVNULL, text=True).returncode:
        raise SystemExit(
            f"ringreduce: Python.h is not in {sysconfig.get_path('include')}; install Python's headers "
            "(Debian: apt-get install python3-dev) or name their directory in CPATH"
        )


def core_sources() -> list[Path]:
    """The core's sources, relative to the root; csrc/gpu/cuda is a library of its own."""
    found = (path.relative_to(ROOT) for path in ROOT.glob("csrc/**/*.cc"))
    return sorted(path for path in found if path.parts[1:3] != ("gpu", "cuda"))


def compile_command(source: Path) -> tuple[list[str], list[str]]:
    """The flags that decide what the object is, and the include paths.

    Includes outside this repository pass as -isystem: no warnings from there, and their paths,
    which differ from one isolated pip build to the next, stay out of the dependency files.
    """
    flags, includes = list(FLAGS), ["-I", "csrc"]
    of_nanobind = source.is_relative_to(NANOBIND)
    if of_nanobind or source.parts[1] == "bindings":
        flags += PYTHON_FLAGS
        for directory in (
            nanobind.include_dir(),
            NANOBIND.parent / "ext" / "robin_map" / "include",
            sysconfig.get_path("include"),
        ):
            includes += ["-isystem", str(directory)]
    return flags + (NANOBIND_FLAGS if of_nanobind else OWN_FLAGS), includes


def is_current(output: Path, inputs: list[Path], command: list[str]) -> bool:
    """Whether `output` was made by `command` and is newer than all of `inputs`."""
    stamp = output.with_suffix(".command")
    if not output.exists() or not stamp.exists() or stamp.read_text() != shlex.join(command):
        return False
    return all(path.exists() and path.stat().st_mtime <= output.stat().st_mtime for path in inputs)


def run(command: list[str], output: Path, signature: list[str]) -> None:
    """Runs a compiler; its messages go through whole, whichever thread it ran in."""
    output.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(f"{shlex.join(command)}\n{done.stdout}", end="", flush=True)
    if done.returncode:
        raise SystemExit(f"ringreduce: could not build {output.name}:\n{done.stdout}")
    output.with_suffix(".command").write_text(shlex.join(signature))


def compile_object(cxx: str, source: Path) -> Path:
    """Compiles one source unless its object is current; returns the object."""
    output = OBJECTS / (f"nanobind/{source.stem}.o" if source.is_absolute() else f"{source.with_suffix('')}.o")
    flags, includes = compile_command(source)
    signature = [cxx, *flags]
    inputs = [ROOT / source]
    depfile = output.with_suffix(".d")
    if source.is_absolute() or "bindings" in source.parts:
        signature += [f"nanobind-{nanobind.__version__}"]
    if source.is_absolute():
        inputs = []  # a released nanobind never changes under its version number
    elif depfile.exists():
        inputs += [ROOT / name for name in depfile.read_text().replace("\\\n", " ").split(":", 1)[1].split()]
    if not is_current(output, inputs, signature):
        run([cxx, *flags, *includes, "-MMD", "-c", str(source), "-o", str(output)], output, signature)
    return output


class BuildCore(build_ext):
    """build_ext for the one extension that there is."""

    def build_extension(self, ext: Extension) -> None:
        cxx = compiler()
        check_headers(cxx)
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            # nanobind first: it takes longest.
            sources = [NANOBIND / "nb_combined.cpp", *core_sources()]
            objects = list(pool.map(lambda source: compile_object(cxx, source), sources))
        library = OBJECTS / "_core.so"
        command = [cxx, *map(str, objects), *LINK_FLAGS, "-o", str(library)]
        if not is_current(library, objects, command):
            run(command, library, command)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library, target)


setup(
    ext_modules=[Extension("ringreduce._core", [str(path) for path in core_sources()], language="c++")],
    cmdclass={"build_ext": BuildCore},
)
