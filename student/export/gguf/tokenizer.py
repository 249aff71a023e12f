"""A byte-level BPE tokenizer as llama.cpp's "gpt2" vocabulary."""

from __future__ import annotations

import json
from typing import Any

from student.errors import NotExportableError
from student.model.framing import Framing


def check_tokenizer(tokenizer: Any, framing: Framing, name: str) -> None:
    """Raise NotExportableError unless llama.cpp would cut text into the same tokens.

    The tokenizer must be a BPE over bytes with GPT-2's split pattern, such as that of GPT-2 or of
    scripts/demo/make_teacher.py.
    """
    stated = _stated(tokenizer)
    model, splitter = stated["model"], stated["pre_tokenizer"] or {}
    is_gpt2 = (
        model["type"] == "BPE"
        and not model.get("byte_fallback")
        and stated["normalizer"] is None
        and splitter.get("type") == "ByteLevel"
        and splitter.get("use_regex", True)
        and not splitter.get("add_prefix_space")
    )
    if not is_gpt2:
        raise NotExportableError(name, "gguf", "has a tokenizer other than GPT-2's byte-level BPE")
    if not model["merges"]:
        raise NotExportableError(name, "gguf", "has a tokenizer without merges, which llama.cpp does not read")
    if tokenizer.eos_token_id is None:
        # Without an end of text in the file, llama.cpp takes llama's id, which is another token in this vocabulary.
        raise NotExportableError(name, "gguf", "has a tokenizer without an end-of-text token, which llama.cpp needs")
    if len(framing.beginning_ids) > 1:
        raise NotExportableError(name, "gguf", "begins texts with several tokens, and llama.cpp with one at most")
    if len(framing.end_ids) > 2:
        raise NotExportableError(name, "gguf", "ends texts with three tokens or more, and a GGUF file states two")


def add_tokenizer(writer: Any, tokenizer: Any, framing: Framing, vocab_size: int) -> None:
    """Write tokens, their types, merges and special ids. Mark the output's rows without a token as unused."""
    from gguf import TokenType

    stated = _stated(tokenizer)
    added = {token["id"]: token for token in stated["added_tokens"]}
    text_of = {i: text for text, i in tokenizer.get_vocab().items()}
    tokens, types = [], []
    for i in range(vocab_size):
        tokens.append(text_of.get(i, f"[PAD{i}]"))
        if i not in text_of:
            types.append(TokenType.UNUSED)
        elif i in added:
            types.append(TokenType.CONTROL if added[i]["special"] else TokenType.USER_DEFINED)
        else:
            types.append(TokenType.NORMAL)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in stated["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    end, *further_ends = framing.end_ids
    bos = (*framing.beginning_ids, tokenizer.bos_token_id)[0]
    writer.add_bos_token_id(end if bos is None else bos)
    writer.add_eos_token_id(end)
    for token_id in further_ends:
        writer.add_eot_token_id(token_id)
    writer.add_add_bos_token(bool(framing.beginning_ids))


def _stated(tokenizer: Any) -> dict[str, Any]:
    """Return the content of tokenizer.json."""
    stated: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return stated
