"""What a table of n-grams costs a pass: the same bundle with and without it, in turns.

    python benchmarks/ngrams.py BUNDLE --texts FILE

BUNDLE was trained with `--set ngrams=true`; FILE is what `heed train` reads.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from functools import partial
from itertools import islice
from pathlib import Path

from timing import markdown, ratio, seconds, take_turns

from model.bundle import load_bundle
from model.cpu import pack
from model.forward import Forward
from model.records import read_texts
from service.settings import available_cores

PASSES = (1, 64)  # texts of a pass
TIMES = 20  # passes of a turn


def main() -> None:
    """Print a line for each size of a pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--texts", type=Path, required=True, metavar="FILE")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    bundle = load_bundle(args.bundle)
    classifier = bundle.classifier.requires_grad_(False)
    if classifier.ngrams is None:
        parser.error(f"the bundle has no n-grams: {args.bundle}")
    alone = copy.deepcopy(classifier)
    alone.ngrams = None
    both, encoder = (Forward(pack(each)) for each in (classifier, alone))
    texts = list(islice(read_texts(str(args.texts), "text"), max(PASSES)))
    rows = bundle.tokenizer.encode(texts, bundle.max_tokens)
    lines = []
    for n in PASSES:
        ways = {"with": partial(both, rows[:n]), "without": partial(encoder, rows[:n])}
        took = take_turns({name: seconds(way, TIMES) for name, way in ways.items()}, args.rounds)
        lines.append(
            {
                "texts": n,
                "tokens": sum(row.tokens for row in rows[:n]),
                "with n-grams ms": 1000 * statistics.median(took["with"]),
                "without ms": 1000 * statistics.median(took["without"]),
                "with over without": ratio(took["with"], took["without"]),
            }
        )
    print(markdown(lines))
    print(f"\n{len(classifier.ngrams.keys):,} n-grams, {len(bundle.labels)} labels, {available_cores()} cores")


if __name__ == "__main__":
    main()
