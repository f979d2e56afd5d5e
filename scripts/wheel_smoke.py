"""Look at the installed wheel from outside: everything packed, and a job runs without extras."""

import importlib.resources
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

import dutiful

package = importlib.resources.files("dutiful")
assert "site-packages" in str(package), f"not the installed wheel: {package}"
assert package.joinpath("py.typed").is_file(), "py.typed is not in the wheel"
schema = package.joinpath("store", "schema", "sqlite")
assert any(file.name.endswith(".sql") for file in schema.iterdir()), "no schema in the wheel"
for extra in ("pytest", "rich", "watchfiles"):
    assert importlib.util.find_spec(extra) is None, f"{extra} is installed: this is no bare install"

with tempfile.TemporaryDirectory() as folder:
    done: list[object] = []
    worker = dutiful.Worker(str(Path(folder) / "jobs.db"), handlers={"note": done.append})
    with worker:
        worker.send({"n": 1}, task="note").wait(timeout=10)
    assert done == [{"n": 1}], done
    for command in (["--help"], ["status", str(Path(folder) / "jobs.db")]):
        subprocess.run([sys.executable, "-m", "dutiful", *command], check=True, stdout=subprocess.DEVNULL)

from dutiful.testing import inline  # noqa: E402  # here, without pytest

with inline(worker):
    assert worker.send({"n": 2}, task="note").state == "completed"

print(f"the wheel works: dutiful in {package}")
