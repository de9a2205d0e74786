"""The rows that the model which comes with Heed learns from: what people say of films, and of anything else.

    python benchmarks/sentiment_data.py DATA OUT

DATA holds sst2_glue, goemotions and imdb, as benchmarks/accuracy.py reads them. Written to OUT: train, dev and test
.jsonl.gz with text, label and domain, which is films (SST-2's phrases), comments (GoEmotions, from Reddit, where all
emotions of a text are of one kind) or reviews (the end of each of IMDB's). Of the last two, dev and test have every
other row of what DATA has beside its training rows.
"""

from __future__ import annotations

import argparse
import gzip
import json
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from training.data import read_dataset

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Row = dict[str, str]

# Demszky et al. 2020, https://aclanthology.org/2020.acl-main.372, figure 2; surprise, curiosity and such are of neither
POSITIVE = {"admiration", "amusement", "approval", "caring", "desire", "excitement", "gratitude", "joy", "love"}
POSITIVE |= {"optimism", "pride", "relief"}
NEGATIVE = {"anger", "annoyance", "disappointment", "disapproval", "disgust", "embarrassment", "fear", "grief"}
NEGATIVE |= {"nervousness", "remorse", "sadness"}
END_WORDS = 40  # of a review: there it comes to its verdict
MARKUP = "<br />"


def films(data: Path, part: str) -> Iterator[Row]:
    """SST-2's phrases or sentences."""
    for example in read_dataset(data / "sst2_glue" / f"{part}.jsonl.gz").examples:
        yield {"text": str(example.text), "label": example.labels[0], "domain": "films"}


def comments(data: Path, part: str) -> Iterator[Row]:
    """Those of GoEmotions that are of one mind."""
    for example in read_dataset(data / "goemotions" / f"{part}.jsonl.gz").examples:
        if label := polarity(set(example.labels)):
            yield {"text": str(example.text), "label": label, "domain": "comments"}


def polarity(emotions: set[str]) -> str | None:
    """What all of the emotions are: "positive", "negative", or neither."""
    if not emotions:
        return None
    return "positive" if emotions <= POSITIVE else "negative" if emotions <= NEGATIVE else None


def reviews(data: Path, part: str) -> Iterator[Row]:
    """How IMDB's end."""
    for example in read_dataset(data / "imdb" / f"{part}.jsonl.gz").examples:
        words = str(example.text).replace(MARKUP, " ").split()
        yield {"text": " ".join(words[-END_WORDS:]), "label": example.labels[0], "domain": "reviews"}


def write(path: Path, rows: Iterable[Row]) -> None:
    """As JSONL, packed."""
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main() -> None:
    """Write the three parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    first: list[Row] = []
    second: list[Row] = []
    for held_out in (list(comments(args.data, "dev")), list(reviews(args.data, "dev"))):
        first += held_out[::2]
        second += held_out[1::2]
    every = (films(args.data, "train"), comments(args.data, "train"), reviews(args.data, "train"))
    write(args.out / "train.jsonl.gz", chain.from_iterable(every))
    write(args.out / "dev.jsonl.gz", chain(films(args.data, "dev"), first))
    write(args.out / "test.jsonl.gz", chain(films(args.data, "test"), second))


if __name__ == "__main__":
    main()
