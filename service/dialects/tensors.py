"""Tensors of the Open Inference Protocol <-> texts and scores, as JSON and in Triton's binary form.

Pure functions, called by service/dialects/oip.py. The elements of a tensor stand in row-major order. In binary, an
element of BYTES is its length (u32, little-endian) and so many bytes; a BOOL is a byte, an FP32 four (little-endian).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from service.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.scored import Scored

LENGTH = struct.Struct("<I")
Values = list[str] | list[float] | list[bool]


def bad(field: str, message: str) -> InvalidRequest:
    """What is wrong with one field of a request."""
    return InvalidRequest([{"field": field, "message": message}])


def count(field: str, shape: Sequence[int], most: int) -> int:
    """How many texts a tensor of this shape holds, [n] or [n, 1]. Raises InvalidRequest."""
    if not 1 <= len(shape) <= 2 or shape[1:] not in ([], [1]) or not 1 <= shape[0] <= most:
        raise bad(field, f"the shape of texts is [n] or [n, 1], with n from 1 to {most}")
    return shape[0]


def texts_of_json(field: str, shape: Sequence[int], data: Sequence[str | list[str]]) -> list[str]:
    """The texts of a JSON tensor, flat or nested as its shape says. Raises InvalidRequest."""
    rows = [row for row in data if isinstance(row, list)]
    if rows and (len(shape) == 1 or len(rows) < len(data) or any(len(row) != 1 for row in rows)):
        raise bad(field, f"data is nested otherwise than its shape says: {list(shape)}")
    texts = [row[0] if isinstance(row, list) else row for row in data]
    if len(texts) != math.prod(shape):
        raise bad(field, f"data has {len(texts)} elements, and by its shape as many as {list(shape)}")
    return texts


def texts_of_bytes(field: str, elements: Sequence[bytes]) -> list[str]:
    """Raises InvalidRequest where an element is not UTF-8."""
    try:
        return [element.decode() for element in elements]
    except UnicodeDecodeError:
        raise bad(field, "an element is not UTF-8: encode texts as UTF-8") from None


def elements_of(field: str, raw: bytes, num_elements: int) -> list[bytes]:
    """The elements of a binary BYTES tensor; it has to be exactly so many. Raises InvalidRequest."""
    elements, at = [], 0
    for i in range(num_elements):
        start = at + LENGTH.size
        if start > len(raw):
            raise bad(field, f"the binary data ends after {i} elements, and by its shape it has {num_elements}")
        at = start + LENGTH.unpack_from(raw, at)[0]
        if at > len(raw):
            raise bad(field, f"element {i} is longer than the binary data: {at - start} bytes of {len(raw) - start}")
        elements.append(raw[start:at])
    if at < len(raw):
        raise bad(field, f"the binary data goes on after {num_elements} elements, for {len(raw) - at} bytes")
    return elements


def parts(raw: bytes, sizes: Sequence[int]) -> list[bytes]:
    """The binary data of several tensors, one after the other. Raises InvalidRequest where it is not all of it."""
    if sum(sizes) != len(raw):
        raise bad("inputs", f"binary_data_size adds up to {sum(sizes)}, and the bytes after the JSON are {len(raw)}")
    return [raw[end - size : end] for end, size in zip(accumulate(sizes), sizes, strict=True)]


@dataclass(frozen=True, slots=True)
class Tensor:
    """An output."""

    name: str
    datatype: Literal["BYTES", "FP32", "BOOL"]
    shape: list[int]
    values: Values

    def head(self) -> dict[str, Any]:
        """All but its values, as JSON has it."""
        return {"name": self.name, "datatype": self.datatype, "shape": self.shape}

    def raw(self) -> bytes:
        """Its values in binary."""
        if self.datatype != "BYTES":
            return np.array(self.values, dtype="<f4" if self.datatype == "FP32" else np.bool_).tobytes()
        elements = [str(value).encode() for value in self.values]
        return b"".join(part for element in elements for part in (LENGTH.pack(len(element)), element))


@dataclass(frozen=True, slots=True)
class Results:
    """What the model says of n texts, to be cut into tensors. C labels, in the order of their ids."""

    labels: list[str]
    scored: list[Scored]
    explanations: list[str]  # as JSON; none where none was asked for
    top_k: int | None = None
    raw_scores: bool = False

    def names(self) -> list[str]:
        """The outputs that there are."""
        names = ["label", "score", "probabilities", "logits"]
        names += ["label_set"] * (self.scored[0].in_set is not None)
        names += ["abstained"] * (self.scored[0].abstained is not None)
        return names + ["explanation"] * bool(self.explanations)

    def tensor(self, name: str) -> Tensor:
        """One of names(). label and score are [n] or, with top_k, [n, k]; probabilities, logits, label_set [n, C]."""
        n, C = len(self.scored), len(self.labels)
        if name == "explanation":
            return Tensor(name, "BYTES", [n], self.explanations)
        if name in ("label", "score"):
            shape = [n] if self.top_k is None else [n, min(self.top_k, C)]
            best = [(values, i) for values in self._values("score") for i in ranked(values, self.top_k or 1)]
            if name == "label":
                return Tensor(name, "BYTES", shape, [self.labels[i] for _, i in best])
            return Tensor(name, "FP32", shape, [values[i] for values, i in best])
        if name == "abstained":
            return Tensor(name, "BOOL", [n], [one.abstained is True for one in self.scored])
        if name == "label_set":
            return Tensor(name, "BOOL", [n, C], [inside for one in self.scored for inside in one.in_set or []])
        return Tensor(name, "FP32", [n, C], [value for values in self._values(name) for value in values])

    def classification(self, name: str, k: int) -> Tensor:
        """Triton's classification extension: the k best labels of each text as VALUE:INDEX:LABEL, [n, k]."""
        k = min(k, len(self.labels))
        values = [f"{values[i]:f}:{i}:{self.labels[i]}" for values in self._values(name) for i in ranked(values, k)]
        return Tensor(name, "BYTES", [len(self.scored), k], values)

    def _values(self, name: str) -> list[list[float]]:
        """What an output is made of, [n][C]: probabilities or logits; label and score follow raw_scores."""
        is_raw = self.raw_scores if name in ("label", "score") else name == "logits"
        return [one.logits if is_raw else one.scores for one in self.scored]


def ranked(values: Sequence[float], k: int) -> list[int]:
    """Indices of the k greatest, in this order."""
    return sorted(range(len(values)), key=lambda i: -values[i])[:k]
