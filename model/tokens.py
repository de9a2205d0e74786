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

# As BERT's and as RoBERTa's families write them; the first that the vocabulary has is taken.
SPECIAL_TOKENS = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}

Text: TypeAlias = str | tuple[str, str]  # a text, or a pair read together


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
    """A trained tokenizer, made from the text of a tokenizer.json.

    has_types: its rows tell the texts of a pair apart.
    """

    def __init__(self, tokenizer_json: str, *, has_types: bool = True) -> None:
        self.has_types = has_types
        self._raw = RawTokenizer.from_str(tokenizer_json)
        self._raw.no_truncation()
        self._raw.no_padding()
        self._num_special = {pair: self._raw.num_special_tokens_to_add(is_pair=pair) for pair in (False, True)}

    @classmethod
    def from_folder(cls, folder: Path, *, has_types: bool = True) -> Tokenizer:
        """Read FOLDER/tokenizer.json. Raises ValueError where it is missing or not a tokenizer."""
        file = folder / "tokenizer.json"
        try:
            return cls(file.read_text(encoding="utf-8"), has_types=has_types)
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

    @property
    def special_tokens(self) -> dict[str, str]:
        """Which token has the role pad, unk, cls, sep or mask; without the roles that none has."""
        found = {
            role: next((token for token in tokens if self.token_id(token) is not None), None)
            for role, tokens in SPECIAL_TOKENS.items()
        }
        return {role: token for role, token in found.items() if token is not None}

    def token_id(self, token: str) -> int | None:
        """Id of a token, None where the vocabulary has none."""
        return self._raw.token_to_id(token)

    def encode(self, texts: Sequence[Text], max_tokens: int) -> list[Row]:
        """Rows of at most max_tokens tokens; the end of a longer text is cut, of a pair the longer side."""
        encodings = self._raw.encode_batch_fast(list(texts), add_special_tokens=True)
        return [
            self._row(e) if len(e) <= max_tokens else self._truncated(text, len(e), max_tokens)
            for text, e in zip(texts, encodings, strict=True)
        ]

    def offsets(self, text: str, max_tokens: int) -> list[tuple[int, int]]:
        """Start and end character in `text` of each token of its row; (0, 0) for special tokens."""
        encoding = self._raw.encode(text, add_special_tokens=False)
        encoding.truncate(max_tokens - self._num_special[False])
        offsets: list[tuple[int, int]] = self._raw.post_process(encoding).offsets
        return offsets

    def _truncated(self, text: Text, tokens: int, max_tokens: int) -> Row:
        """Cut before the special tokens go in, so that the last one is still there."""
        parts = [
            self._raw.encode(part, add_special_tokens=False) for part in ((text,) if isinstance(text, str) else text)
        ]
        keep = fit([len(part) for part in parts], max_tokens - self._num_special[len(parts) == 2])
        for part, n in zip(parts, keep, strict=True):
            part.truncate(n)
        whole = self._raw.post_process(parts[0], parts[1] if len(parts) == 2 else None)
        return self._row(whole, truncated=tokens - max_tokens)

    def _row(self, encoding: Encoding, truncated: int = 0) -> Row:
        types = encoding.type_ids if self.has_types else []
        return Row(encoding.ids, types if any(types) else None, truncated)


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
