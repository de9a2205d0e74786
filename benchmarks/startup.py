"""How long `heed serve` takes until it answers, and what all of its processes hold in memory then.

    python benchmarks/startup.py [--runs 5] [--json] [arguments of heed serve]

Seconds are from the command to its line "ready", in which it has answered Ray's own check; one request follows,
and the memory is read a second after it. Resident counts a page once for each process that maps it, proportional
(PSS) shares it out among them: the second is what the machine is short of. A first run warms the file cache up.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from timing import markdown

from service.launch import free_port

Row = dict[str, object]
MIB = 1024  # /proc counts in kB


def run(arguments: list[str]) -> tuple[float, list[Row]]:
    """Seconds until ready, and a row for each process."""
    port = free_port()
    started = time.monotonic()
    command = [sys.executable, "-m", "service", "serve", "--port", str(port), *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            if not any("ready after" in line for line in server.stderr):
                raise SystemExit("heed serve did not start")
            ready_s = time.monotonic() - started
            classify(port)
            time.sleep(1)
            return ready_s, [memory(pid) for pid in family(server.pid)]
        finally:
            server.send_signal(signal.SIGTERM)


NAMED = r"ray::|service\.engine|guard.py|gcs_server|raylet$|haproxy$"


def classify(port: int) -> None:
    """One request, answered."""
    body = json.dumps({"texts": ["a gorgeous, witty, seductive movie"]}).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/classify", body, timeout=30) as answer:
        assert answer.status == 200


def family(pid: int) -> list[int]:
    """The process and all that descend from it."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended meanwhile
            continue
    found = [pid]
    for parent in found:  # grows while it is read
        found += [child for child, its in parents.items() if its == parent]
    return found


def memory(pid: int) -> Row:
    """Name of a process, and MiB that it holds."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().split()
    name = next((word for word in words if re.search(NAMED, word)), words[0])
    figures = dict(re.findall(r"(?m)^(Rss|Pss):\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text()))
    return {
        "process": "heed serve" if "serve" in words else Path(name).name,
        "resident MiB": int(figures["Rss"]) / MIB,
        "proportional MiB": int(figures["Pss"]) / MIB,
    }


def total(rows: list[Row], figure: str) -> float:
    """Sum over the processes."""
    return sum(float(str(row[figure])) for row in rows)


def main() -> None:
    """Start and stop it, again and again."""
    parser = argparse.ArgumentParser(description="Start-up time and memory of heed serve.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args, arguments = parser.parse_known_args()
    results = [run(arguments) for _ in range(args.runs + 1)][1:]
    seconds = [ready_s for ready_s, _ in results]
    rows = sorted(results[-1][1], key=lambda row: -float(str(row["resident MiB"])))
    sums: Row = {"process": "all"}
    for figure in ("resident MiB", "proportional MiB"):
        sums[figure] = statistics.median(total(processes, figure) for _, processes in results)
    if args.json:
        print(json.dumps({"ready_s": seconds, "memory": sums, "processes": rows}))
        return
    print(markdown([*rows, sums]))
    print(
        f"\nready after {statistics.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f}, n={len(seconds)})"
    )


if __name__ == "__main__":
    main()
