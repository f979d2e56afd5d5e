"""
Several hosts on one machine: network namespaces on a bridge, each with its name, clock and temporary folder.

    with Lan(tmp_path) as lan:
        server = Server.create(listen=lan.address)
        far = lan.host("far", clock_s=600)
        Program(script, wrapper=far.wrapper, env=far.env)
        far.cut_off()
        far.heal()

A cable that is pulled says nothing to anybody: no FIN, no RST, and no kernel answers a keepalive. That is
what a proxy cannot show. It takes root, on Linux, with `ip` and `unshare`.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.faults.clock import Clock

NAMED = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"')  # $0: the host's name


def ip(*words: str) -> None:
    """Run `ip`; if it fails the test does, with the reason."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, f"`ip {' '.join(words)}` failed, so there are no hosts here: {done.stderr}"


@dataclass(frozen=True, slots=True)
class Host:
    """
    One host of a `Lan`.

    Attributes:
        name: What it calls itself.
        cable: The network device on the bridge's side.
        wrapper, env: How a program is started on it.
        clock: Its wall clock.
    """

    name: str
    cable: str
    wrapper: Sequence[str]
    env: Mapping[str, str]
    clock: Clock

    def cut_off(self) -> None:
        """Pull its cable."""
        ip("link", "set", self.cable, "down")

    def heal(self) -> None:
        """Put it back."""
        ip("link", "set", self.cable, "up")


class Lan:
    """A bridge, on which this machine has `address`, and hosts on it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._id = secrets.token_hex(3)
        self._net = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(250)}"
        self._bridge = f"dut{self._id}"
        self._names: list[str] = []
        self.address = f"{self._net}.1"

    def __enter__(self) -> Self:
        assert os.geteuid() == 0, (
            "several hosts on one machine take root: run this test as root, in a container"
        )
        ip("link", "add", self._bridge, "type", "bridge")
        ip("addr", "add", f"{self.address}/24", "dev", self._bridge)
        ip("link", "set", self._bridge, "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for name in self._names:
            ip("netns", "del", name)
        ip("link", "del", self._bridge)

    def host(self, name: str, *, clock_s: float = 0.0) -> Host:
        """Add a host whose clock is `clock_s` seconds ahead of the true time."""
        number = len(self._names) + 2
        space, cable = f"{self._bridge}-{name}", f"{self._bridge}-{number}"
        ip("netns", "add", space)
        self._names.append(space)
        ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("link", "set", cable, "master", self._bridge, "up")
        ip("-n", space, "addr", "add", f"{self._net}.{number}/24", "dev", "eth0")
        ip("-n", space, "link", "set", "eth0", "up")
        ip("-n", space, "link", "set", "lo", "up")
        own = self._folder / name
        own.mkdir()
        clock = Clock(own)
        clock.jump_to(clock_s)
        wrapper = ("ip", "netns", "exec", space, *NAMED, name)
        return Host(name, cable, wrapper, {**clock.env, "TMPDIR": str(own)}, clock)
