"""Weights of a checkpoint <-> ours, both ways, by the names in model/families.py. Called by model/bundle.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from model.families import FAMILIES
from model.family import UnsupportedCheckpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from model.encoder import Classifier

HEAD = "head."  # the weights that a bare encoder does not have
LABEL_LAYER = "head.out."
WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def load_weights(classifier: Classifier, weights: Mapping[str, Tensor], *, bare: bool = False) -> None:
    """Copy a checkpoint's weights into ours.

    bare: only the encoder matters. What the checkpoint lacks of the head stays as initialised, and so does
    the label layer in any case: its labels are others.
    Raises UnsupportedCheckpoint naming a weight that is missing or has another shape.
    """
    prefix = FAMILIES[classifier.config.family].prefix
    stripped = not any(name.startswith(prefix) for name in weights)
    for ours, tensor, theirs in _named(classifier):
        names = [name.removeprefix(prefix) if stripped else name for name in theirs]
        if bare and (ours.startswith(LABEL_LAYER) or (ours.startswith(HEAD) and names[0] not in weights)):
            continue
        missing = [name for name in names if name not in weights]
        if missing:
            raise UnsupportedCheckpoint(f"model.safetensors has no weight named {missing[0]}")
        value = torch.cat([weights[name] for name in names])
        if value.shape != tensor.shape:
            got, want = tuple(value.shape), tuple(tensor.shape)
            raise UnsupportedCheckpoint(f"model.safetensors: shape of {names[0]} must be {want}: {got}")
        if value.dtype not in WEIGHT_DTYPES:
            raise UnsupportedCheckpoint(
                f"model.safetensors: type of {names[0]} is not fp32, fp16 or bf16: {value.dtype}"
            )
        tensor.data.copy_(value)


def dump_weights(classifier: Classifier) -> dict[str, Tensor]:
    """Our weights under the family's names; the reverse of load_weights."""
    weights: dict[str, Tensor] = {}
    for _, tensor, theirs in _named(classifier):
        for name, part in zip(theirs, tensor.detach().chunk(len(theirs)), strict=True):
            weights[name] = part.contiguous()
    return weights


def _named(classifier: Classifier) -> Iterator[tuple[str, Tensor, list[str]]]:
    """Each parameter of ours: its name, itself, and the family's names for its parts."""
    names = FAMILIES[classifier.config.family].names
    for ours, tensor in classifier.named_parameters():
        module, _, kind = ours.rpartition(".")  # kind: weight or bias
        layer = next((part for part in module.split(".") if part.isdigit()), "")
        pattern = module.replace(f".{layer}.", ".{i}.") if layer else module
        yield ours, tensor, [f"{name.format(i=layer)}.{kind}" for name in names[pattern]]
