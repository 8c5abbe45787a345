"""The network between hosts: which interface, how many bytes passed it, how many could.

The interface's counters are read from /proc/net, which shows the network namespace of the
process; /sys shows that of whoever mounted it.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HEADERS = 14 + 20 + 32  # Ethernet, IPv4, TCP with timestamps: bytes of a packet that are no data
STREAM_SECONDS = 3.0
_PORT = 5201
_SIOCGIFADDR = 0x8915


class Counters(NamedTuple):
    """Sent by an interface, since it exists."""

    nbytes: int
    packets: int


def default_interface() -> str:
    """The interface of the default route, else of the first route there is; "lo" without any."""
    lines = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    routes = sorted((destination != "00000000", interface) for interface, destination, *_ in lines)
    return routes[0][1] if routes else "lo"


def address_of(interface: str) -> str:
    """The interface's IPv4 address. OSError if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", interface.encode()[:15])
        return socket.inet_ntoa(fcntl.ioctl(probe, _SIOCGIFADDR, request)[20:24])


def sent(interface: str, table: str | None = None) -> Counters:
    """Read the interface's counters, or take them from `table` (/proc/net/dev's text)."""
    for line in (table or Path("/proc/net/dev").read_text()).splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == interface:
            fields = numbers.split()
            return Counters(int(fields[8]), int(fields[9]))
    raise OSError(f"there is no network interface {interface!r}")


def stream_rate(comm: Any, machines: Sequence[str], interface: str) -> tuple[float, str]:
    """Bytes/s of one TCP stream from the first rank to the first on another host, and what measured it.

    Collective. iperf3 if both hosts have it, else a stream of Python's; the other ranks sleep.

    Args:
        comm: of mpi4py, of all ranks.
        machines: rank -> hostname.
    """
    sender, receiver = 0, next(rank for rank, machine in enumerate(machines) if machine != machines[0])
    tools = comm.allgather(shutil.which("iperf3"))
    receive, send = (_iperf_receive, _iperf_send) if tools[sender] and tools[receiver] else (_receive, _send)
    rate, finish = 0.0, None
    if comm.rank == receiver:
        finish = receive()
        comm.send(address_of(interface), sender)
    elif comm.rank == sender:
        rate = send(comm.recv(source=receiver))
    done = comm.Ibarrier()
    while not done.Test():  # a plain barrier takes a core from the ranks that measure
        time.sleep(0.01)
    if finish:
        finish()
    return comm.bcast(rate, sender), "iperf3" if send is _iperf_send else "a TCP stream (iperf3 is not installed)"


def _iperf_receive() -> Callable[[], None]:
    server = subprocess.Popen(["iperf3", "-s", "-1", "-p", str(_PORT)], stdout=subprocess.DEVNULL)
    time.sleep(0.5)  # it has no way of saying that it listens

    def finish() -> None:
        server.terminate()
        server.wait()

    return finish


def _iperf_send(address: str) -> float:
    command = ["iperf3", "-c", address, "-p", str(_PORT), "-t", str(int(STREAM_SECONDS)), "-J"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout or "{}")
    if "error" in report or done.returncode:
        raise OSError(f"iperf3 to {address}: {report.get('error', done.stderr.strip())}")
    return float(report["end"]["sum_received"]["bits_per_second"]) / 8


def _receive() -> Callable[[], None]:
    listener = socket.create_server(("", _PORT))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            total, begin, buffer = 0, time.perf_counter(), bytearray(1 << 20)
            while count := connection.recv_into(buffer):
                total += count
            connection.sendall(struct.pack("d", total / (time.perf_counter() - begin)))

    thread = threading.Thread(target=serve)
    thread.start()

    def finish() -> None:
        thread.join()
        listener.close()

    return finish


def _send(address: str) -> float:
    data, end = bytes(1 << 20), time.perf_counter() + STREAM_SECONDS
    with socket.create_connection((address, _PORT)) as connection:
        while time.perf_counter() < end:
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return float(struct.unpack("d", connection.recv(8, socket.MSG_WAITALL))[0])
