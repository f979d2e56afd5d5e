"""Handlers in child processes: real ones, which are really killed."""

import atexit
import fcntl
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from multiprocessing import resource_tracker
from pathlib import Path

import msgspec
import pytest

from dutiful.errors import ConfigError, NotDecodable
from dutiful.handler import Handler, Kind
from dutiful.job import Cancel, Discard, Snooze
from dutiful.runner import child, failure
from dutiful.runner.messages import ChildJob, Died, HandlerRef, Killed, Raised, Returned
from dutiful.runner.processes import ChildPool
from tests.runner import child_handlers as handlers

ROOT = Path(__file__).parent.parent.parent
SOON_S = 20.0  # for what takes milliseconds on an idle machine
IDS = count(1)


def until(look, limit_s=SOON_S):
    """Return what `look` finds, as soon as it finds anything."""
    deadline = time.monotonic() + limit_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {limit_s} s"
        time.sleep(0.002)
    return found


def pid_in(path: Path) -> int:
    return until(lambda: path.exists() and int(path.read_text()))


def is_gone(pid: int) -> bool:
    """Not even a zombie, which a signal would still reach."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def is_dead(pid: int) -> bool:
    """A zombie counts: its own parent may be slow to reap it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return is_gone(pid)


def open_fds() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def ref(fn, payload_type=None) -> HandlerRef:
    return HandlerRef.to(fn, "task", payload_type)


def job(payload: object = None, **fields) -> ChildJob:
    values = {"id": next(IDS), "attempt": 1, "task": "task", "queue": "default"} | fields
    return ChildJob(payload=msgspec.json.encode(payload).decode(), **values)


@pytest.fixture
def pool() -> Iterator[ChildPool]:
    pool = ChildPool(held_fd=None)
    yield pool
    pool.close()


def run(pool, fn, payload=None, payload_type=None, timeout_s=None, **fields):
    return pool.run(ref(fn, payload_type), job(payload, **fields), timeout_s=timeout_s)


@pytest.fixture
def background() -> Iterator[Callable[..., Future]]:
    """`run`, in a thread of its own."""
    with ThreadPoolExecutor(4) as threads:
        yield functools.partial(threads.submit, run)


# What a handler may do.


def test_a_handler_returns(pool):
    assert run(pool, handlers.same, "ä") == Returned('"ä"')
    assert run(pool, handlers.total, {"left": 1, "right": 2}, handlers.Pair) == Returned("3")
    assert run(pool, handlers.nothing) == Returned(None)
    assert run(pool, handlers.added, {"x": 1, "y": 2}) == Returned("3")
    assert run(pool, handlers.Outer.inner) == Returned('"found"')


@pytest.mark.parametrize(
    ("name", "signal"),
    [("snooze", Snooze(5)), ("cancel", Cancel("why")), ("discard", Discard("bad"))],
)
def test_a_handler_returns_a_signal(pool, name, signal):
    assert run(pool, handlers.signal_of, name) == signal


def test_a_result_that_has_no_json_is_named(pool):
    outcome = run(pool, handlers.no_json)

    assert outcome.value is None
    assert "object" in outcome.unencodable


def test_payload_types_may_be_any_annotation(pool):
    assert run(pool, handlers.same, ["a"], list[str]) == Returned('["a"]')
    assert isinstance(run(pool, handlers.same, [1], list[str]), Raised)


def test_a_payload_that_cannot_be_read_is_raised(pool):
    outcome = run(pool, handlers.total, {"left": "one"}, handlers.Pair)

    assert isinstance(outcome.exception, NotDecodable)
    assert outcome.exception.task == "task"


def test_a_handler_sees_its_job(pool):
    outcome = run(pool, handlers.seen, id=7, attempt=2, task="seen", queue="mail")

    *fields, refusal = msgspec.json.decode(outcome.value)
    assert fields == [7, 7, 2, "seen", "mail", False, {}, []]
    assert "process=True" in refusal
    assert "job 7" in refusal


def test_what_needs_the_store_is_refused_in_a_child(pool):
    outcome = run(pool, handlers.asks_too_much, id=7, task="much")

    refusals = msgspec.json.decode(outcome.value)
    assert len(refusals) == 6
    assert all("process=True" in refusal and "job 7 (much)" in refusal for refusal in refusals)


def test_what_a_handler_prints_goes_where_the_parents_output_goes(pool, capfd):
    run(pool, handlers.shout, "heard")

    assert capfd.readouterr() == ("heard\n", "heard\n")


