"""A tokenizer in a GGUF file: tokens, their types, merges or scores, special ids."""

from __future__ import annotations

import json
from typing import Any

from student.errors import NotExportableError
from student.export.gguf.byte_level import read_byte_level
from student.export.gguf.sentencepiece import byte_token, read_sentencepiece
from student.export.gguf.vocabulary import Vocabulary, refusal
from student.model.framing import Framing

# Scores that llama.cpp's converter gives. Neither is ever compared: no merge makes such a token.
_ADDED_SCORE, _UNUSED_SCORE = -1000.0, -10000.0


def check_tokenizer(tokenizer: Any, framing: Framing, name: str) -> None:
    """Raise NotExportableError unless llama.cpp would cut text into the same tokens."""
    _read(tokenizer, name)
    if tokenizer.eos_token_id is None:
        # Without an end of text in the file, llama.cpp takes llama's id, which is another token in this vocabulary.
        raise NotExportableError(name, "gguf", "has a tokenizer without an end-of-text token, which llama.cpp needs")
    if len(framing.beginning_ids) > 1:
        raise NotExportableError(name, "gguf", "begins texts with several tokens, and llama.cpp with one at most")
    if len(framing.end_ids) > 2:
        raise NotExportableError(name, "gguf", "ends texts with three tokens or more, and a GGUF file states two")


def add_tokenizer(writer: Any, tokenizer: Any, framing: Framing, vocab_size: int, name: str) -> None:
    """Write the tokenizer of a student that check_tokenizer lets pass. Rows without a token are marked as unused."""
    vocabulary = _read(tokenizer, name)
    text_of = {i: text for text, i in tokenizer.get_vocab().items()}
    types = _types(tokenizer, vocabulary, text_of)
    texts = [text_of.get(i, f"[PAD{i}]") for i in range(vocab_size)]
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(texts)
    writer.add_token_types([types.get(i, _token_type("UNUSED")) for i in range(vocab_size)])
    if vocabulary.model == "llama":
        writer.add_token_scores([_score(i, text, vocabulary, types) for i, text in enumerate(texts)])
        writer.add_add_space_prefix(vocabulary.adds_space)
    else:
        writer.add_token_merges(vocabulary.merges)
    _add_special_ids(writer, tokenizer, framing)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _read(tokenizer: Any, name: str) -> Vocabulary:
    if not tokenizer.is_fast:
        raise refusal(name, "it is written in Python, expected one with a tokenizer.json")
    stated = _stated(tokenizer)
    for token in stated["added_tokens"]:
        if not token["special"] and (token["lstrip"] or token["rstrip"] or token["single_word"]):
            raise refusal(name, f"its added token {token['content']!r} takes spaces beside it, or whole words alone")
    return (read_sentencepiece if stated["model"].get("byte_fallback") else read_byte_level)(stated, name)


def _types(tokenizer: Any, vocabulary: Vocabulary, text_of: dict[int, str]) -> dict[int, int]:
    """Return the type of each id that has a token."""
    types = dict.fromkeys(text_of, _token_type("NORMAL"))
    if vocabulary.model == "llama":
        types |= {tokenizer.get_vocab()[byte_token(byte)]: _token_type("BYTE") for byte in range(256)}
    for token in _stated(tokenizer)["added_tokens"]:
        types[token["id"]] = _token_type("CONTROL" if token["special"] else "USER_DEFINED")
    if vocabulary.model == "llama" and tokenizer.unk_token_id is not None:
        types[tokenizer.unk_token_id] = _token_type("UNKNOWN")
    return types


def _token_type(name: str) -> int:
    from gguf import TokenType

    return int(TokenType[name])


def _score(i: int, text: str, vocabulary: Vocabulary, types: dict[int, int]) -> float:
    if i not in types:
        return _UNUSED_SCORE
    return vocabulary.scores.get(text, _ADDED_SCORE)


def _add_special_ids(writer: Any, tokenizer: Any, framing: Framing) -> None:
    end, *further_ends = framing.end_ids
    bos = (*framing.beginning_ids, tokenizer.bos_token_id)[0]
    writer.add_bos_token_id(end if bos is None else bos)
    writer.add_eos_token_id(end)
    for token_id in further_ends:
        writer.add_eot_token_id(token_id)
    writer.add_add_bos_token(bool(framing.beginning_ids))
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)


def _stated(tokenizer: Any) -> dict[str, Any]:
    """Return the content of tokenizer.json."""
    stated: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return stated
