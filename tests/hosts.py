"""Hosts that share a directory and nothing else: as root with spaces of their own, otherwise with directories."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
_SPACES = ("--net", "--mount", "--uts", "--pid")
# The first process of a host takes all others with it, and falls with unshare.
_MAKE_SPACES = ("unshare", *_SPACES, "--fork", "--kill-child", "sh", "-c")
_FIRST_PROCESS = "read -r pid rest < /proc/self/stat && mount -t proc proc /proc && echo $pid && exec sleep 1000"


def can_separate() -> bool:
    """Whether this machine lets us make spaces and connect them."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return False
    command = [*_MAKE_SPACES, "ip link add one type veth peer name two && mount -t tmpfs none /mnt"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


class Host:
    """A machine: its disk is `me`, which only it sees, and `store` is a file system that several mount."""

    def __init__(self, base: Path, name: str, *, is_separate: bool, has_store: bool) -> None:
        self.name, self.store, self.is_separate = name, base / "store", is_separate
        self._disk = base / "disks" / name
        (self._disk / "tmp").mkdir(parents=True)
        self.me = base / "me" if is_separate else self._disk
        self._processes: list[subprocess.Popen[str]] = []
        if is_separate:
            spaces = subprocess.Popen([*_MAKE_SPACES, _FIRST_PROCESS], stdout=subprocess.PIPE, text=True)
            self._processes.append(spaces)
            assert spaces.stdout is not None
            self._first_pid = spaces.stdout.readline().strip()
            self.call("hostname", name)
            self.call("ip", "link", "set", "lo", "up")
            self.call("mount", "--bind", self._disk, self.me, cwd=base)
            for hidden in [base / "disks", *([] if has_store else [self.store])]:
                self.call("mount", "-t", "tmpfs", "none", hidden)

    def start(self, *command: object, cwd: Path | None = None, **variables: str) -> subprocess.Popen[str]:
        """A process on this host, in its own directory, whose home and temporary files are there too."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_", "RAY_"))
        }
        environment |= {"HOME": str(self.me), "TMPDIR": str(self.me / "tmp"), "PYTHONPATH": str(ROOT)}
        environment |= {"OMP_NUM_THREADS": "1"} | variables
        enter = ["nsenter", "-t", self._first_pid, *_SPACES] if self.is_separate else []
        process = subprocess.Popen(
            [*enter, "sh", "-c", 'cd "$0" && exec "$@"', str(cwd or self.me), *map(str, command)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self._processes.append(process)
        return process

    def start_python(self, module: str, *arguments: object, **variables: str) -> subprocess.Popen[str]:
        """A command of ours, by the module that holds it."""
        code = f"from {module} import main; main()"
        return self.start(sys.executable, "-c", code, *arguments, **variables)

    def call(self, *command: object, cwd: Path | None = None) -> str:
        """What a command that has to succeed prints."""
        process = self.start(*command, cwd=cwd)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        return output

    def connect(self, other: Host, own_ip: str, other_ip: str) -> None:
        """A cable to another host."""
        # From the spaces of this test, in which the other host's first process has its number.
        add = ["ip", "link", "add", f"to-{other.name}", "type", "veth", "peer", "name", f"to-{self.name}"]
        enter = ["nsenter", "-t", self._first_pid, "--net"]
        subprocess.run([*enter, *add, "netns", other._first_pid], check=True)
        for host, peer, ip in ((self, other, own_ip), (other, self, other_ip)):
            host.call("ip", "address", "add", f"{ip}/24", "dev", f"to-{peer.name}")
            host.call("ip", "link", "set", f"to-{peer.name}", "up")

    def stop(self) -> None:
        """End all that was started here."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.communicate()


class Hosts:
    """Several hosts and the directory that stands for their shared file system."""

    def __init__(self) -> None:
        self.are_separate = can_separate()
        # Not pytest's directory, whose name leaves too little room for the names of Ray's sockets.
        self.base = Path(tempfile.mkdtemp(prefix="hosts-", dir="/tmp"))
        for name in ("store", "disks", "me"):
            (self.base / name).mkdir()
        self.store = self.base / "store"
        self._hosts: list[Host] = []

    def add(self, name: str, *, has_store: bool = True) -> Host:
        """A new host."""
        host = Host(self.base, name, is_separate=self.are_separate, has_store=has_store)
        self._hosts.append(host)
        return host

    def disk(self, name: str) -> Path:
        """A host's disk as the test sees it."""
        return self.base / "disks" / name

    def stop(self) -> None:
        """End everything."""
        for host in reversed(self._hosts):
            host.stop()
        shutil.rmtree(self.base, ignore_errors=True)
