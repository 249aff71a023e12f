"""Summarize a cache, and show its first rows as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from storage.errors import CacheError, ConfigError, RecordError, first_line
from storage.reading.cache import Cache
from storage.records.identity import SPLITS, describe_teacher
from storage.rows.kind import ToText
from storage.rows.kinds import KINDS
from storage.shards.shard import check_file
from storage.text.tokenizer_files import is_unreadable_tokenizer


def summarize(cache: Cache) -> dict[str, Any]:
    """Return the cache's identity without planned_shards, and what its shards add up to.

    begins, ends: the tokens that every segment and prompt begins with, and those that end a text, as people read them.
    kinds: totals by kind and split (shards, rows, tokens, targets, bytes, bytes per token). teacher_perplexity and
    teacher_entropy_nats: by split, None for a split without soft targets, and where they are not known.
    """
    manifest = cache.manifest
    summary = {k: v for k, v in dataclasses.asdict(cache.identity).items() if k != "planned_shards"}
    summary |= {"begins": _named(cache, cache.identity.beginning_ids), "ends": _named(cache, cache.identity.end_ids)}
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
    """Return the summary of `summarize` as text."""
    teacher, data = summary["teacher"], summary["data"]
    lines = [
        f"teacher    {teacher['id']} ({describe_teacher(teacher)})",
        f"data       {data['source']}",
        f"vocabulary {summary['vocab_size']:,} entries, blocks of {summary['block_size']} targets",
    ]
    if teacher.get("isolation", "packed") != "packed":
        lines.append("isolation  the teacher read one document a row, because it cannot read packed documents apart")
    if summary["begins"]:
        lines.append(f"begins     every segment and prompt with {summary['begins']}")
    if summary["ends"]:
        lines.append(f"ends       a text at {summary['ends']}")
    for kind in KINDS.values():
        if kind.name in summary["config"]:
            lines += kind.describe_settings(summary["config"][kind.name], summary["temperatures"])
    for split, perplexity in summary["teacher_perplexity"].items():
        entropy = summary["teacher_entropy_nats"][split]
        if perplexity is not None:
            mean = "mean entropy not known" if entropy is None else f"mean entropy {entropy:.3f} nats"
            lines.append(f"{split:<10} teacher perplexity {perplexity:.2f}, {mean}")
    for kind_name, splits in summary["kinds"].items():
        for split, totals in splits.items():
            lines.append(
                f"{kind_name + ' ' + split:<24}{totals['num_rows']:>10,} rows {totals['num_tokens']:>14,} tokens "
                f"{totals['num_targets']:>14,} targets {totals['shard_bytes']:>15,} bytes "
                f"in {totals['num_shards']} shards, {totals['bytes_per_token']} bytes/token"
            )
    return "\n".join(map(_printable, lines))


def _named(cache: Cache, ids: tuple[int, ...]) -> str:
    """Return tokens with their ids, without the tokens where the cache's tokenizer cannot be read."""
    try:
        to_text = _token_decoder(cache)
    except CacheError:
        return ", ".join(f"id {i}" for i in ids)
    return ", ".join(f"{to_text(i)} (id {i})" for i in ids)


def _printable(line: str) -> str:
    """Escape characters that are not printable: a stranger's cache may hold control characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def render_head(cache: Cache, kind: str, split: str, num_rows: int) -> Iterator[str]:
    """Yield the first `num_rows` rows of one kind and split as text.

    Raise ConfigError when num_rows is negative, RecordError when the cache's tokenizer cannot be loaded, and the errors
    of reading shards.
    """
    if num_rows < 0:
        raise ConfigError(f"--num-rows is {num_rows}, expected 0 or more")
    to_text = _token_decoder(cache)
    shown = 0
    for batch in cache.record_batches(kind, split):
        wanted = batch.slice(0, num_rows - shown)
        shown += wanted.num_rows
        yield from KINDS[kind].show(wanted, to_text)
        if shown >= num_rows:
            return


def _token_decoder(cache: Cache) -> ToText:
    """Return a function from ids to text in quotes; in a cache without a tokenizer.json it lists the ids."""
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
