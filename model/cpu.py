"""A classifier as a CPU runs it fastest: weights laid out once for oneDNN, activations fused, int8 where asked.

PyTorch's own linear layer lays the weight out for the processor at every call, and copies the bias. What comes
out of pack() and quantize() shares the embeddings, norms and head of the classifier that went in, holds the
weights of the blocks a second time, and computes the same function, or in int8 one close to it; it can neither be
trained nor saved. Figures: benchmarks/RESULTS.md.
"""

from __future__ import annotations

import copy
import math
import random
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from model.encoder import ACTIVATIONS
from model.forward import forward_rows
from model.tokens import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from model.encoder import Classifier, EncoderConfig

# Scale.write uses what PyTorch will drop one day: multiply, add, clamp and convert take twice the time today.
warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)

FUSED = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "relu": ("relu", ""), "identity": ("none", "")}
INT8_TOLERANCE = 0.2  # of the largest logit
CALIBRATION_ROWS, CALIBRATION_TOKENS = 64, 64  # random ones; more of them, or real texts, change no label more


class PackedLinear(nn.Module):
    """Linear layer and activation in one call, its weight laid out for the processor."""

    def __init__(self, linear: nn.Linear, activation: str = "identity") -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.fused = FUSED[activation]

    def forward(self, x: Tensor) -> Tensor:
        """(T, inputs) -> (T, outputs)."""
        name, algorithm = self.fused
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, [], algorithm)
        return y


@dataclass(frozen=True)
class Scale:
    """How numbers are written in 8 bits: x = scale * (byte - zero)."""

    scale: float
    zero: int

    @classmethod
    def of(cls, low: float, high: float) -> Scale:
        """The finest scale that writes low, 0 and high. Raises ValueError where one is not a number."""
        if not math.isfinite(high - low):
            raise ValueError(f"int8 cannot write what the model computes inside, use precision fp32: {low} to {high}")
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max(high - low, 1e-6) / 255
        return cls(scale, round(-low / scale))

    def write(self, x: Tensor) -> Tensor:
        """Numbers -> bytes; what lies beyond low and high becomes low or high."""
        return torch.quantize_per_tensor(x.float(), self.scale, self.zero, torch.quint8).int_repr()


