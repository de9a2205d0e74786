"""One epoch of the Hugging Face Trainer, for training_rate.py, in an environment that has transformers and not Heed.

    python benchmarks/trainer.py ROWS ENCODER BATCH MAX_TOKENS BY_LENGTH

ROWS is JSONL with text and label; BY_LENGTH is 1 where rows of like lengths are put together. Prints tokens/s.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


class Clock(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """When the loop began and ended."""

    began = ended = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """It begins."""
        self.began = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """It ended."""
        self.ended = time.perf_counter()


def rate(rows: Path, encoder: Path, batch: int, max_tokens: int, *, grouped: bool) -> float:
    """Tokens/s, without padding, of the seconds of the loop."""
    fields = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    labels = sorted({row["label"] for row in fields})
    tokenizer: Any = AutoTokenizer.from_pretrained(encoder)
    encoded = tokenizer([row["text"] for row in fields], truncation=True, max_length=max_tokens)["input_ids"]
    dataset = [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels.index(row["label"])}
        for ids, row in zip(encoded, fields, strict=True)
    ]
    model: Any = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=len(labels))
    arguments = TrainingArguments(
        output_dir=str(rows.parent / "trainer"),
        num_train_epochs=1,
        per_device_train_batch_size=batch,
        learning_rate=1e-4,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        train_sampling_strategy="group_by_length" if grouped else "random",
    )
    clock = Clock()
    collator = DataCollatorWithPadding(tokenizer)
    Trainer(model, arguments, train_dataset=dataset, data_collator=collator, callbacks=[clock]).train()
    return sum(map(len, encoded)) / (clock.ended - clock.began)


if __name__ == "__main__":
    _, rows, encoder, batch, max_tokens, by_length = sys.argv
    print(rate(Path(rows), Path(encoder), int(batch), int(max_tokens), grouped=by_length == "1"))
