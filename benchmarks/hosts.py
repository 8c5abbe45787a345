"""allreduce over several hosts at a given link rate, all on this machine.

    python benchmarks/hosts.py
    python benchmarks/hosts.py --hosts 2 --rate 10gbit --ranks-per-host 1 --sizes 4,64M --json hosts.json

Network namespaces stand for the hosts (tests/hosts/netns.py draws them), `tc tbf` limits each
one's link both ways, and `ringreduce bench hosts --iperf` runs on them: bus bandwidth beside
iperf3's and Open MPI's, and bytes sent against the least possible, 2(H-1)/H x S a host. All
hosts share this machine's cores. Needs root, iproute2 and Open MPI 5; iperf3 where installed.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT / "tests")  # in place of benchmarks/, where `hosts` would be this file

from hosts.netns import Hosts, why_not  # noqa: E402
from runner.launch import die_with_parent  # noqa: E402

QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # Gloo's store looks for names that no server knows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--hosts", type=int, default=4, help="number of hosts (4)")
    add("--rate", default="1gbit", help="of each link, as tc writes it (1gbit)")
    add("--ranks-per-host", default="1,2,4", metavar="LIST", help="one run for each (1,2,4)")
    add("--sizes", default="4,4K,64K,1M,16M,64M", metavar="LIST", help="bytes (4,4K,64K,1M,16M,64M)")
    add("--compare", default="mpi", metavar="LIST", help="of mpi and gloo (mpi)")
    add("--repeats", default="20", help="most rounds (20)")
    add("--seconds", default="10", help="about how long to measure each size (10)")
    add("--json", type=Path, metavar="FILE", help="write all runs there, as a list")
    options = parser.parse_args()
    try:
        options.ranks_per_host = [int(text) for text in options.ranks_per_host.split(",")]
    except ValueError:
        parser.error(f"--ranks-per-host: {options.ranks_per_host!r} is not a list of numbers")
    if options.hosts < 2 or min(options.ranks_per_host) < 1:
        parser.error("there must be 2 hosts or more, and 1 rank or more on each")
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no directory {options.json.parent}")
    return options


def measure(hosts: Hosts, ranks_per_host: int, options: argparse.Namespace, result: Path) -> int:
    """One run; returns its exit status and leaves its JSON in `result`."""
    launcher = hosts.launcher(ranks_per_host)
    settings = {name: getattr(options, name) for name in ("sizes", "compare", "repeats", "seconds")}
    arguments = [text for name, value in settings.items() for text in (f"--{name}", value)]
    program = [
        "-m",
        "ringreduce",
        "bench",
        "hosts",
        "--iperf",
        "--interface",
        "eth0",
        "--json",
        str(result),
        *arguments,
    ]
    print(f"\n{hosts.count} hosts at {hosts.rate}, {ranks_per_host} rank(s) on each", flush=True)
    command = launcher.command(hosts.count * ranks_per_host, *program)
    # Whatever ends this process ends the job: mpirun passes the signal on.
    with subprocess.Popen(
        command, cwd=ROOT, env=launcher.env(QUIET), stdin=subprocess.DEVNULL, preexec_fn=die_with_parent()
    ) as job:
        try:
            return job.wait()
        except BaseException:
            job.terminate()
            raise


def main() -> int:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    options = parse()
    if reason := why_not():
        print(f"benchmarks/hosts.py: {reason}", file=sys.stderr)
        return 1
    runs = []
    with tempfile.TemporaryDirectory() as directory, Hosts(options.hosts, options.rate) as hosts:
        for ranks_per_host in options.ranks_per_host:
            result = Path(directory) / f"{ranks_per_host}.json"
            if status := measure(hosts, ranks_per_host, options, result):
                return status
            runs.append({"rate": options.rate, "ranks_per_host": ranks_per_host, **json.loads(result.read_text())})
    if options.json:
        options.json.write_text(json.dumps(runs, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
