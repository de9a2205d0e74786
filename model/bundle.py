"""The folder that ships: a Hugging Face checkpoint with Heed's manifest. Atomic save, checked load.

  config.json  model.safetensors  tokenizer.json  tokenizer_config.json   what transformers reads
  heed.json                                                               model/manifest.py
  README.md  report/metrics.json                                          the model card and its numbers

A checkpoint of a supported family without heed.json is loaded as it is. Nothing here reads or writes
pickle. Written by training, read by service.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file

from model.convert import check_sizes, dump_weights, load_weights, read_config, write_config
from model.disk import new_folder, small, sync, write
from model.drift import Reference
from model.encoder import Classifier
from model.families import FAMILIES
from model.family import UnsupportedCheckpoint
from model.folder import (
    check_task,
    check_tokenizer,
    label_names,
    read_json,
    read_tokenizer,
    read_weights,
    token_limit,
    tokenizer_settings,
)
from model.forward import forward_rows
from model.manifest import BundleError, Described, Manifest, content_hash
from model.ngrams import read_ngrams
from model.scores import MULTI, SINGLE, Calibration
from model.tokens import tokenizer_config

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from model.convert import Network
    from model.encoder import EncoderConfig
    from model.masked import MaskedLM
    from model.tokens import Tokenizer

WEIGHT_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# No user's text: a bundle travels further than the data that it was trained on.
PROBES = (
    "a gorgeous, witty, seductive movie",
    "The parcel came two days late and the box was open; I want my money back!",
    "what is the capital of france ?",
    "菜味道很棒！送餐很及时！",
    "CALL NOW 0800-555 to claim £1,000 🎉",
)
PROBE_TOLERANCE = 1e-3  # fp32 logits, between processors


@dataclass(frozen=True, kw_only=True)
class Bundle(Described):
    """A loaded model: everything that is needed to answer."""

    classifier: Classifier
    manifest: Manifest | None = None  # None for a checkpoint that Heed did not write


def load_bundle(folder: Path) -> Bundle:
    """Load a bundle, or a Hugging Face checkpoint of a supported family, in fp32 on the CPU.

    Raises BundleError naming the file and what is wrong with it, also where the bundle's probe texts do
    not give the logits that they gave when it was made.
    """
    theirs = read_json(folder / "config.json")
    labels = label_names(theirs)
    settings = tokenizer_settings(folder)
    manifest_file = folder / "heed.json"
    try:
        manifest = Manifest.from_json(small(manifest_file).read_bytes()) if manifest_file.exists() else None
        check_task(theirs)
        config, weights = read_config(theirs), read_weights(folder)
        check_sizes(config, sum(weight.numel() for weight in weights.values()))  # before memory is taken for it
        classifier = _classifier_of(config, weights, num_labels=len(labels))
        tokenizer = read_tokenizer(folder, settings)
        check_tokenizer(tokenizer, classifier.config, settings)
    except ValueError as error:
        raise BundleError(f"{error} ({folder})") from None
    classifier.eval()
    bundle = Bundle(
        name=manifest.name if manifest else folder.resolve().name,
        version=content_hash(folder),
        labels=labels,
        problem_type=MULTI if theirs.get("problem_type") == MULTI else SINGLE,
        max_tokens=manifest.max_tokens if manifest else token_limit(classifier.config, settings),
        calibration=manifest.calibration if manifest else Calibration(),
        classifier=classifier,
        tokenizer=tokenizer,
        reference=manifest.reference if manifest else {},
        manifest=manifest,
    )
    if manifest is not None:
        _check(bundle, manifest, folder)
        try:
            reference = Reference(manifest.reference, labels)
            if len(reference.center) not in (0, bundle.classifier.config.width):
                raise ValueError(f"embedding_center is not as wide as the encoder: {len(reference.center)}")
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise BundleError(f"heed.json: reference is not what was written ({error}): {folder}") from None
    return bundle


def save_bundle(
    folder: Path,
    classifier: Classifier,
    tokenizer: Tokenizer,
    manifest: Manifest,
    *,
    weights: str = "fp32",
    files: Mapping[str, str] | None = None,
) -> Manifest:
    """Write a bundle under a name beside `folder`, then rename it: a reader sees all of it or nothing.

    The classifier holds fp32; `weights` (fp32, fp16, bf16) is what is stored. Version and probes of the
    manifest are filled in from what was written, and the complete manifest is returned. `files` are added
    by relative path. Raises FileExistsError if `folder` exists: a bundle is immutable.
    """
    with new_folder(folder) as partial:
        described = _label_fields(manifest)
        _write_checkpoint(partial, classifier, tokenizer, manifest.max_tokens, weights, described, files)
        manifest = dataclasses.replace(
            manifest, version=content_hash(partial), probes=_probes(partial, tokenizer, manifest.max_tokens)
        )
        write(partial / "heed.json", manifest.to_json())
    return manifest


def save_encoder(
    folder: Path, model: MaskedLM, tokenizer: Tokenizer, *, weights: str = "fp32", files: Mapping[str, str]
) -> str:
    """Write a pretrained encoder with the head of its language model, as save_bundle writes; return its version.

    It is what load_encoder reads, and what transformers opens as the family's masked language model.
    """
    with new_folder(folder) as partial:
        architecture = FAMILIES[model.config.family].masked.architecture
        described = {"architectures": [architecture], "tie_word_embeddings": True}
        _write_checkpoint(partial, model, tokenizer, model.config.max_tokens, weights, described, files)
        return content_hash(partial)


def _classifier_of(config: EncoderConfig, weights: Mapping[str, torch.Tensor], num_labels: int) -> Classifier:
    """The network that has a checkpoint's weights, with its n-grams where it has them."""
    classifier = unfilled(config, num_labels)
    load_weights(classifier, weights)
    classifier.ngrams = read_ngrams(weights, config.vocab_size, num_labels)
    return classifier


