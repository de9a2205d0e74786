"""What only a GPU can show. The padded layout that it takes is held against transformers on every CPU too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from samples import rows
from test_families import CASES, reference

from model.bundle import load_bundle
from model.convert import read_config
from model.encoder import Classifier, EncoderConfig
from model.forward import Forward, forward_rows
from model.tokens import Row
from service.predictor import Predictor
from service.scored import Scored

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(("precision", "atol"), [("fp32", 1e-3), ("bf16", 0.05), ("fp16", 0.01)])
def test_a_gpu_gives_the_logits_of_a_cpu(bundle_folder: Path, precision: str, atol: float) -> None:
    bundle = load_bundle(bundle_folder)
    encoded = bundle.tokenizer.encode([str(row["text"]) for row in rows(64)], bundle.max_tokens)
    expected = forward_rows(bundle.classifier, encoded)
    predictor = Predictor(bundle, torch.device("cuda"), precision)
    logits = np.array([scored.logits for scored in predictor(encoded) if isinstance(scored, Scored)])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "deberta-v2"])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_a_pass_on_a_gpu_gives_the_logits_of_a_cpu_with_graphs_and_without(
    family: str, dtype: torch.dtype, atol: float
) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 4, "intermediate_size": 96}
    classifier = Classifier(read_config(reference(family, CASES[family][0] | sizes).config.to_dict()), num_labels=3)
    lengths = [[5], [3, 60, 5, 1], [64] * 40]
    passes = [[Row(torch.randint(4, 101, (n,)).tolist()) for n in part] for part in lengths]
    expected = [forward_rows(classifier, rows) for rows in passes]
    forward = Forward(classifier.eval().to("cuda", dtype))
    for _ in range(2):
        launched = [forward.launch(rows) for rows in passes]  # all before the first is waited for
        for wait, logits in zip(launched, expected, strict=True):
            np.testing.assert_allclose(wait(), logits, rtol=0, atol=atol)
        forward.warm_up(passes[0][0])


def test_a_row_on_a_gpu_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    config = EncoderConfig(vocab_size=101, width=128, heads=4, layers=4, feed_forward=256)
    forward = Forward(Classifier(config, num_labels=3).eval().to("cuda", torch.bfloat16))
    rows = [Row(torch.randint(4, 101, (n,)).tolist()) for n in (5, 300, 24, 24, 1, 512)]
    alone = np.concatenate([forward([row]) for row in rows])
    np.testing.assert_allclose(forward(rows), alone, rtol=0, atol=0.05)
