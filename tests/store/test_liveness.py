"""Who lives and who died, with real processes: locks, lock files, orphans, bells."""

from __future__ import annotations

import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from dutiful.errors import StoreBusy
from dutiful.job import Ack, State
from dutiful.store import liveness
from dutiful.store.contract import Draft, Outcome, Take, Work
from dutiful.store.liveness import SLOTS_MAX, Doorbell, FileLock, Folder, Life, Ringer, running_of_dead
from tests.store import inside

# A process with a worker: joins, takes what is due, marks the first of it as running, and stays.
WORKER = """
import sys
from dutiful.store.sqlite import SqliteStore
from dutiful.store.contract import Outcome, Take, Work
store = SqliteStore(sys.argv[1]); store.open()
owner = store.join("there", ["q"], 1)
outcome = Outcome()
store.exchange(Work(take=Take(owner, ("q",), 10)), outcome)
if outcome.claims:
    store.mark(owner)[0] = outcome.claims[0].id
print("ready", owner, flush=True)
sys.stdin.read()
"""
# A process that holds a write lock until it is told to let go.
HOLDER = """
import sys
from pathlib import Path
from dutiful.store.liveness import FileLock
lock = FileLock(Path(sys.argv[1]), "there", 5.0)
lock.acquire()
print("ready", flush=True)
sys.stdin.readline()
lock.release()
"""


@contextmanager
def _process(program: str, *arguments: object):
    with subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("ready")
            yield process
        finally:
            process.kill()


def _kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(10)


def _let_go(process: subprocess.Popen[str]) -> int:
    process.stdin.write("\n")
    process.stdin.flush()
    return process.pid


@pytest.fixture
def store(tmp_path):
    store = inside.opened(tmp_path / "jobs.db", busy_s=5)
    yield store
    store.close()


@pytest.fixture
def folder(tmp_path) -> Folder:
    folder = Folder(tmp_path / "jobs.db")
    folder.make()
    return folder


def _put(store, count: int = 1) -> list[int]:
    outcome = Outcome()
    store.exchange(Work(drafts=[Draft("t", "q", ["1"] * count)]), outcome)
    return list(outcome.stored[0])


def _decide(claim, was_running: bool) -> Ack:
    return Ack(claim.id, claim.attempt, State.PENDING, 0, int(was_running))


# --- life and death -----------------------------------------------------------------------


def test_a_living_process_is_not_rescued_a_killed_one_is_at_once(store) -> None:
    """Which of its jobs it was running is known; so is who died."""
    ran, held = _put(store, 2)
    with _process(WORKER, inside.path_of(store)) as process:
        assert store.rescue(_decide) == []
        _kill(process)
        died_at = time.monotonic()

        ((info, acks),) = store.rescue(_decide)

    assert time.monotonic() - died_at < 1
    assert (info.name, info.pid) == ("there", process.pid)
    assert {ack.id: ack.crashes for ack in acks} == {ran: 1, held: 0}
    assert inside.folder_of(store).tokens() == set()


def test_a_stopped_process_is_not_dead(store) -> None:
    """SIGSTOP takes no lock away."""
    _put(store)
    with _process(WORKER, inside.path_of(store)) as process:
        process.send_signal(signal.SIGSTOP)

        assert store.rescue(_decide) == []


def test_a_worker_whose_child_holds_its_lock_is_not_dead_yet(store) -> None:
    """`held_fd` is for children that go on with its jobs."""
    owner = store.join("w", ["q"], 1)
    path = inside.life_of(store, owner).path
    fd = store.held_fd(owner)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[fd]) as child:
        inside.die(store, owner)
        assert running_of_dead(path) == (False, None)
        child.kill()
        child.wait(10)

        assert running_of_dead(path) == (True, frozenset())


def test_a_missing_lock_file_says_nothing(store, monkeypatch) -> None:
    """The heartbeat decides then: a fresh one is life, a long silence is death, of all its jobs."""
    (job_id,) = _put(store)
    with _process(WORKER, inside.path_of(store)):
        for token in inside.folder_of(store).tokens():
            inside.folder_of(store).forget(token)

        assert store.rescue(_decide) == []
        monkeypatch.setattr("dutiful.store.sqlite_upkeep.LEASE_MS", -1)
        ((_info, acks),) = store.rescue(_decide)

    assert [(ack.id, ack.crashes) for ack in acks] == [(job_id, 1)]


