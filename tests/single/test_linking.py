"""What the built core needs from the machine: the C and C++ libraries and nothing else."""

from __future__ import annotations

import importlib.util
import re

import pytest
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

ALLOWED = re.compile(r"^(lib(c|m|stdc\+\+|gcc_s|pthread)\.so\.\d+|ld-linux-[\w-]+\.so\.\d+)$")


@pytest.fixture(scope="module")
def core():
    spec = importlib.util.find_spec("ringreduce._core")
    assert spec is not None, "the core is not built"
    assert spec.origin is not None
    with open(spec.origin, "rb") as file:
        yield ELFFile(file)


def dynamic(core: ELFFile, tag: str) -> list[str]:
    """The values of one kind of entry in the dynamic section."""
    section = core.get_section_by_name(".dynamic")
    assert isinstance(section, DynamicSection)
    attribute = {"DT_NEEDED": "needed", "DT_RPATH": "rpath", "DT_RUNPATH": "runpath"}[tag]
    return [getattr(entry, attribute) for entry in section.iter_tags(tag)]


def symbols(core: ELFFile, *, defined: bool) -> list[str]:
    section = core.get_section_by_name(".dynsym")
    assert isinstance(section, SymbolTableSection)
    return [s.name for s in section.iter_symbols() if s.name and (s["st_shndx"] != "SHN_UNDEF") == defined]


def test_needs_only_the_c_and_cpp_libraries(core):
    needed = dynamic(core, "DT_NEEDED")
    assert "libc.so.6" in needed
    assert not [name for name in needed if not ALLOWED.match(name)]


def test_looks_for_libraries_in_no_place_of_its_own(core):
    assert not dynamic(core, "DT_RPATH") + dynamic(core, "DT_RUNPATH")


def test_exports_only_its_init_function(core):
    """(nanobind's exception types are visible on purpose: they pass between libraries.)"""
    exported = symbols(core, defined=True)
    assert "PyInit__core" in exported
    assert not [name for name in exported if "ringreduce" in name]


def test_takes_no_symbol_of_mpi_cuda_or_torch(core):
    taken = [
        name
        for name in symbols(core, defined=False)
        if re.match(r"P?MPI_|cu[A-Z]|cuda|nccl|_ZN?K?(2at|3c10|5torch)", name)
    ]
    assert not taken
