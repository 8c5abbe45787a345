"""Builds the CUDA library (csrc/gpu/cuda) where there is a CUDA toolkit; ringreduce works without it on CPUs.

Settings, all environment variables:

    RINGREDUCE_CUDA        0: not built; 1: must be built; else built where nvcc of CUDA 12 or newer is found
    RINGREDUCE_CUDA_ARCHS  GPUs to build for, as "80;90"; else those of TARGETS that the toolkit knows
    CUDA_HOME              the toolkit; else that of the nvcc on PATH, else /usr/local/cuda
    NVCC_CCBIN             nvcc's host compiler; else the one that compiles the core
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setup_objects import OBJECTS, ROOT, dependencies, is_current, jobs, run

LIBRARY = "libringreduce_cuda.so"
USUAL_PLACE = Path("/usr/local/cuda")
OLDEST = (12, 0)

# A program for 8.0 runs on 8.6 and 8.9 too, one for 10.0 on 10.3, one for 12.0 on 12.1. PTX of the
# newest is compiled by the driver for GPUs that come later.
TARGETS = ("75", "80", "90", "100", "120")

# -fmad=false: no contraction into fused multiply-adds, as on the CPU: the same bits.
FLAGS = shlex.split(
    "-O2 -std=c++17 -fmad=false -Xfatbin -compress-all -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra"
)
LINK_FLAGS = shlex.split("-shared -cudart static -Xlinker --exclude-libs,ALL,--as-needed,-z,relro,-z,now")
ADVICE = " (RINGREDUCE_CUDA=0 builds ringreduce without it, for CPUs only)"


class NotBuilt(Exception):
    """Why there will be no CUDA library."""


@dataclass(frozen=True)
class Toolkit:
    nvcc: str
    version: tuple[int, int]
    architectures: tuple[str, ...]  # all that it knows: "75", "80", ...


def find_nvcc(environment: Mapping[str, str]) -> str:
    home = environment.get("CUDA_HOME")
    found = (
        (home and shutil.which("nvcc", path=f"{home}/bin"))
        or shutil.which("nvcc", path=environment.get("PATH", ""))
        or shutil.which("nvcc", path=str(USUAL_PLACE / "bin"))
    )
    if not found:
        raise NotBuilt(f"there is no nvcc in CUDA_HOME, on PATH or in {USUAL_PLACE}")
    return found


def output_of(command: list[str]) -> str:
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotBuilt(f"{shlex.join(command)} does not run ({error})") from None


def find_toolkit(environment: Mapping[str, str]) -> Toolkit:
    nvcc = find_nvcc(environment)
    release = re.search(r"release (\d+)\.(\d+)", output_of([nvcc, "--version"]))
    version = (int(release[1]), int(release[2])) if release else (0, 0)
    if version < OLDEST:
        raise NotBuilt(f"{nvcc} is of CUDA {version[0]}.{version[1]}, and 12.0 or newer is needed")
    return Toolkit(nvcc, version, tuple(re.findall(r"compute_(\d+)", output_of([nvcc, "--list-gpu-arch"]))))


def targets(wanted: str, toolkit: Toolkit) -> list[str]:
    """The architectures to build for, in order; `wanted` is RINGREDUCE_CUDA_ARCHS."""
    if not wanted.strip():
        return [target for target in TARGETS if target in toolkit.architectures]
    names = [name for name in re.split(r"[;,\s]+", wanted.strip()) if name]
    for name in names:
        if not re.fullmatch(r"\d{2,3}[af]?", name):
            raise SystemExit(
                f'ringreduce: RINGREDUCE_CUDA_ARCHS is "{wanted}", and "{name}" is no architecture; '
                'write compute capabilities without the dot, as "80;90"'
            )
        if name.rstrip("af") not in toolkit.architectures:
            raise SystemExit(
                f"ringreduce: RINGREDUCE_CUDA_ARCHS asks for {name}, which CUDA {toolkit.version[0]}."
                f"{toolkit.version[1]} does not know; it knows {', '.join(toolkit.architectures)}"
            )
    return sorted(set(names), key=lambda name: (int(name.rstrip("af")), name))


def code_flags(chosen: list[str]) -> list[str]:
    """nvcc's flags for programs of all chosen architectures and PTX of the newest."""
    newest = chosen[-1]
    codes = [(target, f"sm_{target}") for target in chosen] + [(newest, f"compute_{newest}")]
    return [word for target, code in codes for word in ("-gencode", f"arch=compute_{target},code={code}")]


def compile_object(toolkit: Toolkit, source: Path, flags: list[str], threads: int) -> Path:
    """Compiles one source unless its object is current; returns the object."""
    output = OBJECTS / f"{source.with_suffix('')}.o"
    depfile = output.with_suffix(".d")
    command = [toolkit.nvcc, *flags, "-I", "csrc"]
    signature = [*command, f"{toolkit.version}"]
    if not is_current(output, [ROOT / source, *dependencies(depfile)], signature):
        files = ["-MMD", "-MF", str(depfile), "-c", str(source), "-o", str(output)]
        output.parent.mkdir(parents=True, exist_ok=True)
        run([*command, "--threads", str(threads), *files], output, signature, ADVICE)
    return output


def build(cxx: str) -> Path:
    """Builds what is not current and returns the library; raises NotBuilt."""
    toolkit = find_toolkit(os.environ)
    host = [] if os.environ.get("NVCC_CCBIN") else ["-ccbin", cxx]
    codes = code_flags(targets(os.environ.get("RINGREDUCE_CUDA_ARCHS", ""), toolkit))
    flags = [*host, *FLAGS, *codes]
    sources = sorted(path.relative_to(ROOT) for path in ROOT.glob("csrc/gpu/cuda/*.cu"))
    threads = max(1, jobs() // len(sources))
    with ThreadPoolExecutor(jobs()) as pool:
        objects = list(pool.map(lambda source: compile_object(toolkit, source, flags, threads), sources))
    library = OBJECTS / LIBRARY
    command = [toolkit.nvcc, *host, *codes, *map(str, objects), *LINK_FLAGS, "-o", str(library)]
    if not is_current(library, objects, command):
        run(command, library, command, ADVICE)
    return library


def build_where_wanted(cxx: str) -> Path | None:
    """The library, or None after one line that says why there is none."""
    wanted = os.environ.get("RINGREDUCE_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(f'ringreduce: RINGREDUCE_CUDA is "{wanted}"; 0 and 1 are possible, or nothing')
    try:
        if wanted == "0":
            raise NotBuilt("RINGREDUCE_CUDA is 0")
        return build(cxx)
    except NotBuilt as reason:
        if wanted == "1":
            raise SystemExit(f"ringreduce: RINGREDUCE_CUDA is 1, but {reason}") from None
        print(f"ringreduce: built for CPUs only, without the CUDA library: {reason}", flush=True)
        return None