def test_a_worker_makes_its_lock_file_again(store) -> None:
    """Somebody removed it: at the next beat it is there again, marks and all."""
    owner = store.join("w", ["q"], 1)
    store.mark(owner)[3] = 42
    before = inside.life_of(store, owner).token
    inside.folder_of(store).forget(before)

    store.beat(owner)

    (info,) = store.workers()
    assert info.token == before
    assert inside.folder_of(store).tokens() == {info.token}
    assert store.mark(owner)[3] == 42
    inside.die(store, owner)
    ((_info, _acks),) = store.rescue(_decide)


def test_a_worker_makes_its_folder_again(store) -> None:
    owner = store.join("w", ["q"], 1)
    shutil.rmtree(inside.folder_of(store).path)

    store.beat(owner)

    assert inside.folder_of(store).tokens() == {store.workers()[0].token}


def test_marks_go_on_after_the_lock_file_was_made_again(store) -> None:
    """The runner asks for them after each beat; an attempt may still have the old ones, to no harm."""
    owner = store.join("w", ["q"], 1)
    (job_id,) = _put(store)
    outcome = Outcome()
    store.exchange(Work(take=Take(owner, ("q",), 1)), outcome)
    old = store.mark(owner)
    inside.folder_of(store).forget(inside.life_of(store, owner).token)
    store.beat(owner)

    store.mark(owner)[0] = job_id
    old[0] = 7
    old[1] = 0

    assert store.mark(owner)[0] == job_id
    inside.die(store, owner)
    ((_info, acks),) = store.rescue(_decide)
    assert [(ack.id, ack.crashes) for ack in acks] == [(job_id, 1)]


def test_a_replaced_lock_file_is_noticed(folder: Folder) -> None:
    life = Life(folder)
    life.path.unlink()
    life.path.write_bytes(b"")
    try:
        assert not life.is_in_place()
    finally:
        life.end()


def test_a_life_leaves_nothing_behind(folder: Folder) -> None:
    life = Life(folder)
    assert running_of_dead(life.path) == (False, None)
    assert life.is_in_place()

    life.end()

    assert list(folder.path.iterdir()) == []
    assert running_of_dead(life.path) == (False, None)


@pytest.mark.parametrize("content", [b"", b"short"])
def test_a_dead_workers_unreadable_marks_are_told(folder: Folder, content: bytes) -> None:
    path = folder.path / "dead.lock"
    path.write_bytes(content)

    assert running_of_dead(path) == (True, None)


def test_all_marks_of_a_dead_worker_are_read(folder: Folder) -> None:
    life = Life(folder)
    life.marks[0], life.marks[SLOTS_MAX - 1] = 2**62, 5
    life.abandon()

    assert running_of_dead(life.path) == (True, frozenset({2**62, 5}))


def test_orphans_are_cleaned_up_and_only_they(store) -> None:
    """Files of a worker that died before it was registered go; those of the living stay."""
    folder = inside.folder_of(store)
    owner = store.join("w", ["q"], 1)
    orphan, unborn = Life(folder), Life(folder)
    orphan.abandon()
    (folder.path / f"{orphan.token}.sock").touch()

    store.tidy()

    assert folder.tokens() == {inside.life_of(store, owner).token, unborn.token}
    assert not (folder.path / f"{orphan.token}.sock").exists()
    unborn.end()


# --- the write lock -------------------------------------------------------------------------


@contextmanager
def _lock(folder: Folder, wait_s: float):
    lock = FileLock(folder.path / "write.lock", "here", wait_s)
    try:
        yield lock
    finally:
        lock.release()
        lock.close()


class _Moment(liveness._Waiting):
    """Tells when somebody waits for the lock, and cannot have it yet."""

    def wait(self, wait_s: float) -> bool:
        assert not self._came.is_set()
        self.then()
        return super().wait(wait_s)

    then = staticmethod(lambda: None)


@pytest.fixture
def waiting(monkeypatch):
    """Return a way to say what happens when somebody waits."""
    monkeypatch.setattr(liveness, "_Waiting", _Moment)
    return lambda then: monkeypatch.setattr(_Moment, "then", staticmethod(then))


def test_the_write_lock_is_waited_for(folder: Folder, waiting) -> None:
    with _process(HOLDER, folder.path / "write.lock") as process, _lock(folder, 10) as lock:
        told: list[int] = []
        waiting(lambda: told.append(_let_go(process)))

        lock.acquire()

        assert told


