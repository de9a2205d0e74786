"""Learn a tokenizer from training texts, or cut one down to the pieces that they use.

WordPiece lower-cases and gives each Chinese character a token (BERT's rules); byte-level BPE keeps case
and reads any bytes. Both put [CLS] first and [SEP] after each text, as both families expect.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

import torch
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from model.tokens import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from model.tokens import Text

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD_ID = 0
Kind = Literal["wordpiece", "bpe"]


def learn_tokenizer(texts: Sequence[Text], kind: Kind, vocab_size: int) -> Tokenizer:
    """A tokenizer of at most vocab_size tokens; the same texts give the same tokenizer."""
    parts = [part for text in texts for part in _parts(text)]
    raw = _wordpiece(parts, vocab_size) if kind == "wordpiece" else _bpe(parts, vocab_size)
    raw.add_special_tokens(SPECIAL)
    cls, sep = (raw.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
    )
    return Tokenizer(raw.to_str())


def _wordpiece(texts: Sequence[str], vocab_size: int) -> RawTokenizer:
    """BERT's tokenizer.

    The trainer numbers the ##-letters in the order of a hash table, new in every process, and breaks ties
    by these numbers. They are given to it as special tokens, which it numbers first; only their place in
    the vocabulary is kept.
    """
    raw = RawTokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
    raw.normalizer = normalizers.BertNormalizer(lowercase=True, handle_chinese_chars=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    words = {
        word for text in texts for word, _ in raw.pre_tokenizer.pre_tokenize_str(raw.normalizer.normalize_str(text))
    }
    letters = sorted({f"##{letter}" for word in words for letter in word[1:]})
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=SPECIAL + letters, show_progress=False)
    raw.train_from_iterator(texts, trainer)
    vocab = raw.get_vocab()
    learned = RawTokenizer(models.WordPiece(vocab, unk_token="[UNK]"))  # noqa: S106
    learned.normalizer, learned.pre_tokenizer, learned.decoder = raw.normalizer, raw.pre_tokenizer, raw.decoder
    return learned


def _bpe(texts: Sequence[str], vocab_size: int) -> RawTokenizer:
    """GPT-2's tokenizer."""
    raw = RawTokenizer(models.BPE())
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    return raw


def shrink_tokenizer(tokenizer: Tokenizer, texts: Sequence[Text], vocab_size: int) -> tuple[Tokenizer, Tensor]:
    """Keep the vocab_size pieces of a WordPiece tokenizer that the texts use most.

    Special tokens stay, and ASCII characters and single characters of the texts, inside words too, so that
    any such word can still be spelt; then pieces by how often the texts use them, then by their old id.
    Returns the tokenizer and the old ids (vocab_size,) of the pieces it kept: the rows of the embedding to
    keep. Raises ValueError for other tokenizers, and where vocab_size does not hold what must stay.
    """
    spec = json.loads(tokenizer.to_json())
    if spec["model"]["type"] != "WordPiece":
        raise ValueError(f"vocab_size can shrink only a WordPiece tokenizer: {spec['model']['type']}")
    vocab: dict[str, int] = spec["model"]["vocab"]
    special = {token["content"] for token in spec["added_tokens"]}
    if not special <= vocab.keys():
        raise ValueError("vocab_size can shrink only a tokenizer whose special tokens are in its vocabulary")
    used = Counter(i for row in tokenizer.encode(texts, 1 << 30) for i in row.ids)

    def must_stay(piece: str) -> bool:
        letter = piece.removeprefix("##")
        return piece in special or (len(letter) == 1 and (letter.isascii() or vocab[piece] in used))

    needed = sum(map(must_stay, vocab))
    if vocab_size < needed:
        raise ValueError(f"vocab_size does not hold the {needed} characters that must stay: {vocab_size}")
    by_worth = sorted(vocab, key=lambda piece: (must_stay(piece), used[vocab[piece]], -vocab[piece]), reverse=True)
    kept = sorted(by_worth[:vocab_size], key=vocab.__getitem__)
    new_id = {piece: i for i, piece in enumerate(kept)}
    spec["model"]["vocab"] = new_id
    for token in spec["added_tokens"]:
        token["id"] = new_id[token["content"]]
    _renumber(spec["post_processor"] or {}, new_id)
    return Tokenizer(json.dumps(spec)), torch.tensor([vocab[piece] for piece in kept])


def _renumber(post_processor: dict[str, Any], new_id: dict[str, int]) -> None:
    """Give the special tokens of a post-processor their new ids."""
    for part in post_processor.get("processors", []):  # Sequence
        _renumber(part, new_id)
    for name in ("sep", "cls"):  # BertProcessing: ["[SEP]", 102]
        if name in post_processor:
            token = post_processor[name][0]
            post_processor[name] = [token, new_id[token]]
    for token, entry in post_processor.get("special_tokens", {}).items():  # TemplateProcessing
        entry["ids"] = [new_id[token]]


def _parts(text: Text) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else text
