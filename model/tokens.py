"""Text -> rows of token ids, with offsets where asked; truncation is reported, never silent.

A thin cover over Hugging Face `tokenizers`, whose Rust code releases the interpreter lock.
Called by service (in a thread), training and model/bundle.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tokenizers import Tokenizer as RawTokenizer
from tokenizers.normalizers import BertNormalizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tokenizers import Encoding

Text: TypeAlias = str | tuple[str, str]  # a text, or a pair read together


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


class Tokenizer:
    """A trained tokenizer, made from the text of a tokenizer.json."""

    def __init__(self, tokenizer_json: str) -> None:
        self._raw = RawTokenizer.from_str(tokenizer_json)
        self._raw.no_truncation()
        self._raw.no_padding()
        self._num_special = {pair: self._raw.num_special_tokens_to_add(is_pair=pair) for pair in (False, True)}

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read FOLDER/tokenizer.json. Raises ValueError where it is missing or not a tokenizer."""
        file = folder / "tokenizer.json"
        try:
            return cls(file.read_text(encoding="utf-8"))
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
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included."""
        return self._raw.get_vocab_size(with_added_tokens=True)

    def token_id(self, token: str) -> int | None:
        """Id of a token, None where the vocabulary has none."""
        return self._raw.token_to_id(token)

    def encode(self, texts: Sequence[Text], max_tokens: int) -> list[Row]:
        """Rows of at most max_tokens tokens; the end of a longer text is cut, of a pair the longer side."""
        encodings = self._raw.encode_batch_fast(list(texts), add_special_tokens=True)
        return [
            _row(e) if len(e) <= max_tokens else self._truncated(text, len(e), max_tokens)
            for text, e in zip(texts, encodings, strict=True)
        ]

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

    def _truncated(self, text: Text, tokens: int, max_tokens: int) -> Row:
        """Cut before the special tokens go in, so that the last one is still there."""
        parts = [
            self._raw.encode(part, add_special_tokens=False) for part in ((text,) if isinstance(text, str) else text)
        ]
        keep = fit([len(part) for part in parts], max_tokens - self._num_special[len(parts) == 2])
        for part, n in zip(parts, keep, strict=True):
            part.truncate(n)
        whole = self._raw.post_process(parts[0], parts[1] if len(parts) == 2 else None)
        return _row(whole, truncated=tokens - max_tokens)


def _row(encoding: Encoding, truncated: int = 0) -> Row:
    types = encoding.type_ids
    return Row(encoding.ids, types if any(types) else None, truncated)


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
    roles = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    special = {f"{role}_token": token for role, token in roles.items() if tokenizer.token_id(token) is not None}
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_tokens, **special}
    fields["model_input_names"] = ["input_ids", *(["token_type_ids"] if has_types else []), "attention_mask"]
    return json.dumps(fields, indent=2) + "\n"
