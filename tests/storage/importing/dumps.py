"""Files as vLLM, OpenAI-compatible servers and trainers of top-k lists write them, of a made-up teacher."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

TextOf = Callable[[int], str]


class MadeUpTeacher:
    """A language model whose next token depends on the last one alone."""

    def __init__(self, vocab_size: int, seed: int = 0) -> None:
        self.vocab_size, self._seed = vocab_size, seed

    def logprobs(self, token_id: int) -> NDArray[np.float64]:
        """Log-probabilities [V] after a token, as a server's float32."""
        logits = 4 * np.random.default_rng([self._seed, token_id]).standard_normal(self.vocab_size)
        return (logits - np.logaddexp.reduce(logits)).astype(np.float32).astype(np.float64)

    def text(self, num_tokens: int, number: int) -> list[int]:
        """Ids that it would write."""
        rng = np.random.default_rng([self._seed, number, 1])
        ids = [int(rng.integers(self.vocab_size))]
        while len(ids) < num_tokens:
            ids.append(int(rng.choice(self.vocab_size, p=_normal(np.exp(self.logprobs(ids[-1]))))))
        return ids

    def top(self, token_id: int, top_k: int) -> NDArray[np.int64]:
        """The most probable ids after a token, best first."""
        return np.argsort(-self.logprobs(token_id), kind="stable")[:top_k]


def _normal(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return p / p.sum()


def vllm_row(teacher: MadeUpTeacher, ids: Sequence[int], top_k: int, text_of: TextOf = lambda _: "") -> dict[str, Any]:
    """What vLLM answers with prompt_logprobs=top_k: the best ids, and the prompt's own token beside them."""
    listed: list[dict[str, Any] | None] = [None]
    for previous, own in itertools.pairwise(ids):
        logprobs = teacher.logprobs(previous)
        chosen = dict.fromkeys([own, *teacher.top(previous, top_k).tolist()])
        listed.append(
            {
                str(i): {
                    "logprob": float(logprobs[i]),
                    "rank": int((logprobs > logprobs[i]).sum()) + 1,
                    "decoded_token": text_of(i),
                }
                for i in chosen
            }
        )
    return {"model": "made-up", "prompt_token_ids": list(ids), "prompt_logprobs": listed}


def completion_logprobs(
    teacher: MadeUpTeacher, ids: Sequence[int], top_k: int, text_of: TextOf, *, num_before: int = 0
) -> dict[str, Any]:
    """`logprobs` of /v1/completions for ids[num_before:]; echoed from the first on when num_before is 0."""
    places = range(num_before, len(ids))
    after = [None if place == 0 else teacher.logprobs(ids[place - 1]) for place in places]
    return {
        "tokens": [text_of(ids[place]) for place in places],
        "token_logprobs": [None if p is None else float(p[ids[place]]) for p, place in zip(after, places, strict=True)],
        "top_logprobs": [
            None if p is None else {text_of(int(i)): float(p[i]) for i in teacher.top(ids[place - 1], top_k)}
            for p, place in zip(after, places, strict=True)
        ],
    }


def chat_logprobs(
    teacher: MadeUpTeacher, ids: Sequence[int], top_k: int, text_of: TextOf, *, num_before: int
) -> dict[str, Any]:
    """`logprobs` of /v1/chat/completions for ids[num_before:]."""

    def entry(token_id: int, logprobs: NDArray[np.float64]) -> dict[str, Any]:
        text = text_of(token_id)
        return {"token": text, "logprob": float(logprobs[token_id]), "bytes": list(text.encode())}

    return {
        "content": [
            entry(ids[place], logprobs)
            | {"top_logprobs": [entry(int(i), logprobs) for i in teacher.top(ids[place - 1], top_k)]}
            for place in range(num_before, len(ids))
            for logprobs in [teacher.logprobs(ids[place - 1])]
        ]
    }


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table_row(teacher: MadeUpTeacher, ids: Sequence[int], top_k: int) -> dict[str, Any]:
    """Top-k lists at position t about token t + 1, for all but the last position."""
    best = [teacher.top(previous, top_k) for previous in ids[:-1]]
    return {
        "input_ids": list(ids),
        "ids": [chosen.tolist() for chosen in best],
        "logprobs": [teacher.logprobs(i)[chosen].tolist() for i, chosen in zip(ids[:-1], best, strict=True)],
    }


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], **types: Any) -> Path:
    table = pa.Table.from_pylist(list(rows))
    for name, column_type in types.items():
        table = table.set_column(table.schema.get_field_index(name), name, table.column(name).cast(column_type))
    pq.write_table(table, path)
    return path
