"""
The PostgreSQL store: end to end, beside many other jobs, and idle.

The server, the sender and the worker share this machine's CPUs; each rate is measured in a database of its
own. End to end with hand-off, one process sends and works; without it, a client sends from another process.
What waits beside the jobs, or cannot run, must not matter: the same handler calls are timed with it and
without it, in turn.
"""

import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from bench import children, postgres_raw, postgres_server
from bench.drain import LATER, Window
from bench.ours import TASK, noop, payloads, wait_until_done
from bench.table import Figure, alternate, below, percentile, share_figure
from dutiful import Worker
from tests.servers.postgres import Server

PAUSE_S = 0.025  # between two sends of the latency
IDLE_QUERIES = "< 2 a second"
_STATEMENT = re.compile(r"LOG:  (?:statement|execute|fastpath)")


def raw(server: Server, jobs: int) -> float:
    with postgres_server.fresh(server) as url:
        return postgres_raw.batches_per_s(url, jobs)


def handed_off(server: Server, jobs: int) -> float:
    """Send and work in this process; return jobs per second, from the first send until all is committed."""
    with (
        postgres_server.fresh(server) as url,
        Worker(url, handlers={TASK: noop}, keep_completed=False) as worker,
    ):
        worker.send_many(payloads(1), task=TASK)
        wait_until_done(worker)  # all connections are there
        began = time.perf_counter()
        worker.send_many(payloads(jobs), task=TASK)
        wait_until_done(worker)
        return jobs / (time.perf_counter() - began)


def from_a_client(server: Server, jobs: int) -> float:
    """Send in one process, work in another; return jobs per second."""
    with postgres_server.fresh(server) as url:
        consumer = children.start("consume", path=url, jobs=jobs)
        children.heard(consumer)
        producer = children.start("produce", path=url, jobs=jobs)
        children.heard(producer)
        children.tell(producer, "go")
        began_at = children.heard(producer)["began_at"]
        ended_at = children.heard(consumer)["ended_at"]
        children.end(producer)
        children.end(consumer)
    return jobs / float(ended_at - began_at)


def drained(server: Server, jobs: int) -> float:
    """Let a fresh worker take what is there; return jobs per second, its start included."""
    with postgres_server.fresh(server) as url:
        children.run("send", path=url, jobs=jobs)
        return jobs / float(children.run("drain", path=url)["took_s"])


def window_rate(url: str, window: Window, *, until: int) -> float:
    calls = (window.before + 1, window.before + window.jobs)
    return window.rate(children.run("drain", path=url, window=calls, until=until))


def alone(server: Server, window: Window) -> float:
    with postgres_server.fresh(server) as url:
        return beside(url, window)


def beside(url: str, window: Window) -> float:
    """Put few jobs where others may be, measure, and drain these."""
    children.run("send", path=url, jobs=window.few)
    return window_rate(url, window, until=window.few)


def of_many(url: str, window: Window) -> float:
    """Measure where many wait, and send as many as were taken."""
    until = window.before + window.jobs
    rate = window_rate(url, window, until=until)
    children.run("send", path=url, jobs=until)
    return rate


def _rates(server: Server, jobs: int, rounds: int) -> list[Figure]:
    limit = partial(raw, server, jobs)
    kinds: list[tuple[str, Callable[[Server, int], float], float | None]] = [
        ("end to end, with hand-off", handed_off, 0.6),
        ("end to end, sent by another process", from_a_client, 0.4),
        ("drain, from start() on", drained, None),
    ]
    return [
        share_figure(name, alternate(limit, partial(kind, server, jobs), rounds), at_least, "raw")
        for name, kind, at_least in kinds
    ]


def _backlogs(server: Server, many: int, stuck: int, window: Window, rounds: int) -> list[Figure]:
    few = f"{window.few:,} alone"

    def against(measure: Callable[[], float], what: str) -> Figure:
        pairs = alternate(partial(alone, server, window), measure, rounds)
        return share_figure(f"drain, {window.name}, with {what}", pairs, 0.85, few)

    with postgres_server.fresh(server) as url:
        children.run("send", path=url, jobs=many)
        waiting = against(partial(of_many, url, window), f"{many:,} waiting")
    with postgres_server.fresh(server) as url:
        children.run("send", path=url, jobs=stuck, delay=86_400.0)
        scheduled = against(partial(beside, url, window), f"{stuck:,} scheduled")
    with postgres_server.fresh(server) as url:
        children.run("send", path=url, jobs=stuck, task="of_nobody")
        unknown = against(partial(beside, url, window), f"{stuck:,} of an unknown task")
    return [waiting, scheduled, unknown]


def _idle(server: Server, count: int, idle_s: float) -> list[Figure]:
    with postgres_server.fresh(server) as url:
        child = children.start("listen", path=url)
        children.heard(child)
        client = Worker(url)
        client.handlers[TASK] = print  # known here, run there
        for _ in range(count):
            client.send(time.monotonic(), task=TASK)
            time.sleep(PAUSE_S)
        client.stop()
        time.sleep(1.0)  # to come to rest

        def worker_cpu_s() -> float:
            children.tell(child, "cpu")
            return float(children.heard(child)["cpu_s"])

        before = (worker_cpu_s(), postgres_server.cpu_s(server))
        time.sleep(idle_s)
        shares = [
            (after - was) / idle_s
            for was, after in zip(before, (worker_cpu_s(), postgres_server.cpu_s(server)), strict=True)
        ]
        queries = _queries_per_s(server, idle_s)
        assert child.stdin is not None
        child.stdin.close()
        late_s = children.heard(child)["late_s"]
        child.wait()
    middle, high = median(late_s), percentile(late_s, 0.99)
    parts = f"{100 * sum(shares):.2f} % (worker {100 * shares[0]:.2f} %, server {100 * shares[1]:.2f} %)"
    return [
        below("latency across processes, median", f"{1000 * middle:.2f} ms", middle, 0.003, "< 3 ms"),
        below("latency across processes, p99", f"{1000 * high:.2f} ms", high, 0.008, "< 8 ms"),
        below("CPU of an idle worker and its server", parts, sum(shares), 0.01, "< 1 %"),
        below("queries of an idle worker", f"{queries:.2f} a second", queries, 2.0, IDLE_QUERIES),
    ]


def _queries_per_s(server: Server, for_s: float) -> float:
    """Have the server log each statement, BEGIN and COMMIT too, for some time."""
    server.configure(log_statement="all")
    server.reload()
    time.sleep(1.0)  # until all its processes have read it
    size = server.log.stat().st_size
    time.sleep(for_s)
    with server.log.open("rb") as log:
        log.seek(size)
        text = log.read().decode(errors="replace")
    server.configure(log_statement="none")
    server.reload()
    return len(_STATEMENT.findall(text)) / for_s


def run(_folder: Path, *, quick: bool) -> list[Figure]:
    jobs, many, stuck, rounds = (20_000, 100_000, 20_000, 3) if quick else (100_000, 1_000_000, 100_000, 7)
    window = Window(LATER, 10_000 if quick else 50_000)
    count, idle_s = (100, 5.0) if quick else (1_000, 30.0)
    with postgres_server.running() as server:
        return [
            postgres_server.described(server),
            *_idle(server, count, idle_s),
            *_rates(server, jobs, rounds),
            *_backlogs(server, many, stuck, window, rounds),
        ]
