"""`ringreduce doctor`, run as users run it: alone, under mpirun, and where something is broken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from runner.doubles import build, why_not
from runner.launch import PATIENCE, clean_environment, find_launcher

from ringreduce.doctor import checks, nccl, show
from ringreduce.doctor.checks import FAILED, OK, SKIPPED, Check

LAUNCHER = find_launcher()
DOCTOR = ("-m", "ringreduce", "doctor")
ON_DOUBLES = str(Path(__file__).with_name("doctor_on_doubles.py"))


def alone(*arguments: str, program: tuple[str, ...] = DOCTOR, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *program, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False,
        env=clean_environment(environment),
    )  # fmt: skip


def by_name(document: dict) -> dict[str, dict]:
    return {check["name"]: check for check in document["checks"]}


def test_alone():
    done = alone()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "collectives on CPU tensors       ok" in done.stdout
    assert done.stdout.endswith("All works.\n")


@pytest.mark.skipif(LAUNCHER is None, reason="no mpirun on this machine")
def test_all_ranks_in_one_document():
    done = LAUNCHER.run(2, *DOCTOR, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert document["ok"] is True
    assert len(document["ranks"]) == 2
    assert len({rank["pid"] for rank in document["ranks"]}) == 2
    found = by_name(document)
    assert found["start"]["text"] == "2 ranks on 1 host(s)"
    assert found["collectives between hosts"]["status"] == SKIPPED
    assert {"versions", "libraries", "MPI", "GPUs", "limits", "settings"} <= document.keys()


def test_a_broken_setting_is_named():
    done = alone(RINGREDUCE_CHUNK_BYTES="5x")
    assert done.returncode == 1
    assert "RINGREDUCE_CHUNK_BYTES is '5x'" in done.stdout
    assert "Does not work: settings, start." in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.thorough
def test_the_wrong_launcher_is_named():
    done = alone(PMI_SIZE="4", PMI_RANK="0")
    assert done.returncode == 1
    assert "the launcher started 4 ranks (PMI_SIZE)" in done.stdout


@pytest.mark.skipif(LAUNCHER is None, reason="no mpirun on this machine")
def test_a_rank_that_hangs_does_not_hang_doctor(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time\nimport ringreduce as rr\nfrom ringreduce.doctor import command\nrr.init()\n"
        "if rr.rank() == 1:\n    time.sleep(3600)\nsys.exit(command.main(['--timeout', '2']))\n"
    )
    done = LAUNCHER.run(2, str(script))
    assert done.returncode != 0
    assert "collectives on CPU tensors: no end after 2 s" in done.stderr
    assert "rank 1 has not submitted it" in done.stderr


@pytest.mark.thorough
def test_bad_option():
    done = alone("--timeout", "0")
    assert done.returncode == 2
    assert "--timeout: expected a number of seconds above 0" in done.stderr


@pytest.mark.thorough
def test_a_library_that_is_none_of_ours(tmp_path):
    done = alone("--json", RINGREDUCE_CUDA_LIBRARY=str(tmp_path / "nothing.so"))
    document = json.loads(done.stdout)
    assert "cannot be loaded" in document["libraries"]["CUDA library's problem"]
    assert document["ok"] is True  # torch has no GPU here, or the check says so
    assert document["libraries"]["CUDA library"].endswith("nothing.so")


# --- NCCL, on doubles -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def doubles() -> dict[str, str]:
    """The environment that names them."""
    if reason := why_not():
        pytest.skip(reason)
    cuda, nccl = build()
    return {"RINGREDUCE_CUDA_LIBRARY": str(cuda), "RINGREDUCE_NCCL": str(nccl)}


def test_one_rank_calls_nccl(doubles):
    done = alone("--json", program=(ON_DOUBLES,), **doubles)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    expected = f"2.27.3, {doubles['RINGREDUCE_NCCL']}, GPU 0: an all-reduce of one rank is right"
    assert by_name(document)["NCCL"] == {"name": "NCCL", "status": OK, "text": expected}
    assert "without NCCL" in by_name(document)["collectives on GPU tensors"]["text"]
    facts = document["libraries"]
    assert (facts["NCCL"], facts["NCCL library"]) == ("2.27.3", doubles["RINGREDUCE_NCCL"])
    assert facts["CUDA library"] == doubles["RINGREDUCE_CUDA_LIBRARY"]
    assert (facts["CUDA driver"], facts["CUDA runtime"]) == ("13.0", "13.0")
    text = show.as_text({key: document[key] for key in document.keys() - {"ok", "ranks", "checks"}}, [], [])
    for fact in ("NCCL", "NCCL library", "CUDA library", "CUDA driver", "CUDA runtime"):
        assert any(line.split() == [*fact.split(), facts[fact]] for line in text.splitlines()), fact


@pytest.mark.skipif(LAUNCHER is None, reason="no mpirun on this machine")
def test_several_ranks_call_nccl(doubles):
    done = LAUNCHER.run(2, ON_DOUBLES, "--json", **doubles)
    assert done.returncode == 0, done.stdout + done.stderr
    found = by_name(json.loads(done.stdout))
    assert found["NCCL"]["status"] == OK
    assert found["collectives on GPU tensors"]["text"].endswith("through NCCL")
    assert found["GPU tensors through host memory"]["status"] == OK


@pytest.mark.thorough
@pytest.mark.skipif(LAUNCHER is None, reason="no mpirun on this machine")
def test_a_gpu_that_ranks_share_is_no_fault(doubles):
    done = LAUNCHER.run(2, ON_DOUBLES, "--json", RR_DOUBLE_SAME_PCI="1", **doubles)
    assert done.returncode == 0, done.stdout + done.stderr
    check = by_name(json.loads(done.stdout))["collectives on GPU tensors"]
    assert check["status"] == SKIPPED
    assert "rank 0 and rank 1 share the GPU" in check["text"]


@pytest.mark.parametrize(
    "function",
    [
        "ncclCommInitRankConfig",
        *(
            pytest.param(name, marks=pytest.mark.thorough)
            for name in ("ncclGetUniqueId", "ncclAllReduce", "ncclCommDestroy")
        ),
    ],
)
def test_a_call_of_nccl_that_fails_is_named(doubles, function):
    done = alone("--json", program=(ON_DOUBLES,), RR_DOUBLE_FAIL=f"{function}:2:0", **doubles)
    assert done.returncode == 1, done.stdout + done.stderr
    check = by_name(json.loads(done.stdout))["NCCL"]
    assert check["status"] == FAILED
    assert f"{function}: unhandled system error" in check["text"]
    assert "NCCL_DEBUG=WARN" in check["text"]


@pytest.mark.thorough
def test_a_wrong_number_of_nccl_is_a_failure(doubles, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(ON_DOUBLES).parent)!r})\nimport doctor_on_doubles\n"
        "from ringreduce.doctor import nccl\nnccl.Communicator.all_reduce = lambda *_: lambda: 0\n"
        "sys.exit(doctor_on_doubles.main())\n"
    )
    done = alone(program=(str(script),), **doubles)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "ncclAllReduce gave a wrong result" in done.stdout
    assert done.stdout.endswith("Does not work: NCCL.\n")


def test_nccl_that_hangs_does_not_hang_doctor(doubles):
    done = alone("--timeout", "2", program=(ON_DOUBLES,), RR_DOUBLE_FAIL="nccl_hang:1:0", **doubles)
    assert done.returncode == 1
    assert "NCCL: no end after 2 s" in done.stderr


def test_no_nccl_is_a_failure(doubles, tmp_path):
    done = alone("--json", program=(ON_DOUBLES,), **{**doubles, "RINGREDUCE_NCCL": str(tmp_path / "nothing.so")})
    assert done.returncode == 1, done.stdout + done.stderr
    document = json.loads(done.stdout)
    found = by_name(document)
    assert found["NCCL"]["status"] == FAILED
    assert "NCCL was not found" in found["NCCL"]["text"]
    assert found["collectives on GPU tensors"]["status"] == OK  # one rank copies
    assert document["libraries"]["NCCL"] == "none"
    assert "nothing.so" in document["libraries"]["NCCL library's problem"]


def test_versions_of_nccl():
    assert [nccl.show_version(number) for number in (22703, 23001, 2708)] == ["2.27.3", "2.30.1", "2.7.8"]


# --------------------------------------------------------------------------------------------------


def test_the_worst_of_all_ranks_counts():
    merged = checks.merge(
        [[Check("a", OK, "fine"), Check("b", SKIPPED, "no")], [Check("a", FAILED, "why"), Check("b", SKIPPED)]]
    )
    assert merged == [Check("a", FAILED, "rank 1: why"), Check("b", SKIPPED, "no")]
    assert not show.works(merged)
