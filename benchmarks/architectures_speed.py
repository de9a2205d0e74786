"""How fast architectures of equal size answer, by the tokens of a text: ways that take turns (timing.py).

In fp32 on the device, with vocabularies as large as the settings say and random weights, which cost what learned ones
do; all texts of a pass have one length. A recurrent network gains from more rows side by side, so each is given two
passes, what fills the device for the encoder (model/forward.py) and eight times that, and the better one counts.
"""

from __future__ import annotations

import random
import statistics
from typing import TYPE_CHECKING, Any

from baselines import ENCODER, NAMES, network, parameters
from timing import seconds, take_turns
from word_order import TOKENS

from model.forward import Forward
from model.tokens import Row
from training.build import from_scratch, scratch_shape

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from training.build import TrainConfig

PASSES = (1, 8)  # times what fills the device
LABELS = 2


def measure(config: TrainConfig, device: torch.device, rounds: int) -> dict[str, dict[str, Any]]:
    """Of each architecture: parameters, texts_per_s by tokens of a text, one_s, seconds of a short text alone."""
    shape = scratch_shape(config)
    encoder = from_scratch(shape, shape["vocab_size"], max(TOKENS))
    networks = {name: network(name, encoder, LABELS, config.seed).to(device).eval() for name in NAMES}
    passes = {name: Forward(model) for name, model in networks.items()}
    rng, full = random.Random(config.seed), passes[ENCODER].full_pass
    rows = {n: Row(rng.choices(range(shape["vocab_size"]), k=n)) for n in TOKENS}
    shapes = [(n, times * full // n) for n in TOKENS for times in PASSES] + [(TOKENS[0], 1)]
    ways = {(name, n, count): one_way(passes[name], [rows[n]] * count) for name in NAMES for n, count in shapes}
    median_s = {way: statistics.median(times) for way, times in take_turns(ways, rounds).items()}
    return {
        name: {
            "parameters": parameters(networks[name]),
            "texts_per_s": {
                n: max(count / median_s[name, n, count] for count in (times * full // n for times in PASSES))
                for n in TOKENS
            },
            "one_s": median_s[name, TOKENS[0], 1],
        }
        for name in NAMES
    }


def one_way(forward: Forward, rows: list[Row]) -> Callable[[], float]:
    """Seconds of a pass."""
    return seconds(lambda: forward(rows))
