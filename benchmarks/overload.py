"""Three times what a server can do: who is refused, who is late, what is still answered, and how soon it is over.

    heed serve BUNDLE --port 8000
    python benchmarks/overload.py http://127.0.0.1:8000 --texts FILE [--timeout-ms 1000] [--times 3] [--seconds 8]

Finds the knee as `heed bench` does, then open loops, one after the other: 70% of the knee, `times` the knee, 70% again
from the moment on at which the flood ends. Every request carries its deadline.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from typing import TYPE_CHECKING

import numpy as np
from timing import markdown

from model.records import read_texts
from service.bench import MAX_TEXTS, Plan, bench, with_path
from service.figures import HEADROOM, quantiles
from service.load import open_loop, run, target

if TYPE_CHECKING:
    from service.load import Samples, Target

CONNECTIONS = 128  # of the closed loop from which the search for the knee starts
OK, REFUSED, LATE = 200, 429, 504


def requests(url: str, file: str, timeout_ms: int) -> Target:
    """One text a request."""
    texts = itertools.islice(read_texts(file, "text"), MAX_TEXTS)
    return target(with_path(url), [json.dumps({"texts": [text], "timeout_ms": timeout_ms}).encode() for text in texts])


def row(name: str, samples: Samples, knee: float, timeout_ms: int) -> dict[str, object]:
    """What became of the requests of a phase, by their intended start."""
    since, _, until, status, server_ms = samples.rows.T
    latency_ms = (until - since) * 1000
    accepted = (status == OK) | (status == LATE)
    missed = (status == LATE) | (accepted & (latency_ms > timeout_ms))
    in_window = (status == OK) & (until >= samples.start) & (until < samples.end) & ~missed
    others = ~accepted & (status != REFUSED)
    none = np.zeros(1)
    answered_ms = quantiles(latency_ms[status == OK] if (status == OK).any() else none)
    refused_ms = quantiles(server_ms[status == REFUSED] if (status == REFUSED).any() else none)
    return {
        "load": name,
        "offered/s": f"{len(since) / (since.max() - since.min()):,.0f}",
        "answered in time, share of the knee": f"{in_window.sum() / (samples.end - samples.start) / knee:.2f}",
        "p50, ms": f"{answered_ms['p50']:.0f}",
        "p99, ms": f"{answered_ms['p99']:.0f}",
        "refused": f"{(status == REFUSED).sum():,}",
        "refusal p99, server ms": f"{refused_ms['p99']:.1f}",
        "accepted and late": f"{missed.sum() / max(1, accepted.sum()):.2%}",
        "other": f"{others.sum():,}",
    }


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Flags of a benchmark that sends texts to a running server."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--texts", required=True)
    return parser


def main() -> None:
    """Knee, calm, flood, calm."""
    parser = arguments(__doc__)
    parser.add_argument("--timeout-ms", type=int, default=1000)
    parser.add_argument("--times", type=float, default=3.0)
    parser.add_argument("--seconds", type=float, default=8.0)
    args = parser.parse_args()
    to = requests(args.url, args.texts, args.timeout_ms)
    found = bench(to, Plan([CONNECTIONS], args.seconds / 2, rounds=1), tokens_per_request=1.0).knee
    if found is None:
        sys.exit("the server sustained no rate that was offered")
    knee = found.offered
    calm = HEADROOM * knee
    phases = [
        ("70% of the knee", calm, 1.0),
        (f"{args.times:g} × the knee", args.times * knee, 2.0),
        ("70%, at once", calm, 0.0),
    ]
    rows = [
        row(name, run(open_loop(to, rate, args.seconds, warm_s)), knee, args.timeout_ms)
        for name, rate, warm_s in phases
    ]
    print(f"knee: {knee:,.0f} requests/s\n")
    print(markdown(rows))


if __name__ == "__main__":
    main()
