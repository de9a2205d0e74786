"""Whether a replica's memory stays flat: resident bytes while requests go by, as the replica itself reports them.

heed serve BUNDLE --port 8000
python benchmarks/soak.py http://127.0.0.1:8000 --texts FILE [--requests 200000] [--connections 64]
"""

from __future__ import annotations

import re
import time
import urllib.request

from overload import arguments, requests

from service.load import closed_loop, run

ROUND_S, SETTLED = 10.0, 0.1  # of the requests, after which memory should not grow any more
GAUGE_EVERY_S = 1.0  # longer than the replica takes to report


def resident_mb(url: str) -> float:
    """Of all replicas of the node, together."""
    time.sleep(GAUGE_EVERY_S)
    with urllib.request.urlopen(f"{url.rstrip('/')}/metrics") as answer:
        text = answer.read().decode()
    return sum(map(float, re.findall(r"(?m)^heed_replica_resident_bytes\{.*\} (\S+)$", text))) / 2**20


def main() -> None:
    """Closed loops, one after the other, until so many requests are answered."""
    parser = arguments(__doc__)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--connections", type=int, default=64)
    args = parser.parse_args()
    to, done, seen = requests(args.url, args.texts, timeout_ms=30_000), 0, list[tuple[int, float]]()
    while done < args.requests:
        done += len(run(closed_loop(to, args.connections, ROUND_S, warm_s=0.0)).rows)
        seen.append((done, resident_mb(args.url)))
        print(f"{done:>9,} requests  {seen[-1][1]:,.0f} MiB resident", flush=True)
    settled = [resident for answered, resident in seen if answered >= SETTLED * args.requests]
    print(
        f"from {SETTLED:.0%} of the requests on: {settled[-1] / settled[0] - 1:+.1%}, at most {max(settled):,.0f} MiB"
    )


if __name__ == "__main__":
    main()
