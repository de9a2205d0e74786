"""Checkpoints <-> ours, both ways: config.json and weights, by the table in model/families.py.

A checkpoint that our encoder cannot represent exactly is refused with the field that stands in the way.
Called by model/bundle.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from model.encoder import EncoderConfig
from model.families import FAMILIES, NEEDED
from model.family import ACTIVATION_NAMES, ACTIVATIONS_OF_OURS, Fields, UnsupportedCheckpoint, activation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from model.encoder import Classifier
    from model.masked import MaskedLM

    Network = Classifier | MaskedLM

HEADS = ("head.", "masked.")  # the weights that a bare encoder does not have
LABEL_LAYER = "head.out."
WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

MOST_LAYERS = 1000  # also of those that share their weights


def read_config(theirs: Mapping[str, Any]) -> EncoderConfig:
    """config.json of a checkpoint -> EncoderConfig.

    Raises UnsupportedCheckpoint naming the field that our encoder cannot represent.
    """
    name = theirs.get("model_type", "")
    family = FAMILIES.get(name)
    if family is None:
        raise UnsupportedCheckpoint(f"config.json: model_type is not one of {', '.join(FAMILIES)}: {name}")
    if theirs.get("quantization_config"):
        raise UnsupportedCheckpoint("config.json: quantization_config must be absent, give the weights before it")
    for key, value in family.required.items():
        if theirs.get(key, value) != value:
            raise UnsupportedCheckpoint(f"config.json: {key} must be {value}: {theirs[key]}")
    ours = {"family": name} | family.defaults
    try:
        for setting, key in family.fields.items():
            if setting in NEEDED or theirs.get(key) is not None:
                ours[setting] = activation(theirs, key) if setting in ACTIVATIONS_OF_OURS else theirs[key]
        return EncoderConfig(**(ours | family.read(theirs)))
    except KeyError as error:
        raise UnsupportedCheckpoint(f"config.json: a field is missing: {error}") from None
    except (TypeError, ZeroDivisionError, AttributeError) as error:  # a string for a number, null, 0 heads
        raise UnsupportedCheckpoint(f"config.json: a field has a value that cannot be: {error}") from None


def check_sizes(config: EncoderConfig, numbers: int) -> None:
    """Raises UnsupportedCheckpoint where a config asks for more than so many numbers of its file can fill.

    A config comes from strangers, and what it says is built: without this, memory for whatever it says.
    """
    for name in ("vocab_size", "width", "layers", "feed_forward", "max_tokens"):
        size = getattr(config, name)
        if not isinstance(size, int) or not 0 < size <= numbers:
            raise UnsupportedCheckpoint(f"config.json: {name} is not in 1..{numbers}, what the weights have: {size}")
    if config.layers > MOST_LAYERS:
        raise UnsupportedCheckpoint(f"config.json: over {MOST_LAYERS} layers: {config.layers}")
    block = 4 * config.width**2 + 2 * config.width * config.feed_forward  # its matrices
    least = config.vocab_size * (config.embedding_width or config.width) + (config.blocks or config.layers) * block
    if least > numbers:
        raise UnsupportedCheckpoint(f"config.json: describes at least {least} numbers, the weights have {numbers}")


def write_config(config: EncoderConfig) -> Fields:
    """EncoderConfig -> the fields of config.json that the family reads.

    Raises UnsupportedCheckpoint for a config that the family cannot say, such as a BERT with mean pooling.
    """
    family = FAMILIES[config.family]
    fields: Fields = {"model_type": config.family, "architectures": [family.architecture]}
    for setting, key in family.fields.items():
        value = getattr(config, setting)
        fields[key] = ACTIVATION_NAMES[value][0] if setting in ACTIVATIONS_OF_OURS else value
    fields |= family.write(config)
    if read_config(fields) != config:
        raise UnsupportedCheckpoint(f"a checkpoint of this family cannot hold the configuration: {config.family}")
    return fields


def load_weights(network: Network, weights: Mapping[str, Tensor], *, bare: bool = False) -> None:
    """Copy a checkpoint's weights into ours.

    bare: only the encoder matters. What the checkpoint lacks of the head stays as initialised, and so does
    the label layer in any case: keep_labels() is for that.
    Raises UnsupportedCheckpoint naming a weight that is missing or has another shape.
    """
    prefix = FAMILIES[network.config.family].prefix
    stripped = not any(name.startswith(prefix) for name in weights)
    for ours, tensor, theirs in _named(network):
        names = [name.removeprefix(prefix) if stripped else name for name in theirs]
        if bare and (ours.startswith(LABEL_LAYER) or (ours.startswith(HEADS) and names[0] not in weights)):
            continue
        missing = [name for name in names if name not in weights]
        if missing:
            raise UnsupportedCheckpoint(f"model.safetensors has no weight named {missing[0]}")
        value = torch.cat([weights[name] for name in names])
        check_shape(names[0], value, tensor.shape)
        if value.dtype not in WEIGHT_DTYPES:
            raise UnsupportedCheckpoint(
                f"model.safetensors: type of {names[0]} is not fp32, fp16 or bf16: {value.dtype}"
            )
        tensor.data.copy_(value)


def check_shape(name: str, value: Tensor, want: Sequence[int]) -> None:
    """Raises UnsupportedCheckpoint where a weight of the file has another shape than it must have."""
    if tuple(value.shape) != tuple(want):
        raise UnsupportedCheckpoint(f"model.safetensors: shape of {name} must be {tuple(want)}: {tuple(value.shape)}")


def keep_labels(
    classifier: Classifier, weights: Mapping[str, Tensor], theirs: Sequence[str], ours: Sequence[str]
) -> None:
    """Copy what a checkpoint's label layer knows of labels (theirs, by id) that are ours, too, by their names."""
    places = [(i, theirs.index(label)) for i, label in enumerate(ours) if label in theirs]
    for name, tensor, names in _named(classifier):
        if places and name.startswith(LABEL_LAYER) and all(each in weights for each in names):
            to, at = map(list, zip(*places, strict=True))
            tensor.data[to] = torch.cat([weights[each] for each in names])[at].to(tensor.dtype)


def dump_weights(network: Network) -> dict[str, Tensor]:
    """Our weights under the family's names, the reverse of load_weights; and those of n-grams, which no family has."""
    weights = dict(network.named_buffers())
    for _, tensor, theirs in _named(network):
        for name, part in zip(theirs, tensor.detach().chunk(len(theirs)), strict=True):
            weights[name] = part.contiguous()
    return weights


def _named(network: Network) -> Iterator[tuple[str, Tensor, list[str]]]:
    """Each parameter of ours: its name, itself, and the family's names for its parts."""
    family = FAMILIES[network.config.family]
    names = family.names | family.masked.names
    for ours, tensor in network.named_parameters():
        module, _, kind = ours.rpartition(".")  # kind: weight or bias
        layer = next((part for part in module.split(".") if part.isdigit()), "")
        pattern = module.replace(f".{layer}.", ".{i}.") if layer else module
        yield ours, tensor, [f"{name.format(i=layer)}.{kind}" for name in names[pattern]]
