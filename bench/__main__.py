"""Run the benchmarks: all, or those that are named."""

import argparse
import importlib
import shutil
import sys
import tempfile
import time
from pathlib import Path

from bench import table

ALL = (
    "end_to_end",
    "single",
    "log_room",
    "drain",
    "latency",
    "rescue",
    "keys",
    "groups",
    "importtime",
    "peers",
    "postgres",
    "peers_postgres",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "what", nargs="*", metavar="BENCHMARK", help=f"any of: {', '.join(ALL)} (default: all)"
    )
    parser.add_argument(
        "--dir", type=Path, default=Path.cwd(), help="where the database files go: a real disk"
    )
    parser.add_argument("--quick", action="store_true", help="smaller and fewer rounds: to see that it runs")
    chosen = parser.parse_args()
    unknown = set(chosen.what) - set(ALL)
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are: {', '.join(ALL)}")
    folder = Path(tempfile.mkdtemp(prefix=".bench-", dir=chosen.dir.resolve()))
    if table.file_system(folder).startswith(("tmpfs", "ramfs")):
        folder.rmdir()
        parser.error(f"{chosen.dir} is in memory, where fsync costs nothing; choose a disk with --dir")
    try:
        return _run(chosen.what or list(ALL), folder, quick=chosen.quick)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(names: list[str], folder: Path, *, quick: bool) -> int:
    head = table.machine(folder.parent)
    print("\n".join(head), flush=True)
    figures: list[table.Figure] = []
    for name in names:
        began = time.monotonic()
        found: list[table.Figure] = importlib.import_module(f"bench.{name}").run(folder, quick=quick)
        figures += found
        print(f"\n{name} ({time.monotonic() - began:.0f} s)\n{table.as_markdown(found)}", flush=True)
    if not quick:
        what = "all" if tuple(names) == ALL else "-".join(names)
        print(f"\nsaved as {table.save(what, head, figures)}")
    missed = [figure.name for figure in figures if figure.met is False]
    print(f"\n{len(figures)} figures; missed: {'; '.join(missed) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
