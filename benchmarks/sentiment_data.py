"""The rows that the model which comes with Heed learns from: films, and what people say about anything else.

    python benchmarks/sentiment_data.py DATA TEACHER OUT

DATA holds sst2_glue, goemotions and imdb, as benchmarks/accuracy.py reads them. Written to OUT: train, dev and test
.jsonl.gz with text, label and domain. SST-2's phrases have their own labels; comments from Reddit (GoEmotions) that
of their emotions, where those are all of one kind; sentences from reviews of IMDB that of TEACHER, a bundle trained
on SST-2. Of dev and test, GoEmotions gives one half each of what it has beside its training rows.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING

from model.bundle import load_bundle
from training.data import read_dataset
from training.evaluate import read

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Row = dict[str, str]

# Demszky et al. 2020, https://aclanthology.org/2020.acl-main.372, figure 2; surprise, curiosity and such are of neither
POSITIVE = {"admiration", "amusement", "approval", "caring", "desire", "excitement", "gratitude", "joy", "love"}
POSITIVE |= {"optimism", "pride", "relief"}
NEGATIVE = {"anger", "annoyance", "disappointment", "disapproval", "disgust", "embarrassment", "fear", "grief"}
NEGATIVE |= {"nervousness", "remorse", "sadness"}
SENTENCE_WORDS = range(4, 31)
SENTENCES = 60_000  # of IMDB, about as many as SST-2 has phrases
END_OF_SENTENCE = re.compile(r"(?<=[.!?])\s+")
MARKUP = re.compile(r"<[^>]*>")


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


def sentences(data: Path) -> list[str]:
    """Some of IMDB's training reviews, the same ones each time."""
    found = {
        sentence.strip()
        for review in read_dataset(data / "imdb" / "train.jsonl.gz").texts
        for sentence in END_OF_SENTENCE.split(MARKUP.sub(" ", str(review)))
        if len(sentence.split()) in SENTENCE_WORDS
    }
    return random.Random(0).sample(sorted(found), min(SENTENCES, len(found)))


def labelled(teacher: Path, texts: list[str]) -> Iterator[Row]:
    """Texts with what the teacher says of them."""
    bundle = load_bundle(teacher)
    logits, _ = read(bundle, texts, lambda _: None)
    for text, best in zip(texts, logits.argmax(axis=1), strict=True):
        yield {"text": text, "label": bundle.labels[best], "domain": "reviews"}


def write(path: Path, rows: Iterable[Row]) -> None:
    """As JSONL, packed."""
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main() -> None:
    """Write the three parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    held_out = list(comments(args.data, "dev"))
    half = len(held_out) // 2
    write(args.out / "dev.jsonl.gz", [*films(args.data, "dev"), *held_out[:half]])
    write(args.out / "test.jsonl.gz", [*films(args.data, "test"), *held_out[half:]])
    rows = [*films(args.data, "train"), *comments(args.data, "train")]
    write(args.out / "train.jsonl.gz", [*rows, *labelled(args.teacher, sentences(args.data))])


if __name__ == "__main__":
    main()
