"""The lines of the tables: each entrant's, then dutiful's against the best of the peers."""

from collections.abc import Iterable, Sequence
from statistics import median

from bench.peers.measure import Entrant
from bench.table import Figure, percentile, share_figure, spread

Group = tuple[Entrant, Sequence[Entrant]]  # ours, and the peers at the same durability


def rates(how: str, at_least: float, groups: Iterable[Group]) -> list[Figure]:
    found: list[Figure] = []
    for ours, peers in groups:
        found += [_rate(how, ours, ours), *(_rate(how, ours, peer) for peer in peers)]
        if ours.durability == "full":
            found.append(_against_best(how, at_least, ours, peers))
    return found


def _name(what: str, entrant: Entrant) -> str:
    level = " if NORMAL" if entrant.durability == "normal" else ""
    return f"{what}, {entrant.name}{level}"


def _rate(how: str, ours: Entrant, entrant: Entrant) -> Figure:
    name = _name(f"{how} sends", entrant)
    if not entrant.rates[how]:
        return Figure(name, f"does not run: {entrant.failed}")
    said = f"{median(entrant.rates[how]):,.0f}/s of {entrant.jobs[how]:,} jobs; {entrant.says}"
    if entrant.failed:
        said += f"; then failed: {entrant.failed}"
    if entrant is ours or ours.failed:
        return Figure(name, said)
    pairs = zip(entrant.rates[how], ours.rates[how], strict=False)  # a peer may have failed on the way
    return Figure(name, said, f"dutiful: {spread([mine / theirs for theirs, mine in pairs])}")


def _against_best(how: str, at_least: float, ours: Entrant, peers: Sequence[Entrant]) -> Figure:
    name = f"{how} sends, dutiful to the best peer"
    ran = [peer for peer in peers if peer.rates[how]]
    if not ran:
        return Figure(name, "no peer ran", met=False)
    best = max(ran, key=lambda peer: median(peer.rates[how]))
    pairs = list(zip(best.rates[how], ours.rates[how], strict=False))
    return share_figure(name, pairs, at_least, best.package)


def latencies(groups: Iterable[Group]) -> list[Figure]:
    found: list[Figure] = []
    for ours, peers in groups:
        found += [_latency(entrant) for entrant in (ours, *peers)]
        if ours.durability == "full":
            for what, share in (("median", 0.5), ("p99", 0.99)):
                found.append(_no_worse(what, share, ours, [peer for peer in peers if peer.late_s]))
    return found


def _latency(entrant: Entrant) -> Figure:
    name = _name("latency across processes", entrant)
    if not entrant.late_s:
        return Figure(name, f"does not run: {entrant.failed}")
    middle, high = (1000 * percentile(entrant.late_s, share) for share in (0.5, 0.99))
    idle = f"idle CPU {100 * median(entrant.idle):.1f} %"
    return Figure(name, f"median {middle:.2f} ms, p99 {high:.2f} ms; {idle}; {entrant.says}")


def _no_worse(what: str, share: float, ours: Entrant, peers: Sequence[Entrant]) -> Figure:
    name = f"latency across processes, {what}, dutiful to the best peer"
    if not peers:
        return Figure(name, "no peer ran", met=False)
    best = min(peers, key=lambda peer: percentile(peer.late_s, share))
    mine, theirs = percentile(ours.late_s, share), percentile(best.late_s, share)
    said = f"{1000 * mine:.2f} ms; {best.package} {1000 * theirs:.2f} ms"
    return Figure(name, said, f"{mine / theirs:.2f}", f"no worse than {best.package}", mine <= theirs)
