"""The same weights behind Heed and its peers, in one run: texts/s, latency, share of the ceiling; table and plot.

    python benchmarks/serving.py BUNDLE --texts FILE [--servers heed,litserve,...] [--connections 1,32,128]
        [--texts-per-request 1,16] [--rounds 3] [--seconds 5] [--json FILE] [--plot FILE.png] [--environments DIR]

A round starts each server in turn (peers/), waits until it answers rightly, measures it in a closed loop with the load
generator of `heed bench` on the same cores, and stops it; and measures the encoder without a server (offline.py).
The order goes round. A gap is resolved where the slowest round of the faster is ahead of the fastest of the slower.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from engines import Missing
from environments import default_folder
from offline import alone_ms, offline_rate
from running import Texts, running
from timing import markdown, ratio

from model.bundle import load_bundle
from model.device import choose_device
from model.records import read_texts
from service.bench import numbers, positive, positive_float
from service.figures import figures, together
from service.launch import leave_on_signal
from service.load import closed_loop, run
from service.predictor import Predictor
from service.scored import Scored
from service.settings import available_cores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peers import Peer

    from service.figures import Figures

FILES = ("heed", "litserve", "infinity", "bentoml", "mlserver", "fastapi", "ray")
WARM_S = 2.0  # of each level: BentoML's batches adapt, caches of memory fill
MAX_TEXTS, CHECKED = 20_000, 64
Level = tuple[int, int]  # connections, texts a request


def all_peers() -> dict[str, Peer]:
    """Every configuration by name."""
    return {peer.name: peer for file in FILES for peer in importlib.import_module(f"peers.{file}").PEERS}


def read(file: Path, bundle: Path) -> Texts:
    """The texts of a file, and the labels that fp32 gives the first."""
    texts = [text for text in itertools.islice(read_texts(str(file), "text"), MAX_TEXTS) if isinstance(text, str)]
    predictor = Predictor(load_bundle(bundle), choose_device("cpu"), "fp32")
    rows = predictor.bundle.tokenizer.encode(texts[:CHECKED], predictor.bundle.max_tokens)
    best = [int(np.argmax(scored.logits)) for scored in predictor(rows) if isinstance(scored, Scored)]
    return Texts(file, texts, [predictor.bundle.labels[i] for i in best])


@dataclass
class Results:
    """Rounds of everything, by name of the server and level of load."""

    rounds: dict[str, dict[Level, list[Figures]]] = field(default_factory=dict)
    ready_s: dict[str, list[float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    ceilings: dict[str, list[float]] = field(default_factory=dict)  # texts/s by precision, the best arrangement
    alone_ms: dict[str, list[float]] = field(default_factory=dict)  # by precision


@dataclass(frozen=True)
class Contender:
    """A server, and the bundle that it serves."""

    peer: Peer
    bundle: Path


def one_round(
    results: Results, order: Sequence[Contender], levels: Sequence[Level], texts: Texts, seconds: float, cache: Path
) -> None:
    """Each server once; one that is Missing is left out from then on."""
    for contender in order:
        name = contender.peer.name
        if name in results.left_out:
            continue
        try:
            with running(contender.peer, contender.bundle, texts, cache) as server:
                results.ready_s.setdefault(name, []).append(server.ready_s)
                for connections, per_request in levels:
                    to = server.target(texts.texts, per_request)
                    found = figures(run(closed_loop(to, connections, seconds, WARM_S)))
                    by_level = results.rounds.setdefault(name, {})
                    by_level.setdefault((connections, per_request), []).append(found)
                    say(f"{name}, {connections} connections: {found.rate * per_request:,.0f} texts/s")
        except Missing as reason:
            results.left_out[name] = str(reason)
            say(f"left out: {name}: {reason}")


def measure_ceilings(results: Results, bundle: Path, texts: Texts, precision: str, seconds: float) -> None:
    """The encoder without a server, once."""
    cores = available_cores()
    rates = offline_rate(bundle, texts.file, precision, cores, seconds)
    results.ceilings.setdefault(precision, []).append(max(rates.values()))
    results.alone_ms.setdefault(precision, []).append(alone_ms(bundle, texts.file, precision, cores, seconds / 2))
    say(f"offline, {precision}: " + ", ".join(f"{name}: {rate:,.0f} texts/s" for name, rate in rates.items()))


def say(message: str) -> None:
    """Progress."""
    print(message, file=sys.stderr, flush=True)


def precision_of(name: str) -> str:
    """Which ceiling a server is held against."""
    return "int8" if name.endswith("-int8") else "auto"


def table(results: Results, level: Level) -> list[dict[str, Any]]:
    """A row per server, the fastest first."""
    rows = []
    for name, by_level in results.rounds.items():
        if level not in by_level:
            continue
        rounds = by_level[level]
        all_of_them = together(rounds)
        rates = [one.rate * level[1] for one in rounds]
        ceilings = results.ceilings.get(precision_of(name), [])[: len(rates)]
        rows.append({
            "server": name,
            "texts/s": statistics.median(rates),
            "lowest": min(rates),
            "highest": max(rates),
            "of the ceiling": ratio(rates, ceilings) if len(ceilings) == len(rates) else None,
            "p50, ms": all_of_them.latency_ms["p50"],
            "p99, ms": all_of_them.latency_ms["p99"],
            "not answered": sum(one.count for status, one in all_of_them.outcomes.items() if status != "200"),
        })  # fmt: skip
    return sorted(rows, key=lambda row: -float(row["texts/s"]))


def is_resolved(faster: Sequence[float], slower: Sequence[float]) -> bool:
    """Whether the spread of the rounds is smaller than the gap."""
    return min(faster) > max(slower)


def verdict(results: Results, level: Level, ours: str, peers: Sequence[str]) -> str | None:
    """Ours against the best of the peers."""
    rates = {
        name: [one.rate * level[1] for one in results.rounds[name][level]]
        for name in (ours, *peers)
        if level in results.rounds.get(name, {})
    }
    others = [name for name in peers if name in rates]
    if ours not in rates or not others:
        return None
    best = max(others, key=lambda name: statistics.median(rates[name]))
    times = statistics.median(rates[ours]) / statistics.median(rates[best])
    pair = (rates[ours], rates[best]) if times >= 1 else (rates[best], rates[ours])
    return f"{ours}: {times:.2f} x {best} ({'resolved' if is_resolved(*pair) else 'not resolved'})"


def report(results: Results, levels: Sequence[Level]) -> str:
    """Tables and verdicts in Markdown."""
    parts = []
    for connections, per_request in levels:
        parts.append(f"**{connections} connections, {per_request} texts a request**\n")
        parts.append(markdown(table(results, (connections, per_request))) + "\n")
        ours = [name for name in results.rounds if name.startswith("heed")]
        peers = [name for name in results.rounds if not name.startswith("heed")]
        verdicts = [verdict(results, (connections, per_request), name, peers) for name in ours]
        parts += [f"- {line}" for line in verdicts if line]
    for precision, rates in results.ceilings.items():
        alone = statistics.median(results.alone_ms[precision])
        parts.append(
            f"\nceiling, {precision}: {statistics.median(rates):,.0f} texts/s offline ({min(rates):,.0f} to "
            f"{max(rates):,.0f}), one text alone {alone:.2f} ms in its forward pass"
        )
    ready = ", ".join(f"{name} {statistics.median(times):.1f} s" for name, times in results.ready_s.items())
    parts.append(f"\nfrom the command to the first answer: {ready}")
    parts += [f"left out: {name}: {reason}" for name, reason in results.left_out.items()]
    return "\n".join(parts)


def as_json(results: Results) -> dict[str, Any]:
    """Plain data, rounds and all."""
    return {
        "servers": {
            name: {f"{n} x {k}": [asdict(one) for one in rounds] for (n, k), rounds in by_level.items()}
            for name, by_level in results.rounds.items()
        },
        "ceilings": results.ceilings,
        "alone_ms": results.alone_ms,
        "ready_s": results.ready_s,
        "left_out": results.left_out,
    }


def plot(results: Results, levels: Sequence[Level], file: Path) -> None:
    """Bars of texts/s with their spread, a panel per level, ceilings as lines."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(levels), figsize=(1 + 5 * len(levels), 1 + 0.35 * len(results.rounds)))
    for axis, level in zip(np.atleast_1d(axes), levels, strict=True):
        rows = table(results, level)[::-1]
        rates = np.array([row["texts/s"] for row in rows])
        spread = [rates - [row["lowest"] for row in rows], [row["highest"] for row in rows] - rates]
        names = [row["server"] for row in rows]
        colours = ["tab:orange" if name.startswith("heed") else "tab:gray" for name in names]
        axis.barh(names, rates, xerr=spread, color=colours)
        for precision, ceiling in results.ceilings.items():
            axis.axvline(statistics.median(ceiling), linestyle=":" if precision == "int8" else "--", color="black")
        axis.set_title(f"{level[0]} connections, {level[1]} texts a request")
        axis.set_xlabel("texts/s (lines: the encoder offline, dashed auto, dotted int8)")
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    """Measure, print, write."""
    args = parse_args()
    leave_on_signal()  # with what it has started
    peers, chosen = all_peers(), args.servers.split(",")
    if unknown := set(chosen) - set(peers):
        sys.exit(f"no such server: {', '.join(sorted(unknown))}; there are: {', '.join(peers)}")
    texts, results = read(args.texts, args.bundle), Results()
    levels = list(itertools.product(args.connections, args.texts_per_request))
    order = [Contender(peers[name], args.bundle) for name in chosen]
    for _ in range(args.rounds):
        for precision in sorted({precision_of(name) for name in chosen}):
            measure_ceilings(results, args.bundle, texts, precision, args.seconds)
        one_round(results, order, levels, texts, args.seconds, args.environments)
        order = order[1:] + order[:1]
    print(report(results, levels))
    if args.json:
        args.json.write_text(json.dumps(as_json(results), indent=1) + "\n", encoding="utf-8")
    if args.plot:
        plot(results, levels, args.plot)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--texts", type=Path, required=True, metavar="FILE", help="a data file with text")
    parser.add_argument("--servers", default=",".join(all_peers()), metavar="NAME,...", help="default: %(default)s")
    parser.add_argument("--connections", type=numbers, default=[1, 32, 128], metavar="N,...")
    parser.add_argument("--texts-per-request", type=numbers, default=[1], metavar="N,...")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--seconds", type=positive_float, default=5.0, help="of each level in a round")
    parser.add_argument(
        "--environments", type=Path, default=default_folder(), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
