"""Folders that transformers saved, of every family with its own tokenizer: the same rows, the same logits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from test_families import CASES, reference
from transformers import AutoTokenizer

from model.bundle import load_bundle
from model.forward import forward_rows
from model.manifest import BundleError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXTS = ["the film was good", "dull", "The Film! was dull <pad> good [PAD]"]
PAIRS = [("the film", "was good"), ("a", "b c")]
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
WORDS = ["the", "film", "was", "good"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = {token: i for i, token in enumerate([*SPECIAL, *WORDS, *LETTERS, *(f"##{c}" for c in LETTERS)])}
MERGED = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *LETTERS, "Ġt", "he"])}


def unigrams(special: list[str]) -> list[tuple[str, float]]:
    words = [(f"▁{word}", -3.0) for word in WORDS]
    return [*((token, 0.0) for token in special), ("▁", -2.0), *words, *((c, -6.0) for c in LETTERS)]


def modernbert_tokenizer() -> Any:
    names = ["input_ids", "attention_mask"]
    special = {f"{token[1:-1].lower()}_token": token for token in SPECIAL}
    raw = transformers.BertTokenizer(vocab=PIECES).backend_tokenizer
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, model_input_names=names, **special)


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertTokenizer(vocab=PIECES),
    "electra": lambda: transformers.ElectraTokenizer(vocab=PIECES),
    "distilbert": lambda: transformers.DistilBertTokenizer(vocab=PIECES),
    "roberta": lambda: transformers.RobertaTokenizer(vocab=MERGED, merges=[("Ġ", "t"), ("h", "e")]),
    "xlm-roberta": lambda: transformers.XLMRobertaTokenizer(vocab=unigrams(["<s>", "<pad>", "</s>", "<unk>"])),
    "camembert": lambda: transformers.CamembertTokenizer(
        vocab=unigrams(["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>"])
    ),
    "albert": lambda: transformers.AlbertTokenizer(
        vocab=unigrams(["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]),
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ),
    "deberta-v2": lambda: transformers.DebertaV2Tokenizer(
        vocab=unigrams(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"])
    ),
    "modernbert": modernbert_tokenizer,
}


def saved(family: str, folder: Path) -> Any:
    """The family's first case and its tokenizer, in a folder as transformers saves them."""
    model = reference(family, CASES[family][0])
    model.save_pretrained(folder)
    TOKENIZERS[family]().save_pretrained(folder)
    return model


@torch.no_grad()
def their_logits(model: Any, folder: Path, texts: list[Any]) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sides = ([a for a, _ in texts], [b for _, b in texts]) if isinstance(texts[0], tuple) else (texts,)
    logits: torch.Tensor = model(**tokenizer(*sides, padding=True, return_tensors="pt")).logits
    return logits


@pytest.mark.parametrize("texts", [TEXTS, PAIRS], ids=["texts", "pairs"])
@pytest.mark.parametrize("family", TOKENIZERS)
def test_a_folder_of_transformers_answers_as_transformers_does(family: str, texts: list[Any], tmp_path: Path) -> None:
    expected = their_logits(saved(family, tmp_path), tmp_path, texts)
    bundle = load_bundle(tmp_path)
    logits = forward_rows(bundle.classifier, bundle.tokenizer.encode(texts, bundle.max_tokens))
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=0, atol=1e-4)


def test_token_types_that_the_tokenizer_does_not_give_transformers_are_not_read(tmp_path: Path) -> None:
    model = saved("bert", tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    bundle = load_bundle(tmp_path)
    logits = forward_rows(bundle.classifier, bundle.tokenizer.encode(PAIRS, bundle.max_tokens))
    torch.testing.assert_close(torch.from_numpy(logits), their_logits(model, tmp_path, PAIRS), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("field", "value"), [("truncation_side", "left"), ("add_prefix_space", True)])
def test_a_tokenizer_that_transformers_would_set_otherwise_is_refused(field: str, value: Any, tmp_path: Path) -> None:
    saved("roberta", tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {field: value}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(BundleError, match=field):
        load_bundle(tmp_path)
