"""The environment that holds the peers: build/peers, made when it is missing or the pins changed."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PINS = ROOT / "constraints" / "peers.txt"
HOME = ROOT / "build" / "peers"
PYTHON = HOME / "bin" / "python"
STAMP = HOME / "made"  # holds the pins that it was made from
PACKAGES = ("huey", "litequeue", "persist-queue", "dbos", "potatoq", "flexiq")


def pinned(package: str) -> str:
    for line in PINS.read_text(encoding="utf-8").splitlines():
        name, _, version = line.partition("==")
        if name.lower() == package:
            return version
    raise LookupError(f"{package} is not in {PINS}")


def make() -> dict[str, str]:
    """Make the environment if need be; return why, for each package that could not be installed."""
    made_from = f"{sys.version}\n{PINS.read_text(encoding='utf-8')}"
    if STAMP.exists() and STAMP.read_text(encoding="utf-8") == made_from:
        return {}
    print(f"installing the peers in {HOME}", flush=True)
    shutil.rmtree(HOME, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", HOME], check=True)
    failures = {package: why for package in PACKAGES if (why := _install(package))}
    if not failures:
        STAMP.write_text(made_from, encoding="utf-8")
    return failures


def _install(package: str) -> str:
    asked = subprocess.run(
        [PYTHON, "-m", "pip", "install", "--quiet", "-c", PINS, f"{package}=={pinned(package)}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode == 0:
        return ""
    return ([*asked.stderr.strip().splitlines(), f"exit code {asked.returncode}"])[0]