def test_the_users_own_decorators_stay_and_ours_come_off(pool):
    assert run(pool, handlers.seven) == Returned("[7,7,7]")
    assert run(pool, handlers.eight.__wrapped__) == Returned("[8,8,8]")


@pytest.mark.parametrize("size", [8_000_000])
def test_large_payloads_and_results_pass(pool, size):
    text = "x" * size

    outcome = run(pool, handlers.same, text, result_bytes_max=2 * size, timeout_s=SOON_S)

    assert outcome == Returned(f'"{text}"')


# What a handler may raise.


def test_an_exception_comes_back_as_itself(pool):
    outcome = run(pool, handlers.refuse)

    assert type(outcome.exception) is handlers.Refused
    assert outcome.exception.args == ("no",)
    assert (outcome.error.type, outcome.error.message) == ("Refused", "no")
    assert "in refuse" in outcome.error.traceback
    assert "local variables" not in outcome.error.traceback.replace('secret = "local variables', "")
    assert child.__file__ not in outcome.error.traceback


@pytest.mark.parametrize(
    ("fn", "type_", "message"),
    [
        (handlers.unpicklable, "Unpicklable", "holds a lock"),
        (handlers.stubborn, "Stubborn", "7: because"),
        (handlers.rude, "Rude", "<its str() raised ValueError>"),
    ],
)
def test_an_exception_that_does_not_pickle_has_a_stand_in(pool, fn, type_, message):
    outcome = run(pool, fn)

    assert (outcome.error.type, outcome.error.message) == (type_, message)
    if fn is not handlers.rude:  # which pickles well
        assert type(outcome.exception) is RuntimeError
        assert str(outcome.exception) == f"{type_}: {message}"


def test_texts_are_bounded_and_can_be_stored(pool):
    error = run(pool, handlers.refuse_at_length).error

    for text in (error.message, error.traceback):
        assert len(text.encode()) <= failure.TEXT_BYTES_MAX + len("…".encode())
        assert text.startswith("…")
        assert text.rstrip().endswith("\\udcff the end")


@pytest.mark.parametrize(
    ("fn", "payload", "type_"),
    [(handlers.leave, 3, SystemExit), (handlers.interrupt, None, KeyboardInterrupt)],
)
def test_base_exceptions_do_not_end_the_child(pool, fn, payload, type_):
    before = run(pool, handlers.pid)

    outcome = run(pool, fn, payload)

    assert type(outcome.exception) is type_
    assert run(pool, handlers.pid) == before


def test_a_module_that_cannot_be_imported_is_raised(pool):
    outcome = pool.run(HandlerRef("no.such.module", "fn", "task"), job(), timeout_s=None)

    assert isinstance(outcome.exception, ModuleNotFoundError)


def test_a_handler_that_the_child_does_not_find_is_raised(pool):
    outcome = pool.run(HandlerRef(handlers.__name__, "hidden", "task"), job(), timeout_s=None)

    assert isinstance(outcome.exception, ConfigError)
    assert "__main__" in str(outcome.exception)


def test_a_child_that_cannot_be_started_fails_the_job(pool, monkeypatch):
    monkeypatch.setattr(pool, "_spawn", lambda: os.open("/nowhere", os.O_RDONLY))

    outcome = run(pool, handlers.nothing)

    assert isinstance(outcome.exception, FileNotFoundError)


# How a child may die.


def test_a_child_that_exits_has_died(pool):
    assert run(pool, handlers.vanish, 3) == Died("exited with code 3")
    assert run(pool, handlers.vanish, 0) == Died("exited with code 0")
    assert run(pool, handlers.same, "on") == Returned('"on"')


def test_a_child_with_a_segfault_has_died(pool):
    assert run(pool, handlers.crash) == Died("killed by signal 11 (SIGSEGV)")


def test_a_child_that_is_killed_from_outside_has_died(pool, background, tmp_path):
    outcome = background(pool, handlers.spin, str(tmp_path / "pid"))
    os.kill(pid_in(tmp_path / "pid"), signal.SIGKILL)

    death = outcome.result(SOON_S)

    assert isinstance(death, Died)
    assert death.description.startswith("killed by signal 9 (SIGKILL)")


def test_a_child_that_was_killed_while_idle_is_replaced(pool):
    pid = int(run(pool, handlers.pid).value)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # until it is dead; it stays to be reaped

    assert int(run(pool, handlers.pid).value) != pid
    assert is_gone(pid)


def test_a_death_is_seen_though_another_process_has_the_pipes_open(pool, tmp_path):
    assert run(pool, handlers.die_before_a_program, str(tmp_path / "pid")) == Died("exited with code 4")
    os.kill(pid_in(tmp_path / "pid"), signal.SIGKILL)


