"""The files of a Hugging Face checkpoint: read, and refused where this encoder would not give its logits.

Names of weights and settings are in model/families.py; what a bundle adds is in model/manifest.py.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from model.disk import small
from model.families import FAMILIES
from model.family import UnsupportedCheckpoint
from model.manifest import BundleError
from model.scores import MULTI, SINGLE
from model.tokens import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from model.encoder import EncoderConfig

NEVER_SEEN = "\U00013000"  # a hieroglyph: in no vocabulary, and no normalizer takes it away


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises BundleError where the file is missing or holds something else."""
    try:
        value = json.loads(small(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"no {file.name} in the folder: {file.parent}") from None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"not JSON ({error}): {file}") from None
    if not isinstance(value, dict):
        raise BundleError(f"not a JSON object: {file}")
    return value


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """FOLDER/model.safetensors. Raises BundleError where there is none, or it cannot be read."""
    file = folder / "model.safetensors"
    if not file.exists():
        raise BundleError(f"no model.safetensors in the folder (pickled weights are never read): {folder}")
    try:
        with file.open("rb"):  # safetensors says "not found" of a file that it may not read
            return load_file(file)
    except OSError as error:
        raise BundleError(f"cannot read the weights ({error.strerror}): {file}") from None
    except SafetensorError as error:
        raise BundleError(f"not a safetensors file ({error}): {file}") from None


def label_names(theirs: Mapping[str, Any]) -> list[str]:
    """Label names by id, from id2label; without it the two that transformers then assumes."""
    names = theirs.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    ids = [str(i) for i in range(len(names))] if isinstance(names, dict) else []
    if not isinstance(names, dict) or set(names) != set(ids):
        raise BundleError("config.json: id2label does not map the ids from 0 on to names")
    labels = [names[i] for i in ids]
    if len(set(labels)) < len(labels) or not all(isinstance(label, str) for label in labels):
        raise BundleError("config.json: id2label has two labels of one name, or a name that is no string")
    return labels


def tokenizer_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, empty where there is none."""
    file = folder / "tokenizer_config.json"
    return read_json(file) if file.exists() else {}


def read_tokenizer(folder: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """FOLDER/tokenizer.json, giving token types unless tokenizer_config.json says that the model gets none."""
    inputs = settings.get("model_input_names", ["token_type_ids"])
    return Tokenizer.from_folder(folder, has_types="token_type_ids" in inputs)


def token_limit(config: EncoderConfig, settings: Mapping[str, Any]) -> int:
    """What a checkpoint without heed.json reads: as tokenizer_config.json says, at most what its encoder has."""
    length = settings.get("model_max_length") or config.max_tokens
    if not isinstance(length, int | float) or length <= 2:
        raise BundleError(f"tokenizer_config.json: model_max_length is no number of tokens: {length}")
    return int(min(length, config.max_tokens))


def check_task(theirs: Mapping[str, Any]) -> None:
    """Raise UnsupportedCheckpoint for a checkpoint that does something else than classify texts."""
    problem = theirs.get("problem_type")
    if problem not in (None, SINGLE, MULTI):
        raise UnsupportedCheckpoint(f"config.json: problem_type is not one of {SINGLE}, {MULTI}: {problem}")
    family = FAMILIES.get(theirs.get("model_type", ""))
    for architecture in theirs.get("architectures") or []:
        if family is not None and architecture != family.architecture:
            raise UnsupportedCheckpoint(f"config.json: the architecture does not classify texts: {architecture}")


def check_tokenizer(tokenizer: Tokenizer, config: EncoderConfig, settings: Mapping[str, Any]) -> None:
    """Raise UnsupportedCheckpoint for a tokenizer that would give the encoder ids which it cannot take.

    settings is tokenizer_config.json, whose word transformers takes over that of tokenizer.json.
    """
    if tokenizer.highest_id >= config.vocab_size:
        limit = config.vocab_size
        raise UnsupportedCheckpoint(f"tokenizer.json has ids beyond vocab_size={limit}: {tokenizer.highest_id}")
    try:
        empty, pair, _ = tokenizer.encode([" ", ("a", "b"), NEVER_SEEN], config.max_tokens)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises no narrower one, and panics where its template names no token
        raise UnsupportedCheckpoint(f"tokenizer.json cannot read every text: {error}") from None
    if not empty.ids:
        raise UnsupportedCheckpoint("tokenizer.json adds no special tokens, so an empty text would have no token")
    if config.token_types == 1 and pair.types:
        raise UnsupportedCheckpoint("tokenizer.json marks the second text of a pair, with type_vocab_size=1")
    side = settings.get("truncation_side", "right")
    if side != "right":
        raise UnsupportedCheckpoint(f"tokenizer_config.json: truncation_side must be right: {side}")
    prefixed, is_roberta = tokenizer.adds_prefix_space, str(settings.get("tokenizer_class")).startswith("Roberta")
    if is_roberta and prefixed is not None and settings.get("add_prefix_space", False) != prefixed:
        raise UnsupportedCheckpoint(f"tokenizer.json and tokenizer_config.json differ in add_prefix_space: {prefixed}")
    for name, value in tokenizer.bert_settings.items():
        if settings.get(name) not in (None, value):
            raise UnsupportedCheckpoint(f"tokenizer.json and tokenizer_config.json differ in {name}: {settings[name]}")
