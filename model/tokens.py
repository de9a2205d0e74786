"""Text -> rows of token ids, with offsets where asked; truncation is reported, never silent.

A text that is longer than the limit is cut to one row, or read in windows: several rows that overlap.

A thin cover over Hugging Face `tokenizers`, whose Rust code releases the interpreter lock.
Called by service (in a thread), training and model/bundle.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tokenizers import Tokenizer as RawTokenizer
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import ByteLevel

from model.disk import small

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tokenizers import Encoding

# As BERT's and as RoBERTa's families write them; the first that the vocabulary has is taken.
SPECIAL_TOKENS = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}

Text: TypeAlias = str | tuple[str, str]  # a text, or a pair read together

# Share of a window that the next one reads again. What an edge tears apart is whole in the neighbour if it is
# no longer than this (of 256 tokens: 60, a few sentences), for a third more tokens to read.
OVERLAP = 0.25


@dataclass(frozen=True, slots=True)
class Span:
    """Where a token lies: characters start to stop of a text, of the first (0) or the second (1) of a pair."""

    start: int
    stop: int
    side: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids of one text, special tokens included.

    types is 0 for the first text of a pair and 1 for the second; None where all are 0.
    truncated counts the tokens that were cut off.
    """

    ids: list[int]
    types: list[int] | None = None
    truncated: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that the model reads."""
        return len(self.ids)

    @property
    def key(self) -> tuple[int, ...]:
        """Equal for rows that the model cannot tell apart."""
        return (*self.ids, -1, *self.types) if self.types else tuple(self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window(Row):
    """A part of a text that is longer than the limit: a row with special tokens of its own.

    start and end are characters of the text; first is the place of its first token among the text's tokens.
    side says which text of a pair it moves along, 0 or 1, the other being whole in every window; None for
    a text alone.
    """

    start: int
    end: int
    first: int
    side: int | None


class Tokenizer:
    """A trained tokenizer, made from the text of a tokenizer.json.

    has_types: its rows tell the texts of a pair apart.
    """

    def __init__(self, tokenizer_json: str, *, has_types: bool = True) -> None:
        self.has_types = has_types
        self._raw = RawTokenizer.from_str(tokenizer_json)
        self._raw.no_truncation()
        self._raw.no_padding()

    @classmethod
    def from_folder(cls, folder: Path, *, has_types: bool = True) -> Tokenizer:
        """Read FOLDER/tokenizer.json. Raises ValueError where it is missing or not a tokenizer."""
        file = folder / "tokenizer.json"
        try:
            return cls(small(file).read_text(encoding="utf-8"), has_types=has_types)
        except FileNotFoundError:
            raise ValueError(f"no tokenizer.json in the folder: {folder}") from None
        except Exception as error:  # tokenizers raises plain Exception
            raise ValueError(f"not a tokenizer ({error}): {file}") from None

    def to_json(self) -> str:
        """The text of tokenizer.json."""
        return self._raw.to_str(pretty=True)

    @property
    def highest_id(self) -> int:
        """The largest id that a row can hold."""
        return max(self._raw.get_vocab(with_added_tokens=True).values())

    @property
    def bert_settings(self) -> dict[str, bool]:
        """How BERT's normalizer is set, as tokenizer_config.json calls it; empty for another normalizer."""
        normalizer = self._raw.normalizer
        if not isinstance(normalizer, BertNormalizer):
            return {}
        strip = normalizer.lowercase if normalizer.strip_accents is None else normalizer.strip_accents
        return {"do_lower_case": normalizer.lowercase, "strip_accents": strip}

    @property
    def adds_prefix_space(self) -> bool | None:
        """Whether byte-level BPE reads a text as if it began with a space; None for another pre-tokenizer."""
        before = self._raw.pre_tokenizer
        return before.add_prefix_space if isinstance(before, ByteLevel) else None

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included."""
        return self._raw.get_vocab_size(with_added_tokens=True)

    @property
    def special_tokens(self) -> dict[str, str]:
        """Which token has the role pad, unk, cls, sep or mask; without the roles that none has."""
        found = {
            role: next((token for token in tokens if self.token_id(token) is not None), None)
            for role, tokens in SPECIAL_TOKENS.items()
        }
        return {role: token for role, token in found.items() if token is not None}

    @property
    def special_ids(self) -> list[int]:
        """Ids of those tokens."""
        return sorted(i for token in self.special_tokens.values() if (i := self.token_id(token)) is not None)

    @property
    def mask_id(self) -> int | None:
        """Id of the token that stands for a hidden one; None where there is none."""
        return self._special_id("mask")

    @property
    def unknown_id(self) -> int | None:
        """Id of the token that stands for what the vocabulary has not; None where it has all, as bytes."""
        return self._special_id("unk")

    def _special_id(self, role: str) -> int | None:
        token = self.special_tokens.get(role)
        return None if token is None else self.token_id(token)

    def token_id(self, token: str) -> int | None:
        """Id of a token, None where the vocabulary has none."""
        return self._raw.token_to_id(token)

    def encode(self, texts: Sequence[Text], max_tokens: int) -> list[Row]:
        """Rows of at most max_tokens tokens; the end of a longer text is cut, of a pair the longer side."""
        encodings = self._raw.encode_batch_fast(list(texts), add_special_tokens=True)
        return [self._row(e) if len(e) <= max_tokens else self._cut(e, max_tokens) for e in encodings]

    def encode_windows(self, texts: Sequence[Text], max_tokens: int) -> list[list[Row]]:
        """The rows of each text: one where it fits, else windows of exactly max_tokens tokens, in order.

        A pair moves along its longer side. Where its shorter side takes more than half of the room, it is one
        row, cut as by encode.
        """
        encodings = self._raw.encode_batch_fast(list(texts), add_special_tokens=True)
        return [
            [self._row(e)] if len(e) <= max_tokens else self._windows(text, e, max_tokens)
            for text, e in zip(texts, encodings, strict=True)
        ]

    def words(self, texts: Sequence[str]) -> list[tuple[list[int], list[int | None]]]:
        """All token ids of each text, without special tokens, and the number of the word that each is a part of.

        Words are what the pre-tokenizer splits a text into; a special token that the text spells has no number.
        """
        encodings = self._raw.encode_batch(list(texts), add_special_tokens=False)  # the fast one knows no words
        return [(e.ids, e.word_ids) for e in encodings]

    def frame(self) -> tuple[list[int], list[int]]:
        """The special tokens before a text and after it."""
        whole = self._raw.encode("a")
        of_text = [i for i, special in enumerate(whole.special_tokens_mask) if not special]
        return whole.ids[: of_text[0]], whole.ids[of_text[-1] + 1 :]

    def spans(self, text: Text, max_tokens: int) -> list[Span | None]:
        """Where each token of the text's row lies in the text that was given; None for special tokens."""
        parts = (text,) if isinstance(text, str) else text
        whole = self._raw.encode(*parts)
        sides = whole.sequence_ids
        room = fit([sides.count(side) for side in range(len(parts))], max_tokens - sides.count(None))
        spans: list[Span | None] = []
        for side, offsets in zip(sides, whole.offsets, strict=True):
            if side is None:
                spans.append(None)
            elif room[side]:  # else encode() cut it off
                room[side] -= 1
                spans.append(_span(parts[side], *offsets, side))
        return spans

    def _types(self, whole: Encoding) -> list[int]:
        return whole.type_ids if self.has_types else [0] * len(whole)

    def _row(self, whole: Encoding) -> Row:
        types = self._types(whole)
        return Row(whole.ids, types if any(types) else None)

    def _cut(self, whole: Encoding, max_tokens: int) -> Row:
        """The row of a text that is longer; its special tokens stay. (Encoding.truncate would keep all it cuts off.)"""
        sides = _sides(whole)
        keep = fit([len(side) for side in sides], max_tokens - len(whole) + sum(map(len, sides)))
        ids, types = whole.ids, self._types(whole)
        for side, n in sorted(zip(sides, keep, strict=True), key=lambda cut: -cut[0].start):  # the last first
            del ids[side.start + n : side.stop], types[side.start + n : side.stop]
        return Row(ids, types if any(types) else None, truncated=len(whole) - max_tokens)

    def _windows(self, text: Text, whole: Encoding, max_tokens: int) -> list[Row]:
        """The windows of a text that is longer; only here are characters counted, which takes time."""
        sides = _sides(whole)
        side = 0 if len(sides[0]) >= len(sides[1]) else 1
        moving, shorter = sides[side], sides[1 - side]
        width = max_tokens - len(whole) + len(moving)  # tokens of the longer side in each window
        if width < max(len(shorter), 1):
            return [self._cut(whole, max_tokens)]
        placed = self._raw.encode(text) if isinstance(text, str) else self._raw.encode(*text)
        ids, types = whole.ids, self._types(whole)
        head, tail = slice(0, moving.start), slice(moving.stop, None)
        windows: list[Row] = []
        for first in window_starts(len(moving), width):
            part = slice(moving.start + first, moving.start + first + width)
            part_types = types[head] + types[part] + types[tail]
            windows.append(
                Window(
                    ids[head] + ids[part] + ids[tail],
                    part_types if any(part_types) else None,
                    start=_characters(placed, part.start)[0],
                    end=_characters(placed, part.stop - 1)[1],
                    first=first,
                    side=None if isinstance(text, str) else side,
                )
            )
        return windows


