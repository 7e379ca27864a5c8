"""Stand-ins for machines: network namespaces on one bridge, each but the first with a `/tmp` of its own.

What a node opens, the others reach only over the network, and what it writes there they do not see.
"""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

_SUBNET = "10.231.7"


@dataclass(frozen=True)
class Machine:
    """A network namespace.

    Attributes:
        address: its IP address.
        prefix: words before a command that make it run there.
    """

    address: str
    prefix: Sequence[str]


def can_make_machines() -> bool:
    """Whether this process may make network namespaces."""
    if shutil.which("ip") is None or shutil.which("unshare") is None or os.geteuid() != 0:
        return False
    name = f"probe{secrets.token_hex(2)}"
    is_made = subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True).returncode == 0
    if is_made:
        _ip("netns", "delete", name)
    return is_made


@contextmanager
def machines(num_machines: int) -> Iterator[list[Machine]]:
    """Machines that reach each other and nothing else; the first one shares the temporary files with this process."""
    mark = secrets.token_hex(2)
    bridge, names = f"br{mark}", [f"fl{mark}-{number}" for number in range(num_machines)]
    made = []
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("link", "set", bridge, "up")
        for number, name in enumerate(names):
            _ip("netns", "add", name)
            made.append(name)
            _ip("link", "add", f"v{mark}{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", f"v{mark}{number}", "master", bridge, "up")
            _ip("-n", name, "address", "add", f"{_SUBNET}.{number + 1}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                _ip("-n", name, "link", "set", device, "up")
        yield [
            Machine(f"{_SUBNET}.{number + 1}", _prefix(name, shares_files=number == 0))
            for number, name in enumerate(names)
        ]
    finally:
        for name in made:
            _ip("netns", "delete", name)
        _ip("link", "delete", bridge)


def _prefix(name: str, *, shares_files: bool) -> list[str]:
    inside = ["ip", "netns", "exec", name]
    own_files = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /tmp && exec "$@"', "sh"]
    return inside if shares_files else [*inside, *own_files]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
