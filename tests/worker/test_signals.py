"""Signals in the main thread: `stop` from a signal handler, exceptions from one, at any instruction."""

import signal

import pytest

from tests.worker.tools import ran, script

MAIN = """
    store, kind = sys.argv[1:3]
    names = iter(range(10**9))
    class Boom(BaseException): ...
    def every(seconds, handle):
        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    def spaced(seconds, handle):  # one that takes longer than that does not strike itself
        def handle_and_go_on(*_):
            handle()
            signal.setitimer(signal.ITIMER_REAL, seconds)
        signal.signal(signal.SIGALRM, handle_and_go_on)
        signal.setitimer(signal.ITIMER_REAL, seconds)
    def quiet():
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
    def once(seconds, handle):
        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, seconds)
    def url():
        return ":memory:" if store == "memory" else store
    faulthandler.dump_traceback_later(30, exit=True)
"""


@pytest.fixture(params=["file", "memory"])
def run(request, tmp_path, path):
    """Run a program for a file and for memory; it says "well"."""

    def run(source, kind="", folder=tmp_path):
        name = str(path) if request.param == "file" else "memory"
        quiet = {"PYTHONWARNINGS": "ignore"}  # an interrupted import warns about its own file
        assert ran(folder, MAIN + source, name, kind, env=quiet).lines == ["well"]

    return run


@pytest.mark.parametrize(
    "kind", ["send", "send_many", "wait", "refresh", "counts", "sleep", "cancel", "asyncio", "start", "stop"]
)
def test_stop_from_a_signal_handler_whatever_the_main_thread_is_doing(run, kind):
    run(
        """
    def act(worker, job):
        if kind == "send": worker.send(0, task="t")
        elif kind == "send_many": worker.send_many(range(50), task="t")
        elif kind == "wait":
            try: job.wait(0.05)
            except JobTimeout: pass
        elif kind == "refresh": job.refresh()
        elif kind == "counts": worker.counts()
        elif kind == "cancel":
            worker.send(0, task="t", delay=50).cancel()
        elif kind == "asyncio":
            asyncio.run(worker.asend(0, task="t"))
        elif kind == "start":
            worker.send(0, task="t")
        elif kind == "stop":
            worker.stop()
            worker.send(0, task="t")
        else: time.sleep(0.001)

    for n in range(20):
        worker = Worker(url(), handlers={"t": lambda n: time.sleep(0.0005)})
        stopped = threading.Event()
        def stop(*_):
            worker.stop(drain=False)
            stopped.set()
        if kind == "start":
            once(random.random() * 0.005 + 0.0002, stop)
        worker.start()
        try:
            job = worker.send(0, task="t", delay=60)
            if kind != "start":
                once(random.random() * 0.01 + 0.0005, stop)
            while not stopped.is_set():
                act(worker, job)
        except (WorkerStopped, StoreUnavailable, JobNotFound):
            pass
        while not stopped.wait(0.05):
            pass
        worker.stop()
        assert not [t for t in threading.enumerate() if t.name.startswith("dutiful-loop")], n
    say("well")
    """,
        kind,
    )


def test_send_from_a_signal_handler_while_the_main_thread_sends(run):
    run("""
    done = []
    worker = Worker(url(), handlers={"t": done.append})
    worker.start()
    sent = []
    def handle(*_):
        sent.append(next(names))
        worker.send(sent[-1], task="t")
    spaced(0.002, handle)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        n = next(names)
        worker.send(n, task="t")
        sent.append(n)
    quiet()
    worker.stop(drain=True)
    assert sorted(done) == sorted(sent), len(done)
    say("well")
    """)


def test_a_client_sends_or_refuses_in_a_signal_handler_that_struck_a_send(run):
    """Its main thread stores by itself, so a handler that struck that cannot wait for its end."""
    run("""
    client = Worker(url(), handlers={"t": print})
    sent, refused = [], []
    def handle(*_):
        try:
            sent.append(client.send(0, task="t").id)
        except ConfigError as error:
            assert "signal" in str(error), error
            refused.append(error)
    client.send(0, task="t").delete()
    spaced(0.0007, handle)
    until = time.monotonic() + 20
    while not (sent and refused):
        assert time.monotonic() < until, (len(sent), len(refused))
        for job in (client.send(0, task="t"), *client.send_many([1, 2], task="t")):
            sent.append(job.id)
    quiet()
    assert sorted(job.id for job in client.jobs(limit=10**6)) == sorted(sent)
    client.stop()
    say("well")
    """)


