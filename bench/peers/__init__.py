"""
The six peers of the issue, on the same work in the same run, in turn with dutiful.

Bulk and single sends: jobs of 100 bytes whose handler does nothing, from the first send
until the last handler has run; sender and worker in one process (potatoq's worker forks its
own), a fresh file. Each is given as many jobs as it does in about the same time: few for the
slow ones, which spares those that slow down as their files grow. Latency: from before a send
in one process until the handler begins in another, idle one.

Each peer has the settings and the loop that serve it best; its adapter says which. All are
asked for dutiful's durability, and the tables say what each has. flexiq cannot have it and
is judged as it is; lines with "if NORMAL" compare with dutiful's "normal", and are not judged.
"""

from pathlib import Path

from bench.table import Figure


def run(folder: Path, *, quick: bool) -> list[Figure]:
    # Here: the peers' processes import this package, where dutiful is not installed.
    from bench.peers.contest import Contest

    return Contest(folder, quick=quick).run()
