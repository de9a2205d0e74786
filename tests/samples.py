"""Small labelled texts that tests share: words with a known label among filler."""

from __future__ import annotations

import random
from pathlib import Path

from training.build import TrainConfig

GOOD = ["good", "fine", "lovely", "great", "warm"]
BAD = ["bad", "dull", "awful", "cold", "poor"]
FILLER = ["the", "film", "was", "a", "story", "of", "two", "people", "in", "town", "and", "their", "dog"]
TINY = TrainConfig(
    family="bert",
    layers=2,
    width=32,
    heads=2,
    feed_forward=64,
    vocab_size=400,
    max_tokens=64,
    batch_tokens=512,
    epochs=5,
    lr=3e-3,
    batch_rows=32,
    dropout=0.1,
    token_dropout=0.0,
    made_texts=0,
    word_vectors=False,  # words of both labels keep the same company here
)

ROOT = Path(__file__).parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"


def sentence(rng: random.Random, words: list[str], length: int) -> str:
    """Filler around one word that decides the label."""
    picked = rng.choices(FILLER, k=length)
    picked.insert(rng.randrange(length + 1), rng.choice(words))
    return " ".join(picked)


def rows(n: int, seed: int = 0) -> list[dict[str, object]]:
    """n labelled sentences of 1 to 12 words."""
    rng = random.Random(seed)
    return [
        {"text": sentence(rng, GOOD if i % 2 else BAD, rng.randrange(12)), "label": "positive" if i % 2 else "negative"}
        for i in range(n)
    ]