def test_a_storm_of_exceptions_during_send_leaves_nothing_stuck_or_half_done(run):
    """Each send is stored once if it returned, at most once if it raised; other threads notice nothing."""
    run("""
    done, acked, tried, odd = [], [], [], []
    worker = Worker(url(), handlers={"t": done.append}, busy_s=5, keep_completed=10**6)
    worker.start()
    ending = threading.Event()
    def send(k):
        n = 0
        while not ending.is_set():
            name = f"{k}.{n}"
            n += 1
            try:
                worker.send(name, task="t")
                acked.append(name)
            except BaseException as error:
                odd.append(error)
    threads = [threading.Thread(target=send, args=(k,)) for k in range(2)]
    for t in threads: t.start()
    armed = False
    def boom(*_):
        global armed
        if armed:
            armed = False
            raise KeyboardInterrupt
    every(0.001, boom)
    end, booms, n = time.monotonic() + 2, 0, 0
    while time.monotonic() < end:
        name = f"main.{n}"
        n += 1
        tried.append(name)
        try:
            armed = True
            if n % 10: worker.send(name, task="t")
            else: worker.send_many([name], task="t")
            armed = False
            acked.append(name)
        except KeyboardInterrupt:
            booms += 1
        armed = False
    quiet()
    ending.set()
    for t in threads:
        t.join(10)
        assert not t.is_alive()
    assert odd == [], odd[:3]
    assert booms > 100, booms
    assert worker.send("last", task="t").wait(10).state == "completed"
    worker.stop(drain=True)
    assert len(set(done)) == len(done)
    assert set(acked) - set(done) == set()
    assert set(done) - set(acked) - set(tried) == {"last"}
    say("well")
    """)


def test_an_interrupted_stop_goes_on_and_the_next_one_waits_for_it(run):
    run("""
    def boom(*_): raise Boom
    for n in range(10):
        begun, go = threading.Event(), threading.Event()
        worker = Worker(url())
        @worker.handler("t")
        def handle(n):
            begun.set()
            assert go.wait(20)
        worker.start()
        job = worker.send(0, task="t")
        begun.wait()
        once(0.001 + random.random() * 0.02, boom)
        try:
            worker.stop()
            raise AssertionError("nothing interrupted it")
        except Boom:
            pass
        go.set()
        worker.stop()
        try:
            worker.send(1, task="t")
            raise AssertionError("it was let in")
        except WorkerStopped:
            pass
        assert not [t for t in threading.enumerate() if t.name.startswith("dutiful")], threading.enumerate()
        assert "stopped" in repr(worker)
        if store != "memory":
            assert Worker(url()).job(job.id).state == "completed"
    say("well")
    """)


def test_a_storm_of_exceptions_during_looks_and_edits_leaves_a_worker_that_works(run):
    """Not start() and stop(): CPython's own Thread.start does not survive an exception inside it."""
    run("""
    armed = False
    def boom(*_):
        global armed
        if armed:
            armed = False
            raise KeyboardInterrupt
    def interrupted(act):
        global armed
        try:
            armed = True
            act()
            armed = False
        except (KeyboardInterrupt, DutifulError):
            pass
        except BaseException:
            quiet()
            raise
        armed = False

    worker = Worker(url(), handlers={"t": lambda n: n})
    worker.start()
    for n in range(25):
        every(0.0007 + random.random() * 0.002, boom)
        for act in (lambda: worker.send(1, task="t").wait(1), worker.counts,
                    lambda: worker.send(1, task="t", delay=9).cancel()):
            interrupted(act)
        quiet()
    worker.stop()
    with worker:
        assert worker.send(5, task="t").result(10) == 5
    say("well")
    """)


@pytest.mark.parametrize(
    "how", ["with worker: job.wait()", "worker.start(); job.wait()"], ids=["with", "exit"]
)
def test_a_second_ctrl_c_does_not_wait_for_running_handlers(tmp_path, path, how):
    source = f"""
    worker = Worker(sys.argv[1], grace_s=1e6)
    @worker.handler("t")
    def forever(_):
        say("begun")
        while "stopped" not in repr(worker):
            time.sleep(0.001)
        say("stopping")
        threading.Event().wait()
    job = worker.send(0, task="t")
    {how}
    """
    with script(tmp_path, source, path) as program:
        program.wait_for("begun")
        program.signal(signal.SIGINT)
        program.wait_for("stopping")
        program.signal(signal.SIGINT)

        assert program.wait() != 0
