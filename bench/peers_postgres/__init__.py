"""
The five peers on PostgreSQL, on the same work in the same run, in turn with dutiful.

Jobs of 100 bytes whose handler does nothing; the server, the sender and the workers are processes of their
own and share this machine's CPUs; each measurement has a fresh database, with fsync on.

- One by one: a producer sends for some seconds, each send waiting for the one before; from the first send
  until the last handler has run (dutiful: until all is committed).
- Draining: a backlog is there before the workers start; from the tenth part of the handler calls to the last.
- Latency: from before a send until its handler begins, with nothing else to do.

Each peer has the settings that serve it best; its adapter says which.
"""

from pathlib import Path

from bench.table import Figure


def run(_folder: Path, *, quick: bool) -> list[Figure]:
    # Here: the peers' processes import this package, where dutiful is not installed.
    from bench.peers_postgres.contest import Contest

    return Contest(quick=quick).run()
