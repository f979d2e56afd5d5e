"""All entrants in turn, round after round; an entrant whose process fails is out, and the table says why."""

from collections.abc import Callable
from statistics import median

from bench import postgres_server
from bench.peers_postgres import environment, measure
from bench.peers_postgres.measure import Entrant, PeerFailed
from bench.table import Figure, percentile, share_figure, spread
from tests.servers.postgres import Server

BACKLOG_MAX = 200_000


class Contest:
    def __init__(self, *, quick: bool) -> None:
        why = environment.make()
        self.ours = Entrant("dutiful")
        self.peers = [Entrant(package, failed=why.get(package, "")) for package in environment.PACKAGES]
        self.rounds, self.for_s, self.pings = (1, 1.5, 40) if quick else (5, 4.0, 200)

    def run(self) -> list[Figure]:
        with postgres_server.running() as server:
            self._measure(server)
            return [
                postgres_server.described(server),
                *self._rates("single", "sent one by one", 2.5),
                *self._rates("drain", "draining a backlog", 1.5),
                *self._latencies(),
            ]

    def _measure(self, server: Server) -> None:
        def fit(entrant: Entrant) -> None:
            entrant.backlog = measure.fitting(entrant, server, self.for_s, BACKLOG_MAX)

        self._each(fit)
        for _ in range(self.rounds):
            self._each(lambda entrant: measure.one_by_one(entrant, server, self.for_s))
        for _ in range(self.rounds):
            self._each(
                lambda entrant: entrant.rates["drain"].append(
                    measure.drained(entrant, server, entrant.backlog)
                )
            )
        for _ in range(self.rounds):
            self._each(lambda entrant: measure.latency(entrant, server, self.pings))

    def _each(self, do: Callable[[Entrant], None]) -> None:
        for entrant in (self.ours, *self.peers):
            if entrant.failed:
                continue
            try:
                do(entrant)
            except PeerFailed as failure:
                if entrant is self.ours:
                    raise
                entrant.failed = str(failure)

    def _rates(self, how: str, what: str, at_least: float) -> list[Figure]:
        found = [self._rate(how, what, entrant) for entrant in (self.ours, *self.peers)]
        ran = [peer for peer in self.peers if peer.rates[how]]
        if not ran:
            return [*found, Figure(f"{what}, dutiful to the best peer", "no peer ran", met=False)]
        best = max(ran, key=lambda peer: median(peer.rates[how]))
        pairs = list(zip(best.rates[how], self.ours.rates[how], strict=False))
        return [*found, share_figure(f"{what}, dutiful to the best peer", pairs, at_least, best.package)]

    def _rate(self, how: str, what: str, entrant: Entrant) -> Figure:
        name = f"{what}, {entrant.name}"
        if not entrant.rates[how]:
            return Figure(name, f"does not run: {entrant.failed}")
        said = f"{median(entrant.rates[how]):,.0f}/s"
        if how == "single":
            said += f" (its producer: {median(entrant.sends):,.0f}/s)"
        else:
            said += f" of {entrant.backlog:,}"
        if entrant.workers > 1:
            said += f"; {entrant.workers} workers"
        if entrant.failed:
            said += f"; then failed: {entrant.failed}"
        if entrant is self.ours:
            return Figure(name, said)
        pairs = zip(entrant.rates[how], self.ours.rates[how], strict=False)
        return Figure(name, said, f"dutiful: {spread([mine / theirs for theirs, mine in pairs])}")

    def _latencies(self) -> list[Figure]:
        found = [_latency(entrant) for entrant in (self.ours, *self.peers)]
        for what, share, limit_s in (("median", 0.5, 0.003), ("p99", 0.99, 0.008)):
            ran = [peer for peer in self.peers if peer.late_s]
            mine = percentile(self.ours.late_s, share)
            said = f"{1000 * mine:.2f} ms"
            if ran:
                theirs, package = min((percentile(peer.late_s, share), peer.package) for peer in ran)
                said += f"; {package} {1000 * theirs:.2f} ms"
            name = f"latency, {what}, dutiful beside the best peer"
            found.append(Figure(name, said, "", f"< {1000 * limit_s:.0f} ms", mine < limit_s))
        return found


def _latency(entrant: Entrant) -> Figure:
    name = f"latency across processes, {entrant.name}"
    if not entrant.late_s:
        return Figure(name, f"does not run: {entrant.failed}")
    middle, high = (1000 * percentile(entrant.late_s, share) for share in (0.5, 0.99))
    return Figure(name, f"median {middle:.2f} ms, p99 {high:.2f} ms, n={len(entrant.late_s)}")
