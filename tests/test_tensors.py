"""The tensor codec of the Open Inference Protocol: whatever the bytes, texts or a clean refusal."""

from __future__ import annotations

import contextlib
import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.dialects.tensors import (
    Results,
    Tensor,
    count,
    elements_of,
    parts,
    ranked,
    texts_of_bytes,
    texts_of_json,
)
from service.errors import InvalidRequest
from service.scored import Scored

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=20)
LABELS = ["negative", "neu:tral", "positive"]
SCORED = [
    Scored(logits=[-1.5, 0.25, 2.0], scores=[0.02, 0.14, 0.84], in_set=[False, False, True]),
    Scored(logits=[3.0, 0.0, -3.0], scores=[0.95, 0.047, 0.003], in_set=[True, True, False]),
]


@given(TEXTS)
def test_texts_survive_the_binary_form(texts: list[str]) -> None:
    raw = Tensor("text", "BYTES", [len(texts)], texts).raw()
    assert texts_of_bytes("inputs[0]", elements_of("inputs[0]", raw, len(texts))) == texts


@given(TEXTS, st.booleans())
def test_texts_survive_json_flat_and_nested(texts: list[str], is_nested: bool) -> None:
    data: list[str | list[str]] = [[text] for text in texts] if is_nested else list(texts)
    assert texts_of_json("inputs[0]", [len(texts), 1], data) == texts


@given(st.binary(max_size=200), st.integers(1, 50))
def test_any_bytes_are_so_many_elements_or_refused(raw: bytes, num_elements: int) -> None:
    with contextlib.suppress(InvalidRequest):
        elements = elements_of("inputs[0]", raw, num_elements)
        assert len(elements) == num_elements
        assert b"".join(struct.pack("<I", len(element)) + element for element in elements) == raw


@given(TEXTS, st.data())
def test_a_binary_tensor_that_is_cut_or_goes_on_is_refused(texts: list[str], data: st.DataObject) -> None:
    raw = Tensor("text", "BYTES", [len(texts)], texts).raw()
    cut = data.draw(st.integers(0, len(raw) - 1))
    for wrong in (raw[:cut], raw + raw[: cut + 1]):
        with pytest.raises(InvalidRequest):
            elements_of("inputs[0]", wrong, len(texts))


def test_a_length_beyond_the_buffer_takes_no_memory_and_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="element 0 is longer than the binary data: 4294967295 bytes of 1"):
        elements_of("inputs[0]", b"\xff\xff\xff\xffa", 1)


@given(st.lists(st.integers(-(2**63), 2**80), max_size=4))
def test_a_shape_is_n_or_n_by_1_within_the_limit(shape: list[int]) -> None:
    is_right = len(shape) in (1, 2) and 1 <= shape[0] <= 1000 and shape[1:] in ([], [1])
    if is_right:
        assert count("inputs[0]", shape, 1000) == shape[0]
    else:
        with pytest.raises(InvalidRequest, match="n from 1 to 1000"):
            count("inputs[0]", shape, 1000)


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ([2], ["a"]),
        ([1], ["a", "b"]),
        ([2], [["a"], ["b"]]),
        ([2, 1], ["a", ["b"]]),
        ([2, 1], [["a", "b"]]),
        ([1, 1], [[]]),
    ],
)
def test_data_that_is_not_what_its_shape_says_is_refused(shape: list[int], data: list[str | list[str]]) -> None:
    with pytest.raises(InvalidRequest, match="shape"):
        texts_of_json("inputs[0]", shape, data)


@given(st.lists(st.binary(max_size=10), max_size=5))
def test_the_bytes_after_the_json_are_shared_out_whole(raws: list[bytes]) -> None:
    whole, sizes = b"".join(raws), [len(raw) for raw in raws]
    assert parts(whole, sizes) == raws
    for wrong in ([*sizes, 1], [*sizes, 2**70]):
        with pytest.raises(InvalidRequest, match="binary_data_size"):
            parts(whole, wrong)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_numbers_are_little_endian_and_exact(values: list[float]) -> None:
    raw = Tensor("logits", "FP32", [len(values)], values).raw()
    assert np.frombuffer(raw, "<f4").tolist() == values
    flags = [value > 0 for value in values]
    assert np.frombuffer(Tensor("label_set", "BOOL", [len(values)], flags).raw(), np.bool_).tolist() == flags


def test_each_output_has_as_many_values_as_its_shape_says() -> None:
    for top_k in (None, 1, 2, 9):
        results = Results(LABELS, SCORED, ["{}", "{}"], top_k)
        assert results.names() == ["label", "score", "probabilities", "logits", "label_set", "explanation"]
        tensors = [results.tensor(name) for name in results.names()]
        assert all(len(tensor.values) == math.prod(tensor.shape) for tensor in tensors)
        assert tensors[0].shape == ([2] if top_k is None else [2, min(top_k, 3)])
    assert Results(LABELS, SCORED, [], 2).tensor("label").values == ["positive", "neu:tral", "negative", "neu:tral"]
    assert Results(LABELS, SCORED, [], 2).tensor("score").values == [0.84, 0.14, 0.95, 0.047]
    assert Results(LABELS, SCORED, [], raw_scores=True).tensor("score").values == [2.0, 3.0]


def test_classification_is_value_index_label_best_first() -> None:
    tensor = Results(LABELS, SCORED, []).classification("probabilities", 2)
    assert (tensor.datatype, tensor.shape) == ("BYTES", [2, 2])
    assert tensor.values == ["0.840000:2:positive", "0.140000:1:neu:tral", "0.950000:0:negative", "0.047000:1:neu:tral"]
    assert Results(LABELS, SCORED, []).classification("logits", 99).shape == [2, 3]


def test_equal_scores_keep_the_order_of_the_labels() -> None:
    assert ranked([0.5, 0.5, 0.7], 3) == [2, 0, 1]
