"""
Groups: what a member costs must not grow with their number.

The same work in each size: send a group whose members do nothing, work all of it off in a worker of its own,
until its callback has read all results. On a file, and on a PostgreSQL server; in turn, so that all sizes see
the same machine.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from bench import postgres_server
from bench.ours import WAIT_S, fresh
from bench.table import Figure, spread
from dutiful import Context, Group, Keep, Link, Worker
from tests.servers.postgres import Server

TARGET = 1.5


def member(n: int) -> int:
    return n


def then(count: int, ctx: Context) -> int:
    total = int(sum(ctx.after))
    assert total == count * (count - 1) // 2, total
    return total


def costs(store: str, members: int) -> tuple[float, float]:
    """Return the seconds a member takes to be sent, and to be worked off with its share of the callback."""
    client = Worker(store)
    began = time.perf_counter()
    group = Group(range(members), task="member", then=Link(members, task="then")).send(client)
    sent_s = time.perf_counter() - began
    handlers = {"member": member, "then": then}
    with Worker(store, handlers=handlers, keep_completed=Keep(count=10)) as worker:
        began = time.perf_counter()
        worker.job(group.id).result(timeout=WAIT_S)
        done_s = time.perf_counter() - began
    client.stop()
    return sent_s / members, done_s / members


def on_a_file(folder: Path, members: int) -> tuple[float, float]:
    with fresh(folder) as path:
        return costs(str(path), members)


def on_a_server(server: Server, members: int) -> tuple[float, float]:
    with postgres_server.fresh(server) as url:
        return costs(url, members)


def _figures(
    where: str, measure: Callable[[int], tuple[float, float]], sizes: tuple[int, ...], rounds: int
) -> list[Figure]:
    measure(sizes[0])  # a warm-up
    found = [[measure(size) for size in sizes] for _ in range(rounds)]
    figures: list[Figure] = []
    for what, at in (("to send", 0), ("to work off", 1)):
        for column, size in enumerate(sizes):
            us = median(each[column][at] * 1e6 for each in found)
            ratios = [each[column][at] / each[0][at] for each in found]
            is_last = column > 0
            figures.append(
                Figure(
                    f"{where}: a member {what}, of {size:,}",
                    f"{us:,.0f} µs",
                    spread(ratios) if is_last else "",
                    f"≤ {TARGET:g} of {sizes[0]:,}" if is_last else "",
                    median(ratios) <= TARGET if is_last else None,
                )
            )
    return figures


def run(folder: Path, *, quick: bool) -> list[Figure]:
    sizes, rounds = ((500, 5_000), 2) if quick else ((1_000, 10_000, 100_000), 3)
    figures = _figures("file", partial(on_a_file, folder), sizes, rounds)
    with postgres_server.running() as server:
        return figures + _figures("PostgreSQL", partial(on_a_server, server), sizes, rounds)
