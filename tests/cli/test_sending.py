"""`send`: one job, and streams of them."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.cli.commands import COMMAND, dutiful, listed, on_terminal, told, wait_until


def payloads(folder):
    return [
        told("job", "jobs.db", job["id"], cwd=folder)["payload"]
        for job in reversed(listed("jobs", "jobs.db", cwd=folder))
    ]


def test_one_job_is_sent_and_its_id_printed(folder):
    done = dutiful("send", "jobs.db", "note", '{"n": 1}', cwd=folder)

    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
    assert payloads(folder) == [{"n": 1}]


def test_the_options_arrive(folder):
    dutiful("send", "jobs.db", "note", "1", "--queue", "q", "--delay", "2h", "--priority", "-3", cwd=folder)
    dutiful("send", "jobs.db", "note", "-5", "--run-at", "2099-01-01T00:00+01:00", cwd=folder)

    second, first = listed("jobs", "jobs.db", cwd=folder)
    assert (first["queue"], first["priority"]) == ("q", -3)
    assert second["due_at"] == "2098-12-31T23:00:00.000Z"
    assert payloads(folder) == [1, -5]


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["note", "{"], "no JSON"),
        (["note", "NaN"], "no JSON"),
        (["note", "[" * 70 + "]" * 70], "64"),
        (["no such name", "1"], "cannot name a task"),
        (["note", "1", "--delay", "soon"], "no length of time"),
        (["note", "1", "--delay", "-1"], "--delay"),
        (["note", "1", "--run-at", "2099-01-01T00:00"], "no time zone"),
        (["note", "1", "--run-at", "then"], "no instant"),
        (["note", "1", "--delay", "1", "--run-at", "2099-01-01T00:00Z"], "not allowed with"),
        (["note", "1", "--priority", "99999999999"], "priority"),
    ],
)
def test_a_wrong_argument_is_exit_code_2_and_stores_nothing(folder, args, complaint):
    done = dutiful("send", "jobs.db", *args, cwd=folder)

    assert done.returncode == 2
    assert complaint in done.stderr
    assert not (folder / "jobs.db").exists() or told("status", "jobs.db", cwd=folder)["jobs"]["pending"] == 0


def test_ten_thousand_lines_are_ten_thousand_jobs(folder):
    done = dutiful("send", "jobs.db", "note", cwd=folder, stdin="".join(f"{n}\n" for n in range(10_000)))

    assert done.returncode == 0
    assert list(map(int, done.stdout.split())) == list(range(1, 10_001))
    assert told("status", "jobs.db", cwd=folder)["jobs"]["pending"] == 10_000
    assert told("job", "jobs.db", 10_000, cwd=folder)["payload"] == 9999


def test_lines_are_sent_when_they_come(folder):
    """A stream that goes on, as of `tail -f`, does not wait for a full batch."""
    process = subprocess.Popen(
        [*COMMAND, "send", "jobs.db", "note"], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin
    assert process.stdout
    with process.stdin, process.stdout:
        process.stdin.write(b'{"n": 1}\n')
        process.stdin.flush()
        assert process.stdout.readline() == b"1\n"
        process.stdin.write(b"2")  # the last line needs no end
        process.stdin.close()
        assert process.stdout.read() == b"2\n"
    assert process.wait(30) == 0


def test_blank_lines_and_line_ends_of_windows_are_fine(folder):
    done = dutiful("send", "jobs.db", "note", cwd=folder, stdin=b"1\r\n\r\n  \n2\n\n")

    assert done.stdout == "1\n2\n"
    assert payloads(folder) == [1, 2]


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (b"{oops", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 70 + b"]" * 70, "64"),
        (b'"' + b"x" * 1_100_000 + b'"', "1,048,576"),
        (b"[" * 200_000, "line 4"),
    ],
)
def test_a_bad_line_is_named_and_what_came_before_is_stored(folder, bad, complaint):
    done = dutiful("send", "jobs.db", "note", cwd=folder, stdin=b"1\n\n2\n" + bad + b"\n3\n")

    assert done.returncode == 1
    assert "line 4: " in done.stderr
    assert complaint in done.stderr
    assert "2 jobs" in done.stderr
    assert "tail -n +4" in done.stderr
    assert done.stdout == "1\n2\n"
    assert payloads(folder) == [1, 2]


def test_a_bad_line_far_down_is_counted_right(folder):
    lines = [json.dumps({"n": n, "text": "é" * 50}) for n in range(5000)]
    lines[4321] = '{"n": 4321, "text": ' + "[" * 70 + "]" * 70 + "}"

    done = dutiful("send", "jobs.db", "note", cwd=folder, stdin="\n".join(lines))

    assert "line 4322: " in done.stderr
    assert "4,321 jobs" in done.stderr
    assert told("status", "jobs.db", cwd=folder)["jobs"]["pending"] == 4321


def test_a_bad_line_after_many_short_ones_stores_none_of_them_twice(folder):
    """More jobs than go into one commit are read at once."""
    lines = "".join(f"{n}\n" for n in range(3500)) + "[" * 70 + "]" * 70

    done = dutiful("send", "jobs.db", "note", cwd=folder, stdin=lines)

    assert "line 3501: " in done.stderr
    assert list(map(int, done.stdout.split())) == list(range(1, 3501))
    assert told("status", "jobs.db", cwd=folder)["jobs"]["pending"] == 3500


def test_a_bad_line_after_a_very_long_one_does_not_store_that_twice(folder):
    """The long one fills a commit by itself."""
    lines = '"' + "x" * (1024 * 1024 - 2) + '"\n1\n' + "[" * 70 + "]" * 70

    done = dutiful("send", "jobs.db", "note", cwd=folder, stdin=lines)

    assert "line 3: " in done.stderr
    assert "2 jobs" in done.stderr
    assert done.stdout == "1\n2\n"
    assert told("status", "jobs.db", cwd=folder)["jobs"]["pending"] == 2


def test_numbers_that_grow_when_stored_do_not_upset_the_count(folder):
    """1e15 is stored as 1000000000000000.0."""
    line = json.dumps([1] * 20_000).replace("1", "1e15")
    deep = "[" * 70 + "]" * 70

    done = dutiful("send", "jobs.db", "note", cwd=folder, stdin=f"{line}\n{line}\n{deep}\n")

    assert "line 3: " in done.stderr
    assert told("status", "jobs.db", cwd=folder)["jobs"]["pending"] == 2


def test_that_nobody_reads_the_ids_does_not_end_the_sending(folder):
    process = subprocess.Popen(
        [*COMMAND, "send", "jobs.db", "note"],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    with process.stdin, process.stderr:
        process.stdin.write(b"".join(b"%d\n" % n for n in range(50_000)))
        process.stdin.close()
        complaint = process.stderr.read()

    assert (process.wait(30), complaint) == (0, b"")
    assert told("status", "jobs.db", cwd=folder)["jobs"]["pending"] == 50_000


def test_on_a_terminal_there_is_a_summary_and_no_list_of_ids(folder):
    code, seen = on_terminal("send", "jobs.db", "note", cwd=folder, answer="1\n2\n\x04")

    assert code == 0
    assert "Ctrl-D ends" in seen
    assert "2 jobs stored, ids 1 to 2" in seen


def test_memory_does_not_grow_with_the_stream(folder):
    process = subprocess.Popen(
        [*COMMAND, "send", "jobs.db", "note"], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert process.stdin is not None
    resident = []
    with process.stdin:
        for part in range(10):
            process.stdin.write(
                b"".join(b'{"n": %d, "text": "%s"}\n' % (n, b"x" * 100) for n in range(10_000))
            )
            process.stdin.flush()
            resident.append(_resident_kib(process.pid))
            del part
    assert process.wait(60) == 0

    assert resident[-1] - resident[2] < 20_000


def _resident_kib(pid):
    wait_until(lambda: Path(f"/proc/{pid}/status").exists())
    with Path(f"/proc/{pid}/status").open() as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
