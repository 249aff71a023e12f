"""A summary of a cache, and a readable look at its first rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.errors import ConfigError, RecordError, first_line, is_unreadable_tokenizer
from storage.reading.cache import Cache
from storage.records.identity import SPLITS
from storage.rows import beams, samples, soft_targets
from storage.rows.kinds import KINDS
from storage.shards.shard import check_file

_ALTERNATIVES = 4
_TOKENS_SHOWN = 24

Decode = Callable[[Any], str]


def summarize(cache: Cache) -> dict[str, Any]:
    """The manifest without its lists of shards and files, with their totals instead."""
    manifest = cache.manifest
    summary = {k: v for k, v in dataclasses.asdict(cache.identity).items() if k != "planned_shards"}
    summary["kinds"] = {
        kind: {split: totals for split in SPLITS if (totals := _totals(cache, kind, split))} for kind in KINDS
    }
    summary["teacher_perplexity"] = {split: manifest.teacher_perplexity(split) for split in SPLITS}
    summary["teacher_entropy_nats"] = {split: manifest.teacher_entropy_nats(split) for split in SPLITS}
    return summary


def _totals(cache: Cache, kind: str, split: str) -> dict[str, float]:
    shards = cache.manifest.shards_of(kind, split)
    if not shards:
        return {}
    totals: dict[str, float] = {"num_shards": len(shards)}
    for name in ("num_rows", "num_tokens", "num_targets", "shard_bytes"):
        totals[name] = sum(getattr(shard, name) for shard in shards)
    totals["bytes_per_token"] = round(totals["shard_bytes"] / max(totals["num_tokens"], 1), 2)
    return totals


def render_summary(summary: dict[str, Any]) -> str:
    """The summary for people."""
    teacher, data = summary["teacher"], summary["data"]
    lines = [
        f"teacher    {teacher['id']} ({teacher['architecture']}, {teacher['num_parameters']:,} parameters, "
        f"{teacher['dtype']})",
        f"data       {data['source']}",
        f"vocabulary {summary['vocab_size']:,} entries, blocks of {summary['block_size']} targets",
    ]
    if "soft_targets" in summary["config"]:
        lines.append(_about_targets(summary["config"]["soft_targets"], summary["temperatures"]))
    for split, perplexity in summary["teacher_perplexity"].items():
        if perplexity is not None:
            entropy = summary["teacher_entropy_nats"][split]
            lines.append(f"{split:<10} teacher perplexity {perplexity:.2f}, mean entropy {entropy:.3f} nats")
    for kind, splits in summary["kinds"].items():
        for split, totals in splits.items():
            lines.append(
                f"{kind + ' ' + split:<24}{totals['num_rows']:>10,} rows {totals['num_tokens']:>14,} tokens "
                f"{totals['shard_bytes']:>15,} bytes in {totals['num_shards']} shards, "
                f"{totals['bytes_per_token']} bytes/token"
            )
    return "\n".join(map(_printable, lines))


def _about_targets(settings: dict[str, Any], temperatures: Sequence[float]) -> str:
    """What a loss can have of the soft targets."""
    first, served = f"{temperatures[0]:g}", ", ".join(f"{t:g}" for t in sorted({1.0, *temperatures}))
    weight = settings.get("tail_weight")
    tail = "the mass of the rest" if weight is None else f"draws of weight {weight:g} at temperature {first}"
    return f"targets    the top {settings.get('top_k')} and {tail}; losses at temperature {served}"


def _printable(line: str) -> str:
    """The line with control characters of a stranger's cache escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def render_head(cache: Cache, kind: str, split: str, num_rows: int) -> Iterator[str]:
    """The first rows of one kind as text."""
    if num_rows < 0:
        raise ConfigError(f"--num-rows is {num_rows}, expected 0 or more")
    decode = _token_decoder(cache)
    shown = 0
    for batch in cache.record_batches(kind, split):
        wanted = batch.slice(0, num_rows - shown)
        shown += wanted.num_rows
        match kind:
            case "soft_targets":
                yield from _render_soft_targets(wanted, decode)
            case "samples":
                for sample in samples.decode(wanted):
                    yield _render_sample(sample, decode)
            case _:
                for beam in beams.decode(wanted):
                    yield _render_beam(beam, decode)
        if shown >= num_rows:
            return


def _token_decoder(cache: Cache) -> Decode:
    path = cache.tokenizer_dir / "tokenizer.json"
    listed = [file for file in cache.manifest.files if cache.path / file.path == path]
    if not listed:
        return lambda ids: repr(list(np.atleast_1d(ids)))
    check_file(cache.path, listed[0])
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except BaseException as error:
        if not is_unreadable_tokenizer(error):
            raise
        raise RecordError(str(path), f"not a tokenizer ({first_line(error)})") from error
    return lambda ids: repr(tokenizer.decode([int(i) for i in np.atleast_1d(ids)], skip_special_tokens=False))


def _render_soft_targets(batch: pa.RecordBatch, decode: Decode) -> Iterator[str]:
    rows = soft_targets.decode(batch)
    is_head = soft_targets.head_mask(rows)
    num_head_before: NDArray[np.int64] = np.cumsum(is_head) - is_head
    sizes = rows.head_size + rows.tail_size
    first_entry = (np.cumsum(sizes.reshape(-1)) - sizes.reshape(-1)).reshape(sizes.shape)
    valid = rows.is_valid_target
    for r, row_id in enumerate(rows.row_id):
        yield f"row {row_id}: {decode(rows.input_ids[r])}"
        for t in islice(np.flatnonzero(valid[r]), _TOKENS_SHOWN):
            start, head = first_entry[r, t], rows.head_size[r, t]
            ids = rows.ids[start : start + head]
            first_logprob = num_head_before[start] if head else 0
            logprobs = rows.logprobs[first_logprob : first_logprob + head].astype(np.float32)
            best = np.argsort(-logprobs, kind="stable")[:_ALTERNATIVES]
            alternatives = "  ".join(f"{decode(ids[b])} {np.exp(logprobs[b]):.3f}" for b in best)
            label_probability = np.exp(np.float32(rows.label_logprob[r, t]))
            yield (
                f"  {t:>4} {decode(rows.input_ids[r, t]):>14} → {decode(rows.input_ids[r, t + 1]):<14}"
                f" {label_probability:.3f} | {alternatives} | tail {np.exp(np.float32(rows.tail_logprob[r, t])):.3f}"
                f" in {rows.tail_size[r, t]} draws, entropy {rows.entropy[r, t]:.2f} nats"
            )


def _render_sample(row: samples.SampleRow, decode: Decode) -> str:
    return (
        f"row {row.row_id}, prompt {row.prompt_id}, sample {row.sample_index}: {decode(row.prompt_ids)}\n"
        f"  → {row.text!r} ({len(row.completion_ids)} tokens, {row.finish_reason},"
        f" {row.completion_logprobs.astype(np.float32).mean():.2f} nats/token)"
    )


def _render_beam(row: beams.BeamRow, decode: Decode) -> str:
    candidates = "\n".join(
        f"  {c.score:8.4f} {c.text!r} ({len(c.candidate_ids)} tokens, {c.finish_reason})" for c in row.candidates
    )
    return f"row {row.row_id}, prompt {row.prompt_id}: {decode(row.prompt_ids)}\n{candidates}"
