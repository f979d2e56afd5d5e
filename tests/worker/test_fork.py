"""`fork()` in a process with a worker: the child is told, the parent goes on."""

import os
import signal
import sqlite3

import pytest

from tests.worker.tools import is_dead, ran, result, script

# Newer Pythons warn about any fork beside threads, which is what this is about.
QUIET = {"PYTHONWARNINGS": "ignore"}

FORK = """
    path = sys.argv[1]

    def in_child(check):
        "Return what the child made of it: 0 is well."
        pid = os.fork()
        if not pid:
            faulthandler.dump_traceback_later(10, exit=True)
            try:
                check()
            except BaseException as error:
                os.write(2, repr(error).encode())
                os._exit(1)
            os._exit(0)
        return os.waitpid(pid, 0)[1]

    def refuses(use):
        try:
            use()
        except ForkedProcess as error:
            assert str(os.getppid()) in str(error), error
        else:
            raise AssertionError("it let us")
"""


def integrity(path):
    db = sqlite3.connect(path)
    try:
        return db.execute("PRAGMA integrity_check").fetchone()[0]
    finally:
        db.close()


def test_a_child_is_told_whatever_the_parent_was_doing_and_the_parent_goes_on(tmp_path, path):
    source = (
        FORK
        + """
    worker = Worker(path)
    done = [0]
    @worker.handler("t")
    def handle(n): done[0] += 1
    worker.start()
    ending, sent = threading.Event(), [0] * 4
    def send(k):
        while not ending.is_set():
            worker.send(0, task="t")
            sent[k] += 1
    threads = [threading.Thread(target=send, args=(k,)) for k in range(4)]
    for t in threads: t.start()
    job = worker.send(0, task="t")

    def check():
        for use in (lambda: worker.send(1, task="t"), lambda: worker.send_many([1], task="t"),
                    lambda: asyncio.run(worker.asend(1, task="t")), worker.counts, worker.jobs,
                    worker.start, worker.stop, job.refresh, job.cancel, lambda: job.wait(1)):
            refuses(use)

    for n in range(40):
        assert in_child(check) == 0, n
    ending.set()
    for t in threads: t.join()
    worker.stop(drain=True)
    assert done[0] == sum(sent) + 1, (done, sent)
    say("well")
    """
    )
    assert ran(tmp_path, source, path, env=QUIET).lines == ["well"]
    assert integrity(path) == "ok"


def test_the_child_can_make_a_worker_of_its_own_on_the_same_file(tmp_path, path, started):
    source = (
        FORK
        + """
    worker = Worker(path, handlers={"t": lambda n: n})
    worker.start()
    worker.send(0, task="t").result(10)

    def check():
        with Worker(path, handlers={"t": lambda n: [n, os.getpid()]}, queues="child") as own:
            assert own.send(5, task="t").result(10) == [5, os.getpid()]

    assert in_child(check) == 0
    assert worker.send(6, task="t").result(10) == 6
    worker.stop()
    """
    )
    ran(tmp_path, source, path, env=QUIET)
    assert integrity(path) == "ok"


@pytest.mark.parametrize(
    "use", ["pass", "worker.send(0, task='t', delay=3600); worker.stop()", "with worker: pass"]
)
def test_a_worker_that_is_not_in_use_at_the_fork_is_usable_in_the_child(tmp_path, path, use):
    source = (
        FORK
        + f"""
    worker = Worker(path, handlers={{"t": lambda n: 2 * n}})
    {use}

    def check():
        with worker:
            assert worker.send(4, task="t").result(10) == 8

    assert in_child(check) == 0
    check()
    """
    )
    ran(tmp_path, source, path, env=QUIET)


def test_parent_and_child_of_a_stopped_worker_give_different_ids(tmp_path, shared):
    """What was reserved before the fork would be given twice."""
    source = (
        FORK
        + """
    worker = Worker(path)
    for n in range(6):  # so that ids are at hand
        worker.send(n, task="t", delay=3600)
    worker.stop()

    def check():
        worker.start()
        worker.send("child", task="t", delay=3600)
        worker.stop()

    assert in_child(check) == 0
    worker.start()
    for n in range(3):
        worker.send("parent", task="t", delay=3600)
    worker.stop()
    assert len(worker.jobs()) == 10
    """
    )
    ran(tmp_path, source, shared, env=QUIET)


def test_a_client_made_before_the_fork_is_usable_in_parent_and_children(tmp_path, path, started, seen):
    source = (
        FORK
        + """
    worker = Worker(path)
    for n in range(5):
        assert in_child(lambda: worker.send(n, task="t")) == 0
    worker.send(5, task="t")
    worker.stop()
    """
    )
    ran(tmp_path, source, path, env=QUIET)
    started(path, handlers={"t": seen.add}, concurrency=1)

    assert seen.wait(6) == [0, 1, 2, 3, 4, 5]


def test_the_normal_end_of_a_child_does_nothing_to_the_parents_worker(tmp_path, path):
    """At its exit it runs the same exit functions and finalizers."""
    source = (
        FORK
        + """
    worker = Worker(path, handlers={"t": lambda n: n})
    worker.start()
    worker.send(0, task="t").result(10)
    pid = os.fork()
    if not pid:
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    import multiprocessing
    child = multiprocessing.get_context("fork").Process(target=print, args=("from the child",))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert [w.pid for w in worker.workers()] == [os.getpid()]
    assert worker.send(6, task="t").result(10) == 6
    worker.stop()
    """
    )
    ran(tmp_path, source, path, env=QUIET)
    assert integrity(path) == "ok"


def test_a_child_does_not_keep_its_dead_parents_worker_alive(tmp_path, path, started):
    """The lock of the parent's worker is not the child's to hold."""
    source = (
        FORK
        + """
    worker = Worker(path)
    @worker.handler("t")
    def handle(n):
        pid = os.fork()
        if not pid:
            os.setsid()
            for fd in (0, 1, 2):
                os.close(fd)
            time.sleep(60)
            os._exit(0)
        say("child", pid)
        os.kill(os.getpid(), signal.SIGKILL)
    worker.start()
    worker.send(4, task="t")
    signal.pause()
    """
    )
    with script(tmp_path, source, path, env=QUIET) as parent:
        child = int(parent.wait_for("child").split()[1])
        parent.wait()

    try:
        worker = started(path, handlers={"t": lambda n: 2 * n})
        assert result(worker.job(1)) == 8
        assert not is_dead(child)
    finally:
        os.kill(child, signal.SIGKILL)
