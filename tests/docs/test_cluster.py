"""examples/cluster, by its one command, for a few seconds."""

import re
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "examples/cluster/run.py"


def test_the_cluster_loses_and_doubles_nothing_while_its_workers_are_killed(tmp_path: Path) -> None:
    """Its own count says so, row by row, and so does its exit code."""
    command = [sys.executable, "-W", "error", PROGRAM, "--seconds", "6", "--every", "1"]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=90)

    assert done.returncode == 0, done.stdout + done.stderr
    counted = [line for line in done.stdout.splitlines() if line.startswith("sent ")][-1]
    sent, booked, lost, doubled, killed = (
        int(each.replace(",", "")) for each in re.findall(r"[\d,]+", counted)
    )
    assert (lost, doubled) == (0, 0)
    assert sent == booked > 0
    assert killed > 0
    assert "Warning" not in done.stderr


def test_the_cluster_says_how_it_is_used(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, PROGRAM, "--help"], cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0
    assert "--seconds" in done.stdout
