"""Text of the study: docstrings of Python and of all installed packages, tokenized by a BPE trained on them."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.sources.stdlib_corpus import docstring_documents, stdlib_documents
from scripts.support.teachers import train_byte_level_bpe
from storage.draws import hash_permutation

_NUM_HELD_OUT = 512


def prepare(out: Path, vocab_size: int, max_megabytes: float) -> dict[str, int]:
    """Write OUT/tokens.npy (uint16) and OUT/text.json. Return the content of OUT/text.json."""
    documents = _gather(max_megabytes)
    tokenizer = train_byte_level_bpe(documents, vocab_size)
    ids = [np.array([*encoding.ids, 0], dtype=np.uint16) for encoding in tokenizer.encode_batch(documents)]
    out.mkdir(parents=True, exist_ok=True)
    tokens = np.concatenate(ids)
    np.save(out / "tokens.npy", tokens)
    facts = {
        "vocab_size": tokenizer.get_vocab_size(),
        "num_documents": len(documents),
        "num_tokens": len(tokens),
        "num_characters": sum(len(document) for document in documents),
    }
    (out / "text.json").write_text(json.dumps(facts, indent=1))
    return facts


def read_facts(out: Path) -> dict[str, int]:
    """Return the facts about the text that `prepare` wrote."""
    facts: dict[str, int] = json.loads((out / "text.json").read_text())
    return facts


def read_blocks(out: Path, block_size: int) -> tuple[Tensor, Tensor]:
    """Return training and held-out blocks, both [N, T + 1].

    The last twentieth of the blocks is held out, of which at most the first 512 are returned.
    """
    tokens = torch.from_numpy(np.load(out / "tokens.npy").astype(np.int64))
    blocks = tokens[: len(tokens) // (block_size + 1) * (block_size + 1)].view(-1, block_size + 1)
    num_train = int(len(blocks) * 0.95)
    return blocks[:num_train], blocks[num_train : num_train + _NUM_HELD_OUT]


def batch_indices(num_blocks: int, batch_blocks: int, *, seed: int, steps: int) -> Iterator[Tensor]:
    """Yield the block indices of each step. Every epoch is shuffled."""
    per_epoch = num_blocks // batch_blocks
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = torch.from_numpy(hash_permutation(num_blocks, seed, epoch))
        yield order[place * batch_blocks : (place + 1) * batch_blocks]


def _gather(max_megabytes: float) -> list[str]:
    documents = [*stdlib_documents(), *docstring_documents(Path(sysconfig.get_paths()["purelib"]))]
    chosen, size = [], 0
    for index in hash_permutation(len(documents), 0):
        if size < max_megabytes * 1e6:
            chosen.append(documents[index])
            size += len(documents[index])
    return chosen
