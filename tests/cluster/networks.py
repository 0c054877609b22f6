"""Networks for tests: namespaces of this machine, joined by a bridge, or by a line that is long and loses packets.

    with Network("one", "two") as network:          # each a machine of its own, with its own addresses
        with network.inside("one"): …               # sockets and processes that this thread makes belong to it

A namespace belongs to a thread (Linux), so a test's threads can stand on several machines. All are removed at
the end; the processes in them end by those who have started them.
"""

import contextlib
import ctypes
import heapq
import os
import random
import select
import shutil
import socket
import struct
import subprocess
import threading
import time

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_SET_INTERFACE, _TUN_WITHOUT_HEADER = 0x400454CA, 0x0001 | 0x1000  # TUNSETIFF; IFF_TUN | IFF_NO_PI


def run(*command):
    """Run a command that must succeed; return what it prints."""
    done = subprocess.run([str(each) for each in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    assert done.returncode == 0, (command, done.stdout.decode())
    return done.stdout.decode()


def missing(*programs):
    """Return why such networks can't be had here, or "": a reason to skip a test."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "only root may make network namespaces"
    for program in ("ip",) + programs:
        if not shutil.which(program):
            return "%s is not installed" % program
    name = "comeapi-try-%d" % os.getpid()
    try:
        run("ip", "netns", "add", name)
    except AssertionError as error:
        return "no network namespace can be made here: %s" % error
    run("ip", "netns", "del", name)
    return "" if os.path.exists("/dev/net/tun") else "there is no /dev/net/tun"


class Network:
    """Machines that are namespaces. `hosts` are their names; machine number i, from 0, has the address 10.77.0.(10+i).

    They share a bridge, which stands in a namespace of its own ("lan", 10.77.0.1).
    """

    def __init__(self, *hosts):
        self._prefix = "comeapi-%d-" % os.getpid()
        self._made = []
        self.addresses = {"lan": "10.77.0.1"}
        try:
            self._add("lan")
            self.ip("lan", "link", "add", "br0", "type", "bridge")
            self.ip("lan", "address", "add", "10.77.0.1/24", "dev", "br0")
            self.ip("lan", "link", "set", "br0", "up")
            for number, host in enumerate(hosts):
                self._join(host, "10.77.0.%d" % (10 + number))
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _add(self, host):
        run("ip", "netns", "add", self._prefix + host)
        self._made.append(host)
        self.ip(host, "link", "set", "lo", "up")

    def _join(self, host, address):
        self._add(host)
        self.addresses[host] = address
        self.ip(host, "link", "add", "eth0", "type", "veth", "peer", "name", host, "netns", self._prefix + "lan")
        self.ip(host, "address", "add", address + "/24", "dev", "eth0")
        self.ip(host, "link", "set", "eth0", "up")
        self.ip("lan", "link", "set", host, "master", "br0")
        self.ip("lan", "link", "set", host, "up")

    def ip(self, host, *arguments):
        """Run the ip command on a machine."""
        return run("ip", "-n", self._prefix + host, *arguments)

    def plug(self, host, plugged):
        """Pull a machine's network cable, or plug it in again."""
        self.ip("lan", "link", "set", host, "up" if plugged else "down")

    @contextlib.contextmanager
    def inside(self, host):
        """Let this thread stand on a machine: its sockets and processes, not those it has already."""
        with open("/proc/thread-self/ns/net") as before, open("/run/netns/" + self._prefix + host) as there:
            _enter(there)
            try:
                yield
            finally:
                _enter(before)

    def close(self):
        """Remove all namespaces."""
        for host in reversed(self._made):
            run("ip", "netns", "del", self._prefix + host)
        self._made = []


def _enter(file):
    if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "setns")


class Line:
    """A long line between two machines of a network: each packet takes `delay` seconds, and a share `loss` is lost.

    The machines have the addresses 10.78.0.1 and 10.78.0.2 on it. Linux' own means for it, netem, is not in each
    kernel: this is two TUN devices, and a thread that hands their packets on. TCP on both sides is the kernel's, so
    what is lost is sent again as on a real line.
    """

    def __init__(self, network, near, far, delay=0.025, loss=0.01):
        self.delay, self.loss = delay, loss
        self.passed = self.lost = 0
        self.connections = set()  # the (address, port) pairs that have tried to connect
        self._chance = random.Random(8)
        self._devices = [self._device(network, near, "10.78.0.1", "10.78.0.2")]
        self._devices.append(self._device(network, far, "10.78.0.2", "10.78.0.1"))
        self._woken, self._wake = socket.socketpair()
        self._thread = threading.Thread(target=self._carry, name="line", daemon=True)
        self._thread.start()

    def _device(self, network, host, own, other):
        with network.inside(host):
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            request = struct.pack("16sH14x", b"far0", _TUN_WITHOUT_HEADER)
            import fcntl  # not on every system

            fcntl.ioctl(device, _SET_INTERFACE, request)
        network.ip(host, "address", "add", own, "peer", other, "dev", "far0")
        network.ip(host, "link", "set", "far0", "mtu", 1400, "up")
        return device

    def _carry(self):
        """Hand packets on, each at its time. They stay in order."""
        one, two = self._devices
        other, due, number = {one: two, two: one}, [], 0
        while True:
            patience = max(0.0, due[0][0] - time.monotonic()) if due else None
            ready = select.select([one, two, self._woken], [], [], patience)[0]
            if self._woken in ready:
                return
            for device in ready:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        packet = os.read(device, 65536)
                        self._note(packet)
                        if self._chance.random() < self.loss:
                            self.lost += 1
                            continue
                        number += 1
                        heapq.heappush(due, (time.monotonic() + self.delay, number, other[device], packet))
            while due and due[0][0] <= time.monotonic():
                self.passed += 1
                with contextlib.suppress(OSError):
                    os.write(*heapq.heappop(due)[2:])

    def _note(self, packet):
        """Note who connects: a SYN without ACK, in TCP over IPv4."""
        header = (packet[0] & 15) * 4
        if packet[0] >> 4 == 4 and packet[9] == socket.IPPROTO_TCP and packet[header + 13] & 0x12 == 0x02:
            self.connections.add((packet[12:16], packet[header : header + 2]))

    def close(self):
        """Take the line away."""
        self._wake.send(b"x")
        self._thread.join(10)
        for device in self._devices:
            os.close(device)
        self._woken.close()
        self._wake.close()
