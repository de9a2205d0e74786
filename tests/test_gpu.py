"""What only a GPU can show. The padded layout that it takes is held against transformers on every CPU too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from samples import rows

from model.bundle import load_bundle
from model.forward import forward_rows
from service.predictor import Predictor, Scored

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
