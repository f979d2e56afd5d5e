"""Starting bench.child, and reading what it says."""

import json
import subprocess
import sys
from typing import Any


def start(command: str, **arguments: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "bench.child", command, json.dumps(arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def heard(child: "subprocess.Popen[str]") -> dict[str, Any]:
    """Return the next line of what a child says."""
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise RuntimeError(f"{child.args!r} ended with {child.wait()}")
    found: dict[str, Any] = json.loads(line)
    return found


def tell(child: "subprocess.Popen[str]", line: str) -> None:
    assert child.stdin is not None
    child.stdin.write(line + "\n")
    child.stdin.flush()


def end(child: "subprocess.Popen[str]") -> None:
    """Close its stdin, and wait until it has ended."""
    assert child.stdin is not None
    child.stdin.close()
    child.wait(timeout=60)


def run(command: str, **arguments: Any) -> dict[str, Any]:
    """Run a child to its end; return what it said last."""
    child = start(command, **arguments)
    said = heard(child)
    end(child)
    return said