def _characters(placed: Encoding, token: int) -> tuple[int, int]:
    """Start and end, in its text, of what a token that is not special stands for."""
    characters: tuple[int, int] | None = placed.token_to_chars(token)
    assert characters is not None
    return characters


def _sides(whole: Encoding) -> tuple[range, range]:
    """Where the tokens of the first text and of the second lie among those of the row; empty where it has none."""
    side_of = whole.sequence_ids
    starts = [side_of.index(n) if n in side_of else 0 for n in (0, 1)]
    first, second = (range(start, start + side_of.count(n)) for n, start in enumerate(starts))
    return first, second


def window_starts(tokens: int, width: int) -> list[int]:
    """Where windows of `width` tokens begin that together read all `tokens`; needs tokens > width >= 1.

    They are spread evenly, so that all are full and neighbours share at least the OVERLAP, about equally much.
    A last window that began where the others left off could be a stub of three tokens, with a say of its own.
    """
    step = width - int(width * OVERLAP)
    last = tokens - width
    steps = -(-last // step)
    return [last * i // steps for i in range(steps + 1)]


def tokens_of(rows: Sequence[Row]) -> int:
    """Tokens of the text that these rows read, each counted once, special tokens included."""
    last = rows[-1]
    return last.tokens + (last.first if isinstance(last, Window) else 0)


def _span(text: str, start: int, stop: int, side: int) -> Span:
    """Without the space before the word, which some tokenizers count in."""
    spaces = len(text[start:stop]) - len(text[start:stop].lstrip())
    return Span(start + spaces if start + spaces < stop else start, stop, side)


def fit(lengths: Sequence[int], room: int) -> list[int]:
    """Shorten the longest part until all fit into room: [9, 2] into 6 is [4, 2]."""
    lengths = list(lengths)
    while sum(lengths) > room:
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        others = [n for i, n in enumerate(lengths) if i != longest]
        level = max([*others, 0])
        cut = min(sum(lengths) - room, max(lengths[longest] - level, 1))
        lengths[longest] -= cut
    return lengths


def tokenizer_config(tokenizer: Tokenizer, max_tokens: int, *, has_types: bool) -> str:
    """The text of tokenizer_config.json, by which transformers opens the same tokenizer.

    has_types: the model tells the texts of a pair apart.
    """
    special = {f"{role}_token": token for role, token in tokenizer.special_tokens.items()}
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_tokens, **special}
    fields["model_input_names"] = ["input_ids", *(["token_type_ids"] if has_types else []), "attention_mask"]
    return json.dumps(fields, indent=2) + "\n"
