"""Python stacks of other ranks of this host, also of one that holds the GIL or is stuck in C.

    asks                                            is asked
    finds its memfd by the name, in /proc/PID/fd    install(): faulthandler on a signal that nobody uses, into a memfd
    sends the signal              ──►               a handler in C writes the stacks of all threads
    reads what has been written   ◄──

A memfd has no name in any folder, so nothing is left behind however a process ends.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import json
import linecache
import os
import re
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ringreduce._core import setting_texts
from ringreduce._runtime import processes

_NAME = "ringreduce-stacks"
_MARK = "ringreduce "
_PATIENCE_S = 1.0
_QUIET_S = 0.05  # what nothing has been added to for so long is whole
_FRAME = re.compile(r'\s*File "(.*)", line (\d+) in (.*)')
_installed: int | None = None  # the memfd. For good: a signal that comes when the handler has gone would end us


def install(mark: Mapping[str, Any]) -> None:
    """Let others find and ask this process; not ask it if RINGREDUCE_STACK_SIGNAL is 0 or the program uses the signal.

    Args:
        mark: who this process is, for `mark_of`.
    """
    global _installed
    number = int(dict(setting_texts())["RINGREDUCE_STACK_SIGNAL"])
    with contextlib.suppress(OSError):  # there are no memfds here
        if _installed is None:
            taken = bool(number) and signal.getsignal(number) is not signal.SIG_DFL
            _installed = _open(0 if taken else number)
        os.write(_installed, f"{_MARK}{json.dumps(mark)}\n".encode())


def _open(number: int) -> int:
    """The memfd, and a handler that writes into it; none for 0, or a signal that can have none."""
    file = os.memfd_create(f"{_NAME}-{number}-{os.getpid()}", os.MFD_CLOEXEC)
    fcntl.fcntl(file, fcntl.F_SETFL, os.O_APPEND)
    try:
        if number:
            faulthandler.register(number, file=file, all_threads=True, chain=False)
    except (OSError, ValueError, RuntimeError):
        os.close(file)
        return _open(0)
    return file


def find(pid: int) -> tuple[Path, int] | None:
    """Where a process writes its stacks, and the signal for that; None for a process that has not installed it."""
    with contextlib.suppress(OSError):
        for file in Path(f"/proc/{pid}/fd").iterdir():
            match = re.fullmatch(rf"/memfd:{_NAME}-(\d+)-(\d+) \(deleted\)", _target(file))
            if match and int(match[2]) in _names_of(pid):
                return file, int(match[1])
    return None


def mark_of(pid: int) -> dict[str, Any] | None:
    """Who a process has said that it is; None for one that has not."""
    found = find(pid)
    with contextlib.suppress(OSError, ValueError):
        lines = found[0].read_text(errors="replace").splitlines() if found is not None else []
        for line in reversed(lines):
            if line.startswith(_MARK):
                mark: dict[str, Any] = json.loads(line[len(_MARK) :])
                return mark
    return None


def _target(link: Path) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(link)
    return ""


def _names_of(pid: int) -> list[int]:
    """What a process is called here, and in the PID namespaces that it is in: a fork has its parent's files."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return [int(text) for text in line.split()[1:]]
    return [pid]


def ask(pids: Sequence[int], patience_s: float = _PATIENCE_S) -> dict[int, str]:
    """The stacks of those processes that have answered in time."""
    asked: dict[int, tuple[Path, int]] = {}
    for pid in pids:
        found = find(pid)
        if found is None or not found[1] or not processes.catches(pid, found[1]):
            continue
        with contextlib.suppress(OSError):
            asked[pid] = (found[0], found[0].stat().st_size)
            os.kill(pid, found[1])
    end = time.monotonic() + patience_s
    sizes = dict.fromkeys(asked, 0)
    while time.monotonic() < end:
        time.sleep(_QUIET_S)
        now = {pid: _size(file) for pid, (file, _) in asked.items()}
        if now == sizes and all(size > asked[pid][1] for pid, size in now.items()):
            break
        sizes = now
    answers = {}
    for pid, (file, before) in asked.items():
        with contextlib.suppress(OSError), open(file, "rb") as stream:
            stream.seek(before)
            if text := stream.read().decode(errors="replace"):
                answers[pid] = text
    return answers


def _size(file: Path) -> int:
    with contextlib.suppress(OSError):
        return file.stat().st_size
    return 0


def threads(text: str) -> list[list[str]]:
    """The frames of each thread, innermost first; the main thread comes first."""
    found: list[list[str]] = []
    main = -1
    for line in text.splitlines():
        if "(most recent call first):" in line:
            found.append([])
            if line.startswith("Current"):
                main = len(found) - 1
        elif found and _FRAME.match(line) and not _NOISE.search(line):
            found[-1].append(line.strip())
    if found:
        found.insert(0, found.pop(main))
    return found


# Not of the program, but of what it has called.
_LIBRARIES = re.compile(r"<frozen |/site-packages/|/dist-packages/|/lib/python3\.\d+/|/ringreduce/")
# Of no interest: how modules are imported, and who asks for the stacks.
_NOISE = re.compile(r'File "(<frozen importlib|.*/ringreduce/_runtime/(watcher|stall_report|stacks|processes)\.py")')
_MOST_INNER, _MOST_OUTER = 14, 6  # frames that are shown of a long stack


def place(text: str, pid: int) -> str:
    """Where in the program the main thread is: "train.py:87, in main: batch = next(loader)"; "" if that is not told."""
    frames = (threads(text) or [[]])[0]
    own = [frame for frame in frames if not _LIBRARIES.search(frame)]
    match = _FRAME.match((own or frames or [""])[0])
    if match is None:
        return ""
    name, line, function = match[1], int(match[2]), match[3]
    linecache.checkcache(name)
    source = linecache.getline(os.path.join(_target(Path(f"/proc/{pid}/cwd")), name), line).strip()
    return f"{Path(name).name}:{line}, in {function}" + (f": {source}" if source else "")


def fold(texts: Mapping[int, str]) -> list[tuple[list[int], list[list[str]]]]:
    """Stacks by rank; ranks with equal ones are together."""
    groups: list[tuple[list[int], list[list[str]]]] = []
    for rank, text in sorted(texts.items()):
        stacks = threads(text)
        for ranks, known in groups:
            if known == stacks:
                ranks.append(rank)
                break
        else:
            groups.append(([rank], stacks))
    return groups


def show_ranks(ranks: Sequence[int]) -> str:
    """ "rank 3", "ranks 0-2, 5"."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and runs[-1][-1] == rank - 1:
            runs[-1][1:] = [rank]
        else:
            runs.append([rank])
    text = ", ".join("-".join(map(str, run)) for run in runs)
    return f"rank{'s' if len(ranks) > 1 else ''} {text}"


def _shorten(frames: list[str]) -> list[str]:
    left_out = len(frames) - _MOST_INNER - _MOST_OUTER
    if left_out <= 1:
        return frames
    return [*frames[:_MOST_INNER], f"... {left_out} more ...", *frames[-_MOST_OUTER:]]


def show(texts: Mapping[int, str]) -> list[str]:
    """Lines of a report."""
    lines = []
    for ranks, stacks in fold(texts):
        lines.append(f"{show_ranks(ranks)}:")
        for at, frames in enumerate(stacks):
            if not frames:
                continue
            if at:
                lines.append("  another thread:")
            lines += [f"  {'  ' if at else ''}{frame}" for frame in _shorten(frames)]
    return lines
