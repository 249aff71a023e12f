"""Small tokenizers of each family, trained on the spot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

_TEXT = [
    "the cat sat on the mat. it's what the teacher didn't know, isn't it?",
    "a student may learn from it alone; wasn't that 12 or 345? café, naïve, 猫 and 🙂!",
    "they've said that I'm here. we're unable, won't you, 'n' roll",
]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(**names: Any) -> Any:
    """GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        _TEXT, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|end|>", "<|other|>"])
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **({"eos_token": "<|end|>"} | names))


def sentencepiece_bpe(*, adds_bos: bool = True, **names: Any) -> Any:
    """Llama's: a mark at the beginning of a text, byte fallback, and BOS before every text."""
    pieces = {piece for text in _TEXT for word in text.split() for piece in ("▁" + word, word)}
    characters = sorted(
        {char for text in _TEXT[:2] for char in text.replace(" ", "▁") if char.isascii() or char == "▁"}
    )
    vocab: dict[str, int] = {}
    for token in ["<unk>", "<s>", "</s>", "<|eot|>", *_BYTES, *characters]:
        vocab.setdefault(token, len(vocab))
    merges = _merges(sorted(pieces, key=lambda piece: (len(piece), piece))[:60], vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _with_specials(tokenizer, vocab, adds_bos, names)


def unigram(*, adds_bos: bool = True, **names: Any) -> Any:
    """T5's and XGLM's: pieces with log-probabilities, and a mark at the beginning of each word."""
    characters = sorted({char for text in _TEXT for char in text.replace(" ", "▁")})
    words = sorted({"▁" + word for text in _TEXT for word in text.split()})
    vocab = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("<|eot|>", 0.0)]
    vocab += [(char, -6.0) for char in sorted({"▁", *characters})]
    vocab += [(word, -5.0) for word in words if len(word) > 2]
    vocab += [(byte, -20.0) for byte in _BYTES]
    tokenizer = Tokenizer(models.Unigram(vocab, 0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return _with_specials(tokenizer, {token: i for i, (token, _) in enumerate(vocab)}, adds_bos, names)


def word_piece(**names: Any) -> Any:
    """BERT's, with clean-up of spaces."""
    letters = sorted({char for text in _TEXT for char in text if not char.isspace()})
    words = ["cat", "sat", "the", "it", "un", "able", "does", "n", "t", "s", "m", "re", "ve"]
    tokens = ["[UNK]", "[CLS]", "[SEP]", *words, *letters, *(f"##{token}" for token in (*words, *letters))]
    vocab: dict[str, int] = {}
    for token in tokens:
        vocab.setdefault(token, len(vocab))
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    settings = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "clean_up_tokenization_spaces": True}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(settings | names))


FAMILIES: dict[str, Callable[[], Any]] = {
    "byte_level": byte_level,
    "sentencepiece_bpe": sentencepiece_bpe,
    "unigram": unigram,
    "word_piece": word_piece,
}


def _merges(pieces: list[str], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Merges that build each piece from the left; new tokens are added to the vocabulary."""
    merges: list[tuple[str, str]] = []
    for piece in pieces:
        if not set(piece) <= vocab.keys():
            continue
        for end in range(2, len(piece) + 1):
            if piece[:end] not in vocab:
                vocab[piece[:end]] = len(vocab)
                merges.append((piece[: end - 1], piece[end - 1]))
    return merges


def _with_specials(tokenizer: Any, vocab: dict[str, int], adds_bos: bool, names: dict[str, Any]) -> Any:
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>", "<|eot|>")])
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocab["<s>"])]
        )
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(settings | names))
