"""The classifier as a CPU runs it: the same function, packed; close to it, in int8."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from test_families import EVERY_CASE, ONE_CASE, our_logits, ours, random_rows, reference

from model.cpu import Scale, has_packed_kernels, pack, quantize
from model.device import has_int8

if TYPE_CHECKING:
    from model.encoder import Classifier

needs_int8 = pytest.mark.skipif(not has_int8(), reason="this processor has no int8 products (VNNI, AMX)")


def gentle(family: str, settings: dict[str, Any]) -> Classifier:
    """Weights of a size that training gives, so that precision is what is compared."""
    classifier = ours(reference(family, settings))
    for name, parameter in classifier.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
        elif name.endswith("norm.weight"):
            torch.nn.init.ones_(parameter)
    return classifier.eval()


@pytest.mark.parametrize(("family", "settings"), EVERY_CASE)
def test_packed_weights_give_the_same_logits(family: str, settings: dict[str, Any]) -> None:
    classifier, rows = ours(reference(family, settings)), random_rows()
    with torch.inference_mode():
        packed = our_logits(pack(classifier), rows, "packed")
    torch.testing.assert_close(packed, our_logits(classifier, rows, "packed"), rtol=0, atol=1e-4)


@pytest.mark.skipif(not has_packed_kernels(torch.bfloat16), reason="this processor has no bf16 kernels")
@pytest.mark.parametrize(("family", "settings"), ONE_CASE)
def test_packed_weights_in_bf16_are_as_close_as_bf16_is(family: str, settings: dict[str, Any]) -> None:
    classifier, rows = gentle(family, settings), random_rows()
    expected = our_logits(classifier, rows, "packed")
    with torch.inference_mode():
        packed = our_logits(pack(classifier.bfloat16()), rows, "packed")
    torch.testing.assert_close(packed, expected, rtol=0, atol=0.05 * float(expected.abs().max()))


@needs_int8
@pytest.mark.parametrize(("family", "settings"), EVERY_CASE)
def test_int8_is_close_and_the_same_text_has_the_same_logits_alone(family: str, settings: dict[str, Any]) -> None:
    classifier, rows = gentle(family, settings), random_rows()
    expected = our_logits(classifier, rows, "packed")
    with torch.inference_mode():
        quantized = quantize(classifier, rows)
        logits = our_logits(quantized, rows, "packed")
        alone = torch.cat([our_logits(quantized, [row], "packed") for row in rows])
    assert not torch.equal(logits, expected)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.15 * float(expected.abs().max()))
    torch.testing.assert_close(alone, logits, rtol=0, atol=0.05)


def test_a_scale_writes_its_ends_and_zero_exactly_enough() -> None:
    scale = Scale.of(-1.0, 3.0)
    written = scale.write(torch.tensor([-1.0, 0.0, 3.0, 9.0]))
    read = scale.scale * (written.float() - scale.zero)
    torch.testing.assert_close(read, torch.tensor([-1.0, 0.0, 3.0, 3.0]), rtol=0, atol=scale.scale)
    assert float(read[1]) == 0.0