def test_the_write_lock_is_not_waited_for_without_a_bound(folder: Folder) -> None:
    """Then StoreBusy says where and how long; and giving up leaves the lock to others."""
    with _process(HOLDER, folder.path / "write.lock") as process, _lock(folder, 0.05) as lock:
        with pytest.raises(StoreBusy, match="here"):
            lock.acquire()
        lock.release()
        _kill(process)

        with _lock(folder, 5) as other:
            other.acquire()


def test_the_write_lock_falls_with_its_process(folder: Folder, waiting) -> None:
    with _process(HOLDER, folder.path / "write.lock") as process, _lock(folder, 10) as lock:
        waiting(lambda: _kill(process))

        lock.acquire()

        assert process.returncode == -signal.SIGKILL


def test_the_write_lock_can_be_released_any_number_of_times(folder: Folder) -> None:
    """So `release` can stand in a `finally` around `acquire` itself."""
    with _lock(folder, 0.02) as lock, _lock(folder, 0.02) as other:
        lock.release()
        lock.acquire()
        with pytest.raises(StoreBusy):
            other.acquire()
        lock.release()
        lock.release()
        other.release()
        other.acquire()


def test_two_processes_never_write_at_once(folder: Folder, tmp_path: Path) -> None:
    """A counter that is read and written under the lock loses nothing."""
    program = """
import sys
from pathlib import Path
from dutiful.store.liveness import FileLock
lock = FileLock(Path(sys.argv[1]), "x", 20.0)
print("ready", flush=True)
for _ in range(300):
    try:
        lock.acquire()
        counter = Path(sys.argv[2]); counter.write_text(str(int(counter.read_text()) + 1))
    finally:
        lock.release()
"""
    counter = tmp_path / "counter"
    counter.write_text("0")
    with _process(program, folder.path / "write.lock", counter) as a:
        with _process(program, folder.path / "write.lock", counter) as b:
            assert (a.wait(50), b.wait(50)) == (0, 0)

    assert counter.read_text() == "600"


# --- bells --------------------------------------------------------------------------------------


def _rings(bell: Doorbell) -> bool:
    return bool(select.select([bell], [], [], 0)[0])


@pytest.mark.parametrize("depth", [0, 3])
def test_bells_ring_whatever_the_length_of_the_path(tmp_path: Path, depth: int) -> None:
    """A socket's address ends at 108 bytes; a path need not."""
    place = tmp_path.joinpath(*["x" * 60] * depth)
    place.mkdir(parents=True, exist_ok=True)
    folder = Folder(place / "jobs.db")
    folder.make()
    assert depth == 0 or len(str(folder.path)) > 108
    here, there = Doorbell(folder, "here"), Doorbell(folder, "there")
    ringer = Ringer(folder)
    before = len(list(Path("/proc/self/fd").iterdir()))

    ringer.ring({"here.sock"})

    assert (_rings(here), _rings(there)) == (False, True)
    there.hush()
    assert not _rings(there)
    ringer.ring(())
    assert (_rings(here), _rings(there)) == (True, True)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    for closing in (here, there, ringer):
        closing.close()


def test_a_bell_of_the_dead_and_a_full_one_are_no_trouble(folder: Folder) -> None:
    dead, full = Doorbell(folder, "dead"), Doorbell(folder, "full")
    dead.close()
    (folder.path / "nonsense.sock").touch()
    ringer = Ringer(folder)

    for _ in range(2000):
        ringer.ring(())

    assert _rings(full)
    full.hush()
    assert not _rings(full)
    full.close()
    ringer.close()


def test_a_new_bell_is_found(folder: Folder, monkeypatch) -> None:
    """Not at once: the list of them is looked at now and then."""
    now_s = 100.0
    monkeypatch.setattr(liveness, "time", SimpleNamespace(monotonic=lambda: now_s))
    ringer = Ringer(folder)
    ringer.ring(())
    bell = Doorbell(folder, "new")
    now_s += liveness.BELLS_S

    ringer.ring(())

    assert _rings(bell)
    bell.close()
    ringer.close()


def test_ringing_is_no_trouble_when_somebody_removed_the_folder(store) -> None:
    """The committer rings after a commit: an error there would deny what is stored."""
    shutil.rmtree(inside.folder_of(store).path)

    store.ring()