class QuantizedLinear(nn.Module):
    """Linear layer on bytes: inputs on one fixed scale, weights with a scale for each output.

    The scale of the inputs does not depend on what is in the pass, and the sums are of whole numbers: a row does
    not depend on its neighbours. `out` is the scale on which the result is written in bytes; None: fp32.
    """

    def __init__(self, linear: nn.Linear, inputs: Scale, out: Scale | None, activation: str = "identity") -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        self.scales = weight.abs().amax(1).clamp(min=1e-12) / 127  # (outputs,)
        rounded = (weight / self.scales[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = None if linear.bias is None else linear.bias.detach().float()
        self.inputs, self.fused = inputs, FUSED[activation]
        self.out, self.dtype = out or Scale(1.0, 0), torch.float32 if out is None else torch.uint8

    def forward(self, x: Tensor) -> Tensor:
        """(T, inputs), numbers or bytes -> (T, outputs)."""
        x = x if x.dtype == torch.uint8 else self.inputs.write(x)
        name, algorithm = self.fused
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            x, self.inputs.scale, self.inputs.zero, self.weight, self.scales, self.zeros, self.bias,
            self.out.scale, self.out.zero, self.dtype, name, [], algorithm,
        )  # fmt: skip
        return y


def has_packed_kernels(dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch lays out weights of a type for this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack(classifier: Classifier) -> Classifier:
    """The same function in the same precision (fp32 or bf16), for inference alone."""
    dtype = classifier.encoder.embeddings.tokens.weight.dtype
    if not has_packed_kernels(dtype):
        return classifier

    def linear(layer: nn.Linear, activation: str = "identity", then: nn.Linear | None = None) -> nn.Module:
        return PackedLinear(layer, activation)

    return _with_linears(classifier, linear)


def quantize(classifier: Classifier, rows: Sequence[Row]) -> Classifier:
    """Close to the same function with the products of the blocks in int8; the classifier is in fp32.

    The scales of the inputs are those that `rows` and rows of random tokens need. Raises ValueError where the
    logits of `rows` and of other random rows move by more than INT8_TOLERANCE of their size: some models have
    inputs too far apart for bytes.
    """
    scales = _scales(classifier, [*rows, *_random_rows(classifier.config)])

    def linear(layer: nn.Linear, activation: str = "identity", then: nn.Linear | None = None) -> nn.Module:
        return QuantizedLinear(layer, scales[layer], None if then is None else scales[then], activation)

    quantized = _with_linears(classifier, linear)
    moved = _moved(classifier, quantized, [*rows, *_random_rows(classifier.config, seed=1)])
    if not moved <= INT8_TOLERANCE:
        raise ValueError(f"int8 moves the logits of this model by too much, use precision bf16 or fp32: {moved:.0%}")
    return quantized


def _moved(before: Classifier, after: Classifier, rows: Sequence[Row]) -> float:
    """The largest change of a logit, as a share of the largest; what all logits of a row share is no difference."""
    logits, others = (forward_rows(classifier, rows) for classifier in (before, after))
    logits, others = (x - x.mean(1, keepdims=True) if x.shape[1] > 1 else x for x in (logits, others))
    return float(np.abs(others - logits).max() / max(1.0, np.abs(logits).max()))


def _with_linears(classifier: Classifier, linear: Callable[..., nn.Module]) -> Classifier:
    """A classifier that shares all tensors with another, and whose blocks have linear layers made by `linear`."""
    shared = {id(x): x for x in (*classifier.parameters(), *classifier.buffers())}
    fast: Any = copy.deepcopy(classifier, memo=shared)
    config = classifier.config
    fuses = config.activation in FUSED and not config.gated
    for original, block in zip(classifier.encoder.blocks, fast.encoder.blocks, strict=True):
        before: Any = original
        up, down = before.feed_forward.up, before.feed_forward.down
        fused = {"activation": config.activation, "then": down} if fuses else {}
        block.attention.qkv, block.attention.out = linear(before.attention.qkv), linear(before.attention.out)
        block.feed_forward.up, block.feed_forward.down = linear(up, **fused), linear(down)
        if fuses:
            block.feed_forward.activation = ACTIVATIONS["identity"]
    fast.head = copy.deepcopy(classifier.head).float()  # costs nothing, and oneDNN would make a kernel for each B
    fast.eval()
    return cast("Classifier", fast)


@torch.inference_mode()
def _scales(classifier: Classifier, rows: Sequence[Row]) -> dict[nn.Module, Scale]:
    """For each linear layer, the scale that writes all its inputs of these rows."""
    spans: dict[nn.Module, tuple[float, float]] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        low, high = (float(x) for x in inputs[0].aminmax())
        before = spans.get(layer, (low, high))
        spans[layer] = min(low, before[0]), max(high, before[1])

    layers = [m for m in classifier.encoder.blocks.modules() if isinstance(m, nn.Linear)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        forward_rows(classifier, rows)
    finally:
        for hook in hooks:
            hook.remove()
    return {layer: Scale.of(*span) for layer, span in spans.items()}


def _random_rows(config: EncoderConfig, seed: int = 0) -> list[Row]:
    """Rows of random tokens, the same at every call; every other one a pair where the model tells its texts apart."""
    rng = random.Random(seed)
    longest = min(config.max_tokens, CALIBRATION_TOKENS)
    lengths = [rng.randint(1, longest) for _ in range(CALIBRATION_ROWS)]
    typed = config.token_types > 1
    return [
        Row(
            [rng.randrange(config.vocab_size) for _ in range(n)],
            [int(i >= n // 2) for i in range(n)] if typed and n % 2 else None,
        )
        for n in lengths
    ]
