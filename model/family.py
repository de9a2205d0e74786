"""What a checkpoint family is: how it calls our settings and modules, and how it differs from our defaults.

The families themselves are in model/families.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from model.encoder import EncoderConfig

Fields = dict[str, Any]
Names = dict[str, tuple[str, ...]]

# Hugging Face's names of our activations; the first is the one we write.
ACTIVATION_NAMES = {
    "gelu": ("gelu", "gelu_python"),
    "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh"),
    "relu": ("relu",),
    "silu": ("silu", "swish"),
    "tanh": ("tanh",),
    "sigmoid": ("sigmoid",),
    "quick_gelu": ("quick_gelu",),
    "clipped_gelu": ("gelu_10",),
    "squared_relu": ("relu2",),
    "relu6": ("relu6",),
    "leaky_relu": ("leaky_relu",),
    "hardswish": ("hardswish",),
    "mish": ("mish",),
    "identity": ("linear",),
}
ACTIVATIONS_OF_OURS = ("activation", "head_activation", "convolution_activation")


class UnsupportedCheckpoint(ValueError):
    """A checkpoint that this encoder would not reproduce exactly."""


@dataclass(frozen=True)
class MaskedFamily:
    """The family's masked language model: its architecture and the names of our MaskedHead's modules.

    bias is the module that holds the bias of the vocabulary. activation is one of ours, or the setting that names it.
    """

    architecture: str
    dense: str
    norm: str
    bias: str
    activation: str = "activation"

    @property
    def names(self) -> Names:
        """Our module -> theirs."""
        return {"masked.dense": (self.dense,), "masked.norm": (self.norm,), "masked": (self.bias,)}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model_type of transformers.

    fields: our setting -> its name in config.json. defaults: how the family differs from EncoderConfig where
    config.json says nothing. masked: its language model, for pretraining. required: the only value of a field that
    we can represent. names: our module ->
    theirs; {i} is a layer; several names are one matrix of ours, cut by rows. read and write: what is more
    than another name, config.json -> our settings and back.
    """

    architecture: str
    prefix: str  # of the encoder's weights, absent from checkpoints of a bare encoder
    names: Names
    fields: dict[str, str]
    masked: MaskedFamily
    defaults: Fields = field(default_factory=dict)
    required: Fields = field(default_factory=dict)
    read: Callable[[Mapping[str, Any]], Fields] = lambda theirs: {}
    write: Callable[[EncoderConfig], Fields] = lambda config: {}


def activation(theirs: Mapping[str, Any], key: str) -> str:
    """Our name of the activation in a field. Raises UnsupportedCheckpoint where we have none."""
    for ours, names in ACTIVATION_NAMES.items():
        if theirs[key] in names:
            return ours
    raise UnsupportedCheckpoint(f"config.json: {key} is not an activation of ours: {theirs[key]}")
