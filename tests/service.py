"""Real servers for tests, on this machine only: started, stopped and started again at the same address."""

import os
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

__all__ = ["Service", "kill_family", "listening"]

_START_SECS = 120


def listening(pid: int) -> set[tuple[str, int]]:
    """Return the addresses at which a process and those it has started listen, with IPv4 written as such."""
    parent, found = psutil.Process(pid), set[tuple[str, int]]()
    for process in (parent, *parent.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            sockets = process.net_connections("inet")
            # One that is bound and not connected takes anybody's datagrams.
            is_open = (one for one in sockets if one.status == psutil.CONN_LISTEN or (one.laddr and not one.raddr))
            found |= {(one.laddr.ip.removeprefix("::ffff:"), one.laddr.port) for one in is_open}
    return found


def kill_family(process: subprocess.Popen[Any]) -> None:
    """Kill a process and all that it has started at once, and wait until they have ended."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(family, 10)
    process.wait()


class Service(ABC):
    """A server on a free port of 127.0.0.1, with its log in `folder`."""

    user: str | None = None  # whose process it is; None: that of the tests

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.folder = folder
        self.log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """Its command line."""

    @abstractmethod
    def variables(self) -> dict[str, str]:
        """Its whole environment."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it is ready; errors of the connection mean that it is not."""

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), env=self.variables(), cwd=self.folder, user=self.user, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + _START_SECS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if self.answers():
                    return
            except OSError:
                pass
            time.sleep(0.2)
        self.kill()
        raise TimeoutError(self.log.read_text(errors="replace"))

    def kill(self) -> None:
        """End it and the processes that it has started without a word."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def memory_bytes(self) -> int:
        """Return the memory of its processes; what several of them share counts once."""
        assert self._process is not None
        parent, total = psutil.Process(self._process.pid), 0
        for process in (parent, *parent.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
        return total

    def listening(self) -> set[tuple[str, int]]:
        """Return the addresses at which its processes listen."""
        assert self._process is not None
        return listening(self._process.pid)

    @contextmanager
    def killed(self) -> Iterator[None]:
        """Be without it: connections are refused."""
        self.kill()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Be without an answer of it: connections stay open."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._process.pid, signal.SIGCONT)
