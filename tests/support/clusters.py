"""Real Ray clusters for tests: machines with addresses of their own on this machine, and nothing left behind.

Each machine is a network namespace, joined to the others by a cable of its own, so that nothing is reached through
127.0.0.1 by accident. The second machine also lacks one folder of the first (an empty file system is mounted over
it). Where namespaces are not permitted, the machines are two loopback addresses that share all folders.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from processes import ROOT, command, wait_for

RAY = str(Path(sys.executable).with_name("ray"))
PORT, DASHBOARD, CLIENT = 6389, 8275, 10001


def namespaces_permitted() -> bool:
    """Whether this machine lets us make network namespaces."""
    if not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return False
    tried = ["unshare", "--user", "--map-root-user", "--net", "--mount", "ip", "link", "set", "lo", "up"]
    return subprocess.run(tried, capture_output=True).returncode == 0


@dataclass(kw_only=True)
class Machine:
    """One machine: its address and how to run something there."""

    address: str
    prefix: Sequence[str] = ()
    """Command that enters it."""


@dataclass(kw_only=True)
class Cluster:
    """Machines and the Ray nodes on them; the first is the head."""

    home: Path
    """A short folder of its own, for Ray's files."""
    head_only: Path
    """A folder that the second machine has not."""
    machines: list[Machine]
    isolated: bool
    """Whether the machines are namespaces."""
    environment: dict[str, str]
    processes: list[subprocess.Popen[Any]] = field(default_factory=list)
    _nodes: dict[int, subprocess.Popen[Any]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """host:port of the cluster."""
        return f"{self.machines[0].address}:{PORT}"

    @property
    def client(self) -> str:
        """Address of the Ray Client server."""
        return f"ray://{self.machines[0].address}:{CLIENT}"

    @property
    def jobs(self) -> str:
        """Address for `ray job submit`."""
        return f"http://{self.machines[0].address}:{DASHBOARD}"

    def popen(self, words: Sequence[str]) -> subprocess.Popen[str]:
        """Starts a program on the head, in the checkout, with one pipe for all it prints."""
        process = subprocess.Popen(
            [*self.machines[0].prefix, "env", f"--chdir={ROOT}", *words],  # a namespace is entered at its root
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=self.environment,
        )
        self.processes.append(process)
        return process

    def run(self, words: Sequence[str], *, timeout: float = 240) -> tuple[int, str]:
        """Runs a program on the head to its end: exit code and what it printed."""
        process = self.popen(words)
        shown, _ = process.communicate(timeout=timeout)
        return process.returncode, shown

    def tuner(self, *arguments: object, timeout: float = 240) -> tuple[int, str]:
        """`python -m tuner.run arguments` on the head."""
        return self.run(command("tuner.run", *arguments), timeout=timeout)

    def start_node(self, machine: int, *, cpus: int, gpus: int) -> None:
        """Starts a Ray node; it knows nothing of this checkout."""
        where = self.machines[machine].address
        words = [RAY, "start", "--block", f"--node-ip-address={where}", f"--num-cpus={cpus}", f"--num-gpus={gpus}"]
        words += ["--disable-usage-stats", "--object-store-memory=100000000"]
        if machine == 0:
            words += ["--head", f"--port={PORT}", f"--dashboard-port={DASHBOARD}", f"--temp-dir={self.home / 'ray'}"]
            words += [f"--ray-client-server-port={CLIENT}", "--dashboard-host", where]
        else:
            words += [f"--address={self.address}"]
        log = (self.home / f"node{machine}.log").open("wb")
        environment = {name: value for name, value in self.environment.items() if name != "PYTHONPATH"}
        self._nodes[machine] = subprocess.Popen(
            [*self.machines[machine].prefix, *words],
            cwd="/",
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.processes.append(self._nodes[machine])
        log.close()

    def kill_node(self, machine: int) -> None:
        """The machine's Ray processes, trials among them, die at once."""
        node = psutil.Process(self._nodes[machine].pid)
        family = [*node.children(recursive=True), node]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

    def wait(self, nodes: int) -> None:
        """Waits until that many nodes are alive."""
        count = "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR'); print(sum(n['Alive'] for n in ray.nodes()))"
        wait_for(
            lambda: self.run([sys.executable, "-c", count, self.address])[1].split()[-1:] == [str(nodes)],
            what=f"{nodes} Ray nodes",
        )
        # until the head's has written where it is, `auto` may take any Ray on this machine for it
        wait_for((self.home / "ray" / "ray_current_cluster").is_file, what="the head's address")


@contextmanager
def machines(count: int = 2) -> Iterator[Cluster]:
    """Machines without Ray nodes; all that runs on them is killed at the end, by process id."""
    home = Path(tempfile.mkdtemp(prefix="gt-", dir="/tmp"))  # Ray's sockets need a short path
    head_only = home / "head-only"
    head_only.mkdir()
    isolated = namespaces_permitted()
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": uuid.uuid4().hex,
        "RAY_TMPDIR": str(home),  # Ray looks for the last cluster in its folder `ray`
        "TMPDIR": str(head_only),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    holders: list[subprocess.Popen[Any]] = []
    cluster = Cluster(
        home=home, head_only=head_only, machines=[], isolated=isolated, environment=environment, processes=holders
    )
    try:
        if isolated:
            cluster.machines = _namespaces(count, head_only, holders)
        else:
            cluster.machines = [Machine(address=f"127.0.0.{number + 1}") for number in range(count)]
        yield cluster
    finally:
        _kill(holders)
        shutil.rmtree(home, ignore_errors=True)


def _namespaces(count: int, head_only: Path, holders: list[subprocess.Popen[Any]]) -> list[Machine]:
    """Network namespaces within one user namespace, wired to the first; each is held open by a sleeping process."""
    found: list[Machine] = []
    for number in range(count):
        new = ["unshare", "--net", "--mount", "sh", "-c", "ip link set lo up && echo ready && exec sleep infinity"]
        if number == 0:
            new[1:1] = ["--user", "--map-root-user"]
        holder = subprocess.Popen([*(found[0].prefix if found else ()), *new], stdout=subprocess.PIPE)
        holders.append(holder)
        assert holder.stdout is not None and holder.stdout.readline() == b"ready\n"
        pid = str(holder.pid)
        enter = ["nsenter", "--target", pid, "--user", "--net", "--mount", "--preserve-credentials", "--"]
        found.append(Machine(address=f"10.99.0.{number + 1}", prefix=enter))
        if number == 0:
            script = "ip link add hub type bridge && ip addr add 10.99.0.1/24 dev hub && ip link set hub up"
            subprocess.run([*enter, "sh", "-c", script], check=True)
            continue
        outer = f"ip link add out{number} type veth peer name eth netns {pid} && ip link set out{number} master hub up"
        inner = f"ip addr add 10.99.0.{number + 1}/24 dev eth && ip link set eth up && mount -t tmpfs none {head_only}"
        subprocess.run([*found[0].prefix, "sh", "-c", outer], check=True)
        subprocess.run([*enter, "sh", "-c", inner], check=True)
    return found


def _kill(roots: Sequence[subprocess.Popen[Any]]) -> None:
    """Ends processes with all their descendants: asks, waits, kills."""
    family: list[psutil.Process] = []
    for root in roots:
        try:
            parent = psutil.Process(root.pid)
            family += [*parent.children(recursive=True), parent]
        except psutil.NoSuchProcess:
            continue
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        for process in family:
            try:
                ask(process)
            except psutil.NoSuchProcess:
                continue
        _, family = psutil.wait_procs(family, timeout=5)
    for root in roots:
        root.wait(timeout=10)
        if root.stdout is not None:
            root.stdout.close()
