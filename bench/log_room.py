"""
Room at the end of the log: what a commit costs that need not make the file longer.

A fresh store, one thread, as a client; the first sends of a store's life, when its log still grows.
The same with room made (as it is) and without.
"""

import time
from functools import partial
from pathlib import Path
from unittest import mock

from bench.ours import TASK, fresh, noop
from bench.peers.peer import PAYLOAD
from bench.table import Figure, alternate, share_figure
from dutiful import Worker
from dutiful.store.log_room import LogRoom

SENDS = 500


def rate(folder: Path, *, with_room: bool) -> float:
    with fresh(folder) as path, mock.patch.object(LogRoom, "make", LogRoom.make if with_room else _nothing):
        worker = Worker(path, handlers={TASK: noop})
        worker.send(PAYLOAD, task=TASK)  # opens the file
        began = time.perf_counter()
        for _ in range(SENDS):
            worker.send(PAYLOAD, task=TASK)
        took_s = time.perf_counter() - began
        worker.stop()
    return SENDS / took_s


def _nothing(room: LogRoom) -> None:
    """Make none."""


def run(folder: Path, *, quick: bool) -> list[Figure]:
    without, made = partial(rate, folder, with_room=False), partial(rate, folder, with_room=True)
    pairs = alternate(without, made, 5 if quick else 21)
    return [share_figure(f"the first {SENDS} sends of a store", pairs, None, "without room in the log")]