def unfilled(config: EncoderConfig, num_labels: int) -> Classifier:
    """A classifier for weights to be loaded into; drawing random ones first would be most of the time of a load."""
    with torch.device("meta"):
        classifier = Classifier(config, num_labels)
    for module in classifier.modules():  # to_empty() would do, and import sympy for it
        for name, drawn in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, torch.nn.Parameter(torch.empty(drawn.shape)))
    return classifier


def load_encoder(
    folder: Path, *, layers: int | None = None
) -> tuple[EncoderConfig, dict[str, torch.Tensor], Tokenizer]:
    """Config, weights and tokenizer of a checkpoint to start training from; a bare encoder will do.

    `layers` keeps only the first layers. Raises BundleError as load_bundle does.
    """
    try:
        config = read_config(read_json(folder / "config.json"))
        if layers is not None:
            if not 0 < layers <= config.layers:
                raise BundleError(f"layers is not in 1..{config.layers}, what the encoder has: {layers}")
            if config.blocks not in (None, 1):
                raise BundleError(
                    f"layers of this encoder share their weights in groups, leave --set layers out: {layers}"
                )
            config = dataclasses.replace(
                config, layers=layers, local_layers=tuple(i for i in config.local_layers if i < layers)
            )
        settings = tokenizer_settings(folder)
        tokenizer = read_tokenizer(folder, settings)
        check_tokenizer(tokenizer, config, settings)
        return config, read_weights(folder), tokenizer
    except UnsupportedCheckpoint as error:
        raise BundleError(f"{error} ({folder})") from None


def _write_checkpoint(
    folder: Path,
    network: Network,
    tokenizer: Tokenizer,
    max_tokens: int,
    weights: str,
    described: dict[str, Any],
    files: Mapping[str, str] | None,
) -> None:
    """The files that transformers reads, and more of them; `described` is added to config.json."""
    config = write_config(network.config) | described | _special_ids(tokenizer)
    write(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    stored = WEIGHT_TYPES[weights]
    tensors = {k: v.to(stored) if v.is_floating_point() else v for k, v in dump_weights(network).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes 0600, and another user may serve it
    sync(folder / "model.safetensors")
    write(folder / "tokenizer.json", tokenizer.to_json())
    has_types = network.config.token_types > 1 and tokenizer.has_types
    write(folder / "tokenizer_config.json", tokenizer_config(tokenizer, max_tokens, has_types=has_types))
    for name, text in (files or {}).items():
        write(folder / name, text)


def _check(bundle: Bundle, manifest: Manifest, folder: Path) -> None:
    """Refuse a bundle whose files do not belong together, or whose probes give other logits."""
    if bundle.version != manifest.version:
        raise BundleError(f"files of the bundle were changed after it was made as {manifest.version}: {folder}")
    if (manifest.labels, manifest.problem_type) != (bundle.labels, bundle.problem_type):
        raise BundleError(f"heed.json and config.json name different labels or problem types: {folder}")
    if not 2 < manifest.max_tokens <= bundle.classifier.config.max_tokens:
        raise BundleError(f"heed.json: max_tokens is not what the encoder reads: {manifest.max_tokens} ({folder})")
    if fault := manifest.calibration.fault(len(bundle.labels)):
        raise BundleError(f"heed.json: {fault} ({folder})")
    if not manifest.probes:
        return
    try:
        texts = [str(probe["text"]) for probe in manifest.probes]
        expected = np.array([probe["logits"] for probe in manifest.probes], dtype=np.float32)
        logits = forward_rows(bundle.classifier, bundle.tokenizer.encode(texts, bundle.max_tokens))
        off = float(np.abs(logits - expected).max())
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"heed.json: the probes are not texts with logits: {error} ({folder})") from None
    if not off <= PROBE_TOLERANCE:
        raise BundleError(f"probe texts give logits that are off by more than {PROBE_TOLERANCE}: {off:.3g} ({folder})")


def _probes(folder: Path, tokenizer: Tokenizer, max_tokens: int) -> list[dict[str, Any]]:
    """Probe texts with the logits of the weights as they were stored."""
    theirs = read_json(folder / "config.json")
    stored = _classifier_of(read_config(theirs), read_weights(folder), num_labels=len(label_names(theirs)))
    logits = forward_rows(stored, tokenizer.encode(PROBES, max_tokens))
    return [{"text": text, "logits": row} for text, row in zip(PROBES, logits.tolist(), strict=True)]


def _label_fields(manifest: Manifest) -> dict[str, Any]:
    return {
        "id2label": {str(i): label for i, label in enumerate(manifest.labels)},
        "label2id": {label: i for i, label in enumerate(manifest.labels)},
        "problem_type": manifest.problem_type,
    }


def _special_ids(tokenizer: Tokenizer) -> dict[str, int | None]:
    """Ids that transformers would else take from the family's own vocabulary."""
    ids = {role: tokenizer.token_id(token) for role, token in tokenizer.special_tokens.items()}
    cls, sep = ids.get("cls"), ids.get("sep")
    return {"cls_token_id": cls, "bos_token_id": cls, "sep_token_id": sep, "eos_token_id": sep}
