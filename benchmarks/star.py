"""Processes on this machine with a slow link each, in network namespaces; Linux and root alone.

Every process has a network namespace of its own. Its link leads to a router in the middle, which
forwards packets between the processes, as in a star. What a process sends is held to the rate of
its link by the kernel (`tc`, a token bucket). Without latency the links are pairs of virtual
Ethernet devices and the router is a namespace; with latency they are tunnels that end in this
process, which keeps each packet for that long.
"""

import fcntl
import heapq
import os
import select
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Any, Self

# What <linux/if_tun.h> defines: the request for a tunnel, and one of bare IP packets.
TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x1001
DEVICE = "w0"
MTU = 1500
# A token bucket holds so many bytes, or what the link sends in a few of the kernel's ticks.
BURST, TICKS = 32_000, 0.002
QUEUE = "400ms"  # What waits longer for its turn is lost.
DESTINATION = slice(16, 20)  # Of an IPv4 header.


class Star:
    """The processes, and the links between them. A context that ends them all.

    Args:
      commands: of each process; it is given its address, as the name of its host, so that
        what looks its own host up finds the link.
      latency: seconds that each packet takes from one process to another.
      bundles: whether links take up to 64 kB as one packet, without which fast ones ask too much
        of a CPU, and with which slow ones fall idle at times.

    Raises:
      OSError: if the machine does not allow it; in one line.
    """

    def __init__(
        self, commands: Sequence[Sequence[str]], latency: float = 0.0, bundles: bool = False
    ):
        check()
        self._commands, self._latency, self._bundles = commands, latency, bundles
        self._router: subprocess.Popen[str] | Delay | None = None
        self.processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        self._router = Delay(self._latency) if self._latency else _namespace("exec cat")
        for number, command in enumerate(self._commands):
            process = _namespace(f'read _; hostname {address(number)}; exec "$@"', command)
            self.processes.append(process)
            self._connect(number)
            process.stdin.write("\n")  # Everything is there: the command starts.
            process.stdin.flush()
        return self

    def __exit__(self, *_: Any) -> None:
        if isinstance(self._router, Delay):
            self._router.close()
        elif self._router is not None:
            self._router.kill()
            self._router.wait()
        for process in reversed(self.processes):  # The first is the coordinator, which all need.
            process.kill()
            process.wait()

    def limit(self, number: int, bits_per_second: float | None) -> None:
        """Sets the rate at which a process can send; None for no limit."""
        queue = f"dev {DEVICE} root"
        inside = self.processes[number]
        if bits_per_second is None:
            _run(f"tc qdisc del {queue}", inside, check=False)
        else:
            burst = max(BURST, TICKS * bits_per_second / 8)
            shape = f"tbf rate {bits_per_second:.0f}bit burst {burst:.0f} latency {QUEUE}"
            _run(f"tc qdisc replace {queue} {shape}", inside)

    def _connect(self, number: int) -> None:
        """Gives a process its link."""
        inside = self.processes[number]
        if isinstance(self._router, Delay):
            self._router.connect(number, inside)
            via = f"dev {DEVICE}"
        else:
            end, gateway = f"r{number}", f"10.77.{number}.1"
            _run(f"ip link add {end} type veth peer name {DEVICE} netns {inside.pid}", self._router)
            _run(f"ip addr add {gateway}/24 dev {end}", self._router)
            _run(f"ip link set {end} up", self._router)
            via = f"via {gateway}"
        _run(f"ip addr add {address(number)}/24 dev {DEVICE}", inside)
        singly = "" if self._bundles else "gso_max_segs 1"
        _run(f"ip link set {DEVICE} up mtu {MTU} {singly}", inside)
        _run(f"ip route add default {via}", inside)


class Delay:
    """A router that keeps each packet for some time; runs in a thread of its own."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._tunnels: dict[bytes, int] = {}
        self._poll = select.epoll()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._forward, daemon=True)
        self._thread.start()

    def connect(self, number: int, inside: subprocess.Popen[str]) -> None:
        """Makes the tunnel of a process."""
        name = f"tun{os.getpid()}"
        tunnel = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tunnel, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN_NO_PI))
        _run(f"ip link set {name} netns {inside.pid} name {DEVICE}")
        self._tunnels[bytes(map(int, address(number).split(".")))] = tunnel
        self._poll.register(tunnel, select.EPOLLIN)

    def close(self) -> None:
        """Ends the thread and closes the tunnels."""
        self._ended.set()
        self._thread.join()
        for tunnel in self._tunnels.values():
            os.close(tunnel)
        self._poll.close()

    def _forward(self) -> None:
        waiting: list[tuple[float, int, int, bytes]] = []  # When due, which, where to, what.
        count = 0
        while not self._ended.is_set():
            due = waiting[0][0] - time.monotonic() if waiting else 0.1
            for tunnel, _ in self._poll.poll(max(0.0, min(due, 0.1))):
                packet = os.read(tunnel, 2 * MTU)
                to = self._tunnels.get(packet[DESTINATION])
                if to is not None:
                    count += 1
                    due_at = time.monotonic() + self._seconds
                    heapq.heappush(waiting, (due_at, count, to, packet))
            while waiting and waiting[0][0] <= time.monotonic():
                *_, to, packet = heapq.heappop(waiting)
                try:
                    os.write(to, packet)
                except BlockingIOError:  # The receiver's queue is full: a loss, as in any router.
                    continue


def address(number: int) -> str:
    """The address of a process."""
    return f"10.77.{number}.2"


def check() -> None:
    """Raises OSError, with one line, if this machine cannot have such links."""
    for tool in ("unshare", "nsenter", "ip", "tc"):
        if shutil.which(tool) is None:
            raise OSError(f"slow links need the command {tool}, which is not here")
    if os.geteuid() != 0:
        raise OSError("slow links need root, for network namespaces")
    try:
        _run("unshare --net tc qdisc add dev lo root tbf rate 1mbit burst 16kb latency 1ms")
    except subprocess.CalledProcessError as error:
        raise OSError(f"slow links cannot be made here: {error.stderr.strip()}") from error


def _namespace(script: str, command: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Starts a shell script in a network namespace of its own, in which it is a host."""
    prepared = "echo 1 > /proc/sys/net/ipv4/ip_forward; ip link set lo up; echo; "
    process = subprocess.Popen(
        ["unshare", "--net", "--uts", "sh", "-c", prepared + script, "sh", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    return process


def _run(command: str, inside: subprocess.Popen[str] | None = None, check: bool = True) -> None:
    """Runs a command, in the network namespace of a process if one is given."""
    enter = [] if inside is None else ["nsenter", "--net", f"--target={inside.pid}"]
    subprocess.run([*enter, *command.split()], check=check, capture_output=True, text=True)
