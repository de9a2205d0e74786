"""A million inputs at the edges, each made from one before it that reached new code: none may crash, hang or swell.

    pip install atheris==3.0.0 && python benchmarks/fuzz.py [--inputs 1000000] [--only EDGE]...

Each edge of benchmarks/edges.py is a process of its own. Prints what each took; exit 1 where an input was a defect,
which is kept in the current folder as crash-..., timeout-... or oom-... .
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from timing import markdown

if TYPE_CHECKING:
    from collections.abc import Sequence

SHARES = {"http": 0.6, "rpc": 0.2, "rows": 0.15, "bundle": 0.03, "parquet": 0.02}  # of the inputs: some are slow
LONGEST_S = 5  # of one input
MOST_MB = 3000  # of the process, torch and a model included
MAX_BYTES = {"bundle": 60_000}  # of an input, else 4,096


def fuzz(edge: str, inputs: int) -> dict[str, object]:
    """One edge, in a process of its own."""
    started = time.perf_counter()
    command = [sys.executable, __file__, "--edge", edge, "--inputs", str(inputs)]
    ran = subprocess.run(command, capture_output=True, text=True)
    said = dict(re.findall(r"stat::(\w+):\s+(\d+)", ran.stderr))
    if ran.returncode:
        print(ran.stderr[-3000:], file=sys.stderr)
    return {
        "edge": edge,
        "inputs": f"{int(said.get('number_of_executed_units', 0)):,}",
        "seconds": f"{time.perf_counter() - started:.0f}",
        "slowest, s": f"under {int(said.get('slowest_unit_time_sec', 0)) + 1}",
        "peak MB": said.get("peak_rss_mb", "-"),
        "defects": "none" if ran.returncode == 0 else "1",
    }


def run_edge(edge: str, inputs: int) -> None:
    """Does not return: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["service", "model", "training"]):
        from edges import EDGES
    with EDGES[edge]() as one, tempfile.TemporaryDirectory() as corpus:
        for i, seed in enumerate(one.seeds):
            (Path(corpus) / str(i)).write_bytes(seed)
        limits = [f"-runs={inputs}", f"-timeout={LONGEST_S}", f"-rss_limit_mb={MOST_MB}", "-print_final_stats=1"]
        longest = [f"-max_len={MAX_BYTES.get(edge, 4096)}", "-len_control=0", "-seed=1"]
        atheris.Setup([sys.argv[0], *limits, *longest, corpus], one)
        atheris.Fuzz()


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="A million inputs at the edges.")
    parser.add_argument("--inputs", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--only", action="append", choices=[*SHARES], metavar="EDGE")
    parser.add_argument("--edge", choices=[*SHARES], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.edge:
        run_edge(args.edge, args.inputs)
    chosen = args.only or list(SHARES)
    whole = sum(SHARES[edge] for edge in chosen)
    table = [fuzz(edge, round(args.inputs * SHARES[edge] / whole)) for edge in chosen]
    print(markdown(table))
    return 0 if all(row["defects"] == "none" for row in table) else 1


if __name__ == "__main__":
    sys.exit(main())
