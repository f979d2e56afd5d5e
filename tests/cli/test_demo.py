"""`demo`: shows that nothing is lost, and leaves nothing behind."""

import re

from tests.cli.commands import dutiful, on_terminal


def test_the_demo_loses_nothing(tmp_path):
    done = dutiful("demo", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert re.search(r"kill -9 \d+: 3\d\d jobs are done", done.stdout)
    assert "completed 600 of 600" in done.stdout
    assert "lost 0" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_demo_shows_how_far_it_is_on_a_terminal(tmp_path):
    code, seen = on_terminal("demo", cwd=tmp_path)

    assert code == 0
    assert "600 of 600" in seen
