"""Several hosts on one machine: network namespaces with hostnames of their own, joined by a switch.

       host 0             host 1             host 2
    eth0 10.77.0.1     eth0 10.77.0.2     eth0 10.77.0.3
          |                  |                  |
          '------- bridge in a namespace -------'

A namespace is held by a process that sleeps in it and dies with this one, so nothing is left
behind however this process ends. Nothing appears in the machine's own network: not a name, not an
address. Open MPI starts its daemons in the namespaces through an `ssh` of ours. Needs root and
iproute2.

    with Hosts(2, rate="1gbit") as hosts:
        hosts.launcher(ranks_per_host=2).run(4, "script.py")
"""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from runner.launch import Launcher, die_with_parent, find_launcher

SUBNET = "10.77.0.0/24"
TCP_ONLY = {  # the interfaces that Open MPI 5's daemons and its ranks use
    "PRTE_MCA_oob_tcp_if_include": SUBNET,
    "OMPI_MCA_btl_tcp_if_include": SUBNET,
    "OMPI_MCA_btl": "self,sm,tcp",
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_mpi_yield_when_idle": "1",  # all hosts share this machine's cores
}


def why_not() -> str:
    """Why this machine cannot make hosts; "" where it can."""
    for program, package in (("ip", "iproute2"), ("nsenter", "util-linux"), ("unshare", "util-linux")):
        if not shutil.which(program):
            return f"{program} (Debian package {package}) is missing"
    probe = ["unshare", "--net", "--uts", "ip", "link", "add", "name", "probe", "type", "bridge"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"no privilege to make network namespaces and bridges: {done.stderr.strip()}"
    launcher = find_launcher()
    if launcher is None or not launcher.name.startswith("Open MPI 5"):
        return f"needs Open MPI 5 to start daemons in namespaces; here is {launcher.name if launcher else 'no MPI'}"
    return ""


def address(host: int) -> str:
    return f"10.77.0.{host + 1}"


class Hosts:
    """`count` hosts in namespaces; `rate`, such as "1gbit", limits each one's link both ways."""

    def __init__(self, count: int, rate: str = "") -> None:
        self.count, self.rate = count, rate
        self.holders: list[subprocess.Popen[bytes]] = []
        self.directory = tempfile.TemporaryDirectory(prefix="hosts-")

    def __enter__(self) -> Hosts:
        try:
            switch = self.hold("switch")
            self.inside(switch, "ip link add name bridge type bridge")
            self.inside(switch, "ip link set bridge up")
            for host in range(self.count):
                self.connect(host, self.hold(f"host{host}"), switch)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        for holder in self.holders:
            holder.kill()
            holder.wait()
        self.holders.clear()
        self.directory.cleanup()

    def hold(self, name: str) -> int:
        """Makes namespaces whose hostname is `name`; returns the process that holds them."""
        ready = Path(self.directory.name) / f"{name}.ready"
        script = f"hostname {name} && ip link set lo up && touch {ready} && exec sleep infinity"
        holder = subprocess.Popen(
            ["unshare", "--net", "--uts", "sh", "-c", script], preexec_fn=lambda: die_with_parent(signal.SIGKILL)
        )
        self.holders.append(holder)
        deadline = time.monotonic() + 10
        while not ready.exists():
            if holder.poll() is not None or time.monotonic() > deadline:
                raise OSError(f"could not make the namespaces of {name}")
            time.sleep(0.01)
        return holder.pid

    def connect(self, host: int, holder: int, switch: int) -> None:
        """Plugs a host into the switch; a rate limits what leaves each end of the cable."""
        port = f"port{host}"
        self.inside(switch, f"ip link add {port} type veth peer name eth0 netns {holder}")
        self.inside(switch, f"ip link set {port} master bridge up")
        self.inside(holder, f"ip address add {address(host)}/24 dev eth0")
        self.inside(holder, "ip link set eth0 up")
        if self.rate:
            for where, device in ((switch, port), (holder, "eth0")):
                self.inside(where, f"tc qdisc add dev {device} root tbf rate {self.rate} burst 256kb latency 50ms")

    def inside(self, holder: int, command: str) -> None:
        done = subprocess.run([*enter(holder), *shlex.split(command)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"{command}: {done.stderr.strip()}")

    def command(self, host: int, *command: str) -> list[str]:
        """The command line that runs `command` on a host."""
        return [*enter(self.holders[host + 1].pid), *command]

    def agent(self) -> str:
        """The `ssh` that Open MPI starts its daemons with: [options] ADDRESS COMMAND..."""
        script = Path(self.directory.name) / "ssh"
        cases = "".join(f"  {address(h)}) holder={self.holders[h + 1].pid} ;;\n" for h in range(self.count))
        script.write_text(
            '#!/bin/sh\nwhile case "$1" in -*) true ;; *) false ;; esac; do shift; done\n'
            f'case "$1" in\n{cases}  *) echo "unknown host $1" >&2; exit 1 ;;\nesac\n'
            f'shift\nexec nsenter --target "$holder" --net --uts sh -c "$*"\n'
        )
        script.chmod(0o755)
        return str(script)

    def launcher(self, ranks_per_host: int) -> Launcher:
        """An Open MPI launcher, itself on host 0, that fills one host after the other."""
        launcher = find_launcher()
        assert launcher is not None, "see why_not()"
        slots = ",".join(f"{address(host)}:{ranks_per_host}" for host in range(self.count))
        return dataclasses.replace(
            launcher,
            prefix=self.command(0),
            options=["--host", slots, "--map-by", "slot"],
            environment={**TCP_ONLY, "PRTE_MCA_plm_ssh_agent": self.agent()},
        )


def enter(holder: int) -> list[str]:
    return ["nsenter", "--target", str(holder), "--net", "--uts"]
