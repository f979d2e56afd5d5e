"""All entrants in turn, round after round; an entrant whose process fails is out, and the table says why."""

from collections.abc import Callable
from pathlib import Path

from bench.peers import environment, measure
from bench.peers.figures import latencies, rates
from bench.peers.measure import Entrant, PeerFailed
from bench.table import Figure

BULK_JOBS_MAX = 100_000  # dutiful's; a second or two
SINGLE_JOBS_MAX = 30_000


class Contest:
    def __init__(self, folder: Path, *, quick: bool) -> None:
        why = environment.make()
        self.folder = folder
        self.ours = Entrant("dutiful")
        self.our_normal = Entrant("dutiful", "normal")
        self.peers = [Entrant(package, failed=why.get(package, "")) for package in environment.PACKAGES]
        self.normal = [
            Entrant(package, "normal", why.get(package, "")) for package in ("litequeue", "potatoq")
        ]
        # No peer takes more than 20 s a figure: its warm-up, and each round about `for_s`.
        self.rounds, self.for_s, self.pings, self.idle_s = (2, 0.7, 20, 1.0) if quick else (5, 2.5, 100, 2.0)

    def run(self) -> list[Figure]:
        self.send("bulk", BULK_JOBS_MAX)
        self.send("single", SINGLE_JOBS_MAX)
        for _ in range(self.rounds):
            self.each(lambda entrant: measure.latency(entrant, self.folder, self.pings, self.idle_s))
        groups = ((self.ours, self.peers), (self.our_normal, self.normal))
        return [*rates("bulk", 10.0, groups), *rates("single", 2.0, groups), *latencies(groups)]

    def send(self, how: str, jobs_max: int) -> None:
        def fit(entrant: Entrant) -> None:
            entrant.jobs[how] = measure.fitting(entrant, self.folder, how, self.for_s, jobs_max)

        def once(entrant: Entrant) -> None:
            entrant.rates[how].append(measure.end_to_end(entrant, self.folder, how, entrant.jobs[how]))

        self.each(fit)
        for _ in range(self.rounds):
            self.each(once)

    def each(self, do: Callable[[Entrant], None]) -> None:
        for entrant in (self.ours, *self.peers, self.our_normal, *self.normal):
            if entrant.failed:
                continue
            try:
                do(entrant)
            except PeerFailed as failure:
                if entrant is self.ours:
                    raise
                entrant.failed = str(failure)