@pytest.mark.parametrize("fn", [handlers.spin, handlers.hold_the_gil])
def test_a_timeout_kills(pool, tmp_path, fn):
    outcome = run(pool, fn, str(tmp_path / "pid"), timeout_s=0.3)

    assert outcome == Killed("timeout")
    assert is_gone(pid_in(tmp_path / "pid"))


def test_a_timeout_kills_the_programs_of_the_handler_too(pool, tmp_path):
    run(pool, handlers.hang_with_a_program, str(tmp_path / "pid"), timeout_s=0.5)

    pid = pid_in(tmp_path / "pid")
    until(lambda: is_dead(pid))


def test_the_start_of_a_child_is_not_the_jobs_time(pool):
    """It takes longer than this on any machine."""
    assert run(pool, handlers.same, "quick", timeout_s=0.02) == Returned('"quick"')


def test_a_start_that_takes_too_long_is_given_up():
    pool = ChildPool(held_fd=None, start_timeout_s=0.001)

    outcome = run(pool, handlers.nothing)

    pool.close()
    assert isinstance(outcome.exception, TimeoutError)
    assert handlers.__name__ in outcome.error.message


@pytest.mark.parametrize("reason", ["cancel", "stop", "timeout"])
def test_kill_ends_a_job_from_another_thread(pool, background, tmp_path, reason):
    outcome = background(pool, handlers.spin, str(tmp_path / "pid"), id=-5)
    pid = pid_in(tmp_path / "pid")

    assert pool.kill(-5, reason)

    assert outcome.result(SOON_S) == Killed(reason)
    assert is_gone(pid)
    assert not pool.kill(-5, reason)


def test_kill_reaches_a_job_whose_child_is_starting(pool, background, monkeypatch):
    starting, killed = threading.Event(), threading.Event()
    spawn = pool._spawn

    def slow_spawn():
        starting.set()
        assert killed.wait(SOON_S)
        return spawn()

    monkeypatch.setattr(pool, "_spawn", slow_spawn)
    outcome = background(pool, handlers.nothing, id=-6)
    assert starting.wait(SOON_S)

    assert pool.kill(-6, "cancel")

    killed.set()
    assert outcome.result(SOON_S) == Killed("cancel")


def test_kill_leaves_other_jobs_alone(pool, background, tmp_path):
    one = background(pool, handlers.spin, str(tmp_path / "one"), id=-1)
    two = background(pool, handlers.spin, str(tmp_path / "two"), id=-2)
    pid_in(tmp_path / "one")
    other = pid_in(tmp_path / "two")

    pool.kill(-1, "cancel")

    assert one.result(SOON_S) == Killed("cancel")
    assert not is_dead(other)
    pool.close()
    assert two.result(SOON_S) == Killed("stop")


def test_ctrl_c_does_not_reach_a_child(pool):
    assert run(pool, handlers.interrupt_ourselves) == Returned('"alive"')
    assert int(run(pool, handlers.group).value) != os.getpgid(0)


# The pool.


def test_a_warm_child_is_used_again(pool):
    assert len({run(pool, handlers.pid).value for _ in range(5)}) == 1


def test_there_are_as_many_children_as_jobs_at_once(pool, background, tmp_path):
    first = background(pool, handlers.spin, str(tmp_path / "pid"), id=-3)
    busy = pid_in(tmp_path / "pid")
    pids = {int(run(pool, handlers.pid).value) for _ in range(5)}

    assert len(pids) == 1
    assert busy not in pids
    pool.kill(-3, "cancel")
    first.result(SOON_S)


def test_a_child_is_replaced_after_max_jobs():
    pool = ChildPool(held_fd=None, max_jobs_per_child=2)

    pids = [run(pool, handlers.pid).value for _ in range(5)]

    pool.close()
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]


def test_a_closed_pool_runs_nothing(pool):
    pool.close()
    pool.close()

    assert run(pool, handlers.nothing) == Killed("stop")


def test_close_leaves_nothing(background, tmp_path):
    resource_tracker.ensure_running()  # Python's own, one per process, stays
    before = open_fds()
    pool = ChildPool(held_fd=None)
    busy = background(pool, handlers.spin, str(tmp_path / "pid"))
    pids = [pid_in(tmp_path / "pid"), int(run(pool, handlers.pid).value)]
    run(pool, handlers.vanish, 1)
    run(pool, handlers.pid)

    pool.close()

    assert busy.done() or busy.result(SOON_S) == Killed("stop")
    assert all(map(is_gone, pids))
    assert open_fds() == before
    assert not pool._idle


