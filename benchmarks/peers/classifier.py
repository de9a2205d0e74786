"""The model as a user of a framework would write it, and as fast as the framework's batches let it be.

transformers in bf16, or ONNX Runtime in int8; tokenized together, sorted by length, run in parts of PART rows,
so that a batch of mixed lengths is not padded to its longest. Runs in the environments of the peers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

PART = 16


class Classifier:
    """Texts in, label names out. `onnx` is a file of the int8 model; without it, bf16."""

    def __init__(self, bundle: str, onnx: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._tokenizer = AutoTokenizer.from_pretrained(bundle)
        self._model: Any = AutoModelForSequenceClassification.from_pretrained(bundle, dtype=torch.bfloat16).eval()
        self._labels = self._model.config.id2label
        self._limit = min(self._tokenizer.model_max_length, self._model.config.max_position_embeddings)
        self._session: Any = None
        if onnx:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            self._session = onnxruntime.InferenceSession(Path(onnx), options, providers=["CPUExecutionProvider"])
            self._model = None

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """The best label of each text, in order."""
        rows = self._tokenizer(list(texts), truncation=True, max_length=self._limit, return_attention_mask=False)
        order = sorted(range(len(texts)), key=lambda i: len(rows["input_ids"][i]))
        found: dict[int, str] = {}
        for start in range(0, len(order), PART):
            part = order[start : start + PART]
            padded = self._tokenizer.pad({"input_ids": [rows["input_ids"][i] for i in part]}, return_tensors="np")
            logits = self._logits(padded["input_ids"].astype(np.int64), padded["attention_mask"].astype(np.int64))
            found |= {i: self._labels[int(best)] for i, best in zip(part, logits.argmax(-1), strict=True)}
        return [found[i] for i in range(len(texts))]

    @torch.inference_mode()
    def _logits(self, ids: Any, mask: Any) -> Any:
        if self._session:
            [logits] = self._session.run(None, {"input_ids": ids, "attention_mask": mask})
            return logits
        model_inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        return self._model(**model_inputs).logits.float().numpy()

    def batch(self, requests: Sequence[Sequence[str]]) -> list[list[str]]:
        """The same for requests of several texts each, all in one."""
        labels = iter(self([text for texts in requests for text in texts]))
        return [[next(labels) for _ in texts] for texts in requests]
