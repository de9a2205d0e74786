"""A task in which length matters and nothing else: which of two words comes first, in 16 to 512 tokens of filler.

Made by a seed from syllables: no real text. Both words are in every text, so that a bag of words can only guess;
their places are drawn, so that how far apart they are grows with the text, and a convolution sees both only where
they are near. Training has as many tokens of each length, thus 32 times as many of the shortest texts as of the
longest: what fails at a length fails there though it was trained on.
"""

from __future__ import annotations

import hashlib
import random
from itertools import product

from model.scores import SINGLE
from training.data import Dataset, Example

TOKENS = (16, 64, 128, 256, 512)  # of a text, special tokens included
SPECIAL = 2  # [CLS] and [SEP]
SYLLABLES = [f"{a}{b}" for a, b in product("bdfgklmnprst", "aeiou")]
FILLER = [first + second for first, second in list(product(SYLLABLES, SYLLABLES))[::9]]  # 400 words
PAIR = ("zuza", "zuzo")
LABELS = ("za first", "zo first")


def text(rng: random.Random, tokens: int) -> Example:
    """A text of so many tokens where each word is one, and which word of the pair it has first."""
    words = rng.choices(FILLER, k=tokens - SPECIAL)
    first, second = sorted(rng.sample(range(len(words)), 2))
    label = rng.randrange(2)
    words[first], words[second] = PAIR[label], PAIR[1 - label]
    return Example(" ".join(words), (LABELS[label],))


def texts(name: str, rows: int, tokens: tuple[int, ...] = TOKENS) -> Dataset:
    """So many rows of these lengths, as many tokens of each; another name is another seed."""
    rng = random.Random(name)
    lengths = rng.choices(tokens, [1 / n for n in tokens], k=rows)
    examples = [text(rng, n) for n in lengths]
    content = "\n".join(f"{example.text}\t{example.labels[0]}" for example in examples)
    return Dataset(name, examples, SINGLE, [], hashlib.sha256(content.encode()).hexdigest())