def test_a_pool_that_ran_nothing_opens_nothing(monkeypatch):
    registered = []
    monkeypatch.setattr(atexit, "register", registered.append)
    before = threading.active_count(), open_fds()

    pool = ChildPool(held_fd=None)

    assert (threading.active_count(), open_fds()) == before
    pool.close()
    assert registered == []


def test_the_lock_is_held_as_long_as_a_child_lives(background, tmp_path):
    def is_locked() -> bool:
        with (tmp_path / "lock").open() as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    held = (tmp_path / "lock").open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    pool = ChildPool(held_fd=held.fileno())
    outcome = background(pool, handlers.hang_with_a_program, str(tmp_path / "pid"), id=-4)
    program = pid_in(tmp_path / "pid")
    held.close()

    assert is_locked()
    os.kill(os.getpgid(program), signal.SIGKILL)  # the child alone: programs do not hold it
    assert isinstance(outcome.result(SOON_S), Died)
    assert not is_locked()
    pool.close()


# The parent's death.

PARENT = """
import sys
from dutiful.runner.messages import ChildJob, HandlerRef
from dutiful.runner.processes import ChildPool
from tests.runner import child_handlers

pool = ChildPool(held_fd=None)
job = ChildJob(1, 1, "task", "default", '"' + sys.argv[2] + '"')
print(pool.run(HandlerRef.to(getattr(child_handlers, sys.argv[1]), "task"), job, timeout_s=None), flush=True)
"""


def parent_of(fn, argument) -> subprocess.Popen:
    command = [sys.executable, "-c", PARENT, fn.__name__, str(argument)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("fn", [handlers.spin, handlers.hold_the_gil])
def test_a_child_dies_with_its_parent(tmp_path, fn):
    """At once, also where it holds the GIL and no thread of it could notice."""
    with parent_of(fn, tmp_path / "pid") as parent:
        pid = pid_in(tmp_path / "pid")
        parent.kill()

        until(lambda: is_dead(pid), limit_s=2)


def test_a_child_dies_with_its_parent_without_the_kernels_help(tmp_path):
    """As on macOS: the thread that waits for the end of the parent's pipe does it alone."""
    with parent_of(handlers.spin_untied, tmp_path / "pid") as parent:
        pid = pid_in(tmp_path / "pid")
        parent.kill()

        until(lambda: is_dead(pid), limit_s=2)


def test_a_forgotten_close_does_not_keep_the_program_from_ending(tmp_path):
    with parent_of(handlers.same, "done") as parent:
        output, _ = parent.communicate(timeout=SOON_S)

    assert (parent.returncode, "done" in output) == (0, True)


# What can be found by name.


@pytest.mark.parametrize("fn", [print, handlers.pid, handlers.Outer.inner, handlers.seven])
def test_functions_of_modules_are_importable(fn):
    assert Handler(fn, process=True).kind is Kind.PROCESS


@pytest.mark.parametrize(
    ("fn", "why"),
    [
        (lambda: None, "lambda"),
        (handlers.Outer().method, "bound method"),
        (functools.partial(print, 1), "partial"),
    ],
)
def test_what_a_child_could_not_find_is_refused(fn, why):
    with pytest.raises(ConfigError, match=why) as caught:
        Handler(fn, process=True)
    assert "top level of a module" in str(caught.value)


def test_local_functions_and_types_are_refused():
    class Local: ...

    def local() -> None: ...

    with pytest.raises(ConfigError, match="inside a function"):
        Handler(local, process=True)
    with pytest.raises(ConfigError, match="payload type"):
        ref(handlers.pid, Local)


def test_a_function_typed_into_python_is_refused():
    code = "from dutiful import Handler\ndef typed(): ...\nHandler(typed, process=True)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)

    assert "Put it into a file" in done.stderr


def test_a_handler_of_the_main_script_is_found(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from dutiful.runner.messages import ChildJob, HandlerRef\n"
        "from dutiful.runner.processes import ChildPool\n"
        "class Own(Exception): ...\n"
        "def own(): raise Own('mine')\n"
        "if __name__ == '__main__':\n"
        "    pool = ChildPool(held_fd=None)\n"
        "    job = ChildJob(1, 1, 'own', 'default', 'null')\n"
        "    print(type(pool.run(HandlerRef.to(own, 'own'), job, timeout_s=None).exception) is Own)\n"
        "    pool.close()\n"
    )

    done = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True)

    assert (done.stdout, done.stderr) == ("True\n", "")
