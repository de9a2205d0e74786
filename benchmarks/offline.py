"""What the encoder does without a server: the ceilings beside benchmarks/serving.py.

    python benchmarks/offline.py BUNDLE TEXTS --precision bf16 --threads 1 --seconds 5

One worker: says "ready" when it is warm, waits for a line on stdin, and answers with JSON: texts/s as `heed predict`
answers them, tokenization included, or with --alone the seconds of a bare forward pass of one text. offline_rate runs
one worker on all cores, and one on each core: whichever is faster is what a server is measured against.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

CHUNK = 256  # texts between two looks at the clock; sorted by length among themselves


def offline_rate(bundle: Path, texts: Path, precision: str, cores: int, seconds: float) -> dict[str, float]:
    """Texts/s of the arrangements that use all cores."""
    arrangements = {f"1 worker, {cores} threads": (1, cores), f"{cores} workers, 1 thread each": (cores, 1)}
    return {
        name: sum(workers(bundle, texts, precision, count, threads, seconds))
        for name, (count, threads) in arrangements.items()
    }


def alone_ms(bundle: Path, texts: Path, precision: str, cores: int, seconds: float) -> float:
    """A bare forward pass of one text, median over the texts, in ms."""
    [median] = workers(bundle, texts, precision, 1, cores, seconds, "--alone")
    return median * 1000


def workers(
    bundle: Path, texts: Path, precision: str, count: int, threads: int, seconds: float, *more: str
) -> list[float]:
    """What so many workers, started together, found."""
    options = ["--precision", precision, "--threads", str(threads), "--seconds", str(seconds), *more]
    command = [sys.executable, __file__, str(bundle), str(texts), *options]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    for worker in running:
        assert worker.stdout is not None
        worker.stdout.readline()
    for worker in running:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    return [float(json.loads(worker.communicate()[0])) for worker in running]


def main() -> None:
    """One worker."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("texts")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--alone", action="store_true")
    args = parser.parse_args()

    import torch

    from model.bundle import load_bundle
    from model.device import choose_device
    from model.records import read_texts
    from service.predict import predict_texts
    from service.predictor import Predictor

    torch.set_num_threads(args.threads)
    predictor = Predictor(load_bundle(args.bundle), choose_device("auto"), args.precision)
    predictor.warm_up()
    texts = list(read_texts(args.texts, "text"))
    rows = predictor.bundle.tokenizer.encode(texts[:CHUNK], predictor.bundle.max_tokens)

    def some() -> int:
        return len(list(predict_texts(predictor, itertools.islice(endless, CHUNK), None)))

    endless = itertools.cycle(texts)
    some()
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    done, times = 0, []
    for row in itertools.cycle(rows):
        if (now := time.perf_counter()) - start > args.seconds:
            break
        if args.alone:
            predictor([row])
            times.append(time.perf_counter() - now)
        else:
            done += some()
    print(json.dumps(statistics.median(times) if args.alone else done / (time.perf_counter() - start)))


if __name__ == "__main__":
    main()
