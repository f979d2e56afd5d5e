"""The environment that holds the peers: build/peers_postgres, made when it is missing or the pins changed."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PINS = ROOT / "constraints" / "peers_postgres.txt"
HOME = ROOT / "build" / "peers_postgres"
PYTHON = HOME / "bin" / "python"
STAMP = HOME / "made"  # holds the pins that it was made from
PACKAGES = ("pgqueuer", "oban", "procrastinate", "dbos", "chancy")
OLDEST = 12  # Python 3.12 is oban's; the others run on the same


def pinned(package: str) -> str:
    for line in PINS.read_text(encoding="utf-8").splitlines():
        name, _, version = line.partition("==")
        if name.lower() == package:
            return version
    raise LookupError(f"{package} is not in {PINS}")


def make() -> dict[str, str]:
    """Make the environment if need be; return why, for each package that could not be installed."""
    python = newest_python()
    made_from = f"{python}\n{PINS.read_text(encoding='utf-8')}"
    if STAMP.exists() and STAMP.read_text(encoding="utf-8") == made_from:
        return {}
    print(f"installing the peers in {HOME}", flush=True)
    shutil.rmtree(HOME, ignore_errors=True)
    subprocess.run([python, "-m", "venv", HOME], check=True)
    failures = {package: why for package in PACKAGES if (why := _install(package))}
    if not failures:
        STAMP.write_text(made_from, encoding="utf-8")
    return failures


def newest_python() -> str:
    """Return the one that DUTIFUL_PEERS_PYTHON names, or the newest by name or among pyenv's."""
    if named := os.environ.get("DUTIFUL_PEERS_PYTHON"):
        return named
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in range(20, OLDEST - 1, -1):
        for installed in sorted(pyenv.glob(f"3.{minor}.*/bin/python3"), reverse=True):
            return str(installed)
        if named := shutil.which(f"python3.{minor}"):
            return named
    raise LookupError(f"no Python 3.{OLDEST} or newer for the peers; name one in DUTIFUL_PEERS_PYTHON")


def _install(package: str) -> str:
    wanted = [f"{package}=={pinned(package)}"]
    if package == "pgqueuer":
        wanted.append(f"asyncpg=={pinned('asyncpg')}")  # the fastest of its drivers
    asked = subprocess.run(
        [PYTHON, "-m", "pip", "install", "--quiet", "-c", PINS, *wanted],
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode == 0:
        return ""
    errors = [line for line in asked.stderr.splitlines() if line.startswith("ERROR")]
    return (errors or [f"pip ended with {asked.returncode}"])[-1]
