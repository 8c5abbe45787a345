"""The README tells the truth: its script trains, and its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from runner.launch import ROOT, clean_environment, find_launcher

LAUNCHER = find_launcher()


def losses(output: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"^epoch \d: loss ([\d.]+)$", output, re.MULTILINE)]


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code is not None
    path = tmp_path_factory.mktemp("readme") / "script.py"
    path.write_text(code[1])
    return str(path)


def test_script_on_one_rank_without_a_launcher(script):
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=clean_environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(losses(done.stdout)) == 5
    assert losses(done.stdout)[-1] < losses(done.stdout)[0] / 2


@pytest.mark.thorough  # tests/programs/test_fresh_environment.py does it, too
@pytest.mark.skipif(LAUNCHER is None, reason="no mpirun on this machine")
def test_script_on_two_ranks(script):
    assert LAUNCHER is not None
    done = LAUNCHER.run(2, script)
    assert done.returncode == 0, done.stderr
    assert len(losses(done.stdout)) == 5
    assert losses(done.stdout)[-1] < losses(done.stdout)[0] / 2


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_links(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"
