"""teachonce-cache: look at a cache, verify it, and share, join and shrink caches."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from storage.command import EXIT_BAD_INPUT, run_command
from storage.importing.config import ImportConfig
from storage.progress import Progress, tell
from storage.reading.cache import open_cache
from storage.reading.inspection import render_head, render_summary, summarize
from storage.reading.verification import open_subject
from storage.reading.verification import verify as verify_subject
from storage.remote.directory import require_local
from storage.sharing import archive, transfer
from storage.sharing.compaction import COMPACT_ZSTD_LEVEL
from storage.sharing.compaction import compact as compact_cache
from storage.sharing.merging import merge as merge_caches
from storage.sharing.transfer import NUM_CONNECTIONS


def inspect(cache: Positional[str], json_output: Annotated[bool, tyro.conf.arg(name="json")] = False) -> int:
    """Show what a cache holds.

    Args:
        cache: Directory of the cache, or its URL.
        json_output: Print the manifest's summary as JSON.
    """
    summary = summarize(open_cache(cache))
    print(json.dumps(summary, indent=1, sort_keys=True) if json_output else render_summary(summary))
    return 0


def verify(
    cache: Positional[str], jobs: Annotated[int | None, tyro.conf.arg(metavar="N")] = None, quiet: bool = False
) -> int:
    """Check every byte, row and count of a cache; print one line for each problem and exit with 2 if there is any.

    Args:
        cache: Directory of the cache, or its URL, of which no file is kept here.
        jobs: Number of processes that share the shards. None takes one for each core that may be used, at most one
            for each 128 MiB of shards. At a URL, more than the cores may be faster.
        quiet: Show no progress.
    """
    subject = open_subject(cache)
    with Progress(subject.num_bytes, "verify", "bytes", quiet=quiet) as bar:
        found = verify_subject(subject, bar.update, jobs=jobs)
    for remark in found.remarks:
        tell(f"{subject.place.where}: {remark}")
    for problem in found.problems:
        print(f"teachonce-cache: error: {problem}", file=sys.stderr)
    if found.problems:
        return EXIT_BAD_INPUT
    place, sizes = subject.place.where, f"{found.num_rows:,} rows, {found.num_bytes:,} bytes"
    print(f"{place}: whole: {found.num_shards} shards, {sizes}")
    return 0


def head(
    cache: Positional[str],
    kind: Literal["soft_targets", "samples", "beams"] = "soft_targets",
    split: Literal["train", "validation"] = "train",
    num_rows: int = 2,
) -> int:
    """Show a few rows as text; for soft targets, also the teacher's top alternatives for each token.

    Args:
        cache: Directory of the cache, or its URL.
        kind: Kind of the rows.
        split: Split of the rows.
        num_rows: Number of rows.
    """
    for line in render_head(open_cache(cache), kind, split, num_rows):
        print(line)
    return 0


def report(cache: Positional[str], out: Path = Path("cache.html")) -> int:
    """Write an HTML page that shows a cache in charts: one file that fetches nothing and runs no script.

    Args:
        cache: Directory of the cache, or its URL.
        out: The HTML file to write.
    """
    from storage.report.cache_page import report as write

    page_bytes = write(cache, out)
    print(f"{out}: {page_bytes:,} bytes; open it in a browser")
    return 0


def pack(cache: Positional[Path], file: Positional[Path], quiet: bool = False) -> int:
    """Write a finished cache as one file; packing equal caches gives equal bytes.

    Args:
        cache: Directory of the cache.
        file: The file to write, usually NAME.tar.zst.
        quiet: Show no progress.
    """
    require_local(cache, file)
    with Progress(_cache_bytes(cache), "pack", "bytes", quiet=quiet) as bar:
        packed = archive.pack(cache, file, bar.update)
    print(f"{file}: {packed.archive_bytes:,} bytes, sha256 {packed.sha256}")
    return 0


def unpack(file: Positional[Path], cache: Positional[Path], quiet: bool = False) -> int:
    """Restore a packed cache and check all of it; the directory appears only when the cache is whole.

    Args:
        file: The file that teachonce-cache pack wrote.
        cache: Directory to create; it may exist if it is empty.
        quiet: Show no progress.
    """
    require_local(file, cache)
    total = file.stat().st_size if file.is_file() else None
    with Progress(total, "unpack", "bytes", quiet=quiet) as bar:
        manifest = archive.unpack(file, cache, bar.update).manifest
    print(f"{cache}: unpacked: {len(manifest.shards)} shards, {sum(s.num_rows for s in manifest.shards):,} rows")
    return 0


def push(
    cache: Positional[Path], url: Positional[str], num_connections: int = NUM_CONNECTIONS, quiet: bool = False
) -> int:
    """Copy a cache to a URL, read back and check every byte, and only then mark the copy as complete.

    Args:
        cache: Directory of the cache.
        url: Destination: s3://, gs://, file:// or any other URL that fsspec knows, or hf://datasets/OWNER/NAME.
        num_connections: Number of files to copy at the same time.
        quiet: Show no progress.
    """
    require_local(cache)
    with Progress(2 * _cache_bytes(cache), "push and read back", "bytes", quiet=quiet) as bar:
        done = transfer.push(cache, url, num_connections=num_connections, progress=bar.update)
    print(
        f"{url}: whole: {done.num_shards} shards; {done.num_copied_files} files ({done.num_copied_bytes:,} bytes) "
        f"sent, {done.num_kept_files} were there"
    )
    return 0


def pull(
    url: Positional[str], cache: Positional[Path], num_connections: int = NUM_CONNECTIONS, quiet: bool = False
) -> int:
    """Copy a cache from a URL and check the sha256 of every file on the way.

    Args:
        url: Source: s3://, gs://, file:// or any other URL that fsspec knows, or hf://datasets/OWNER/NAME.
        cache: Directory for the cache: new, empty, or with an unfinished pull of the same cache.
        num_connections: Number of files to copy at the same time.
        quiet: Show no progress.
    """
    require_local(cache)
    with Progress(None, "pull", "bytes", quiet=quiet) as bar:
        done = transfer.pull(url, cache, num_connections=num_connections, progress=bar.update)
    print(
        f"{cache}: whole: {done.num_shards} shards; {done.num_copied_files} files ({done.num_copied_bytes:,} bytes) "
        f"fetched, {done.num_kept_files} were there"
    )
    return 0


def merge(caches: Positional[tuple[Path, ...]], out: Path, quiet: bool = False) -> int:
    """Join finished caches that one teacher made from different data; hard-link shards where possible, else copy them.

    Args:
        caches: Directories of two or more caches with the same teacher, tokenizer and settings.
        out: Directory of the merged cache; the same command resumes an interrupted run.
        quiet: Show no progress.
    """
    require_local(*caches, out)
    total = sum(shard.shard_bytes for cache in caches for shard in open_cache(cache).manifest.shards)
    with Progress(total, "merge", "bytes", quiet=quiet) as bar:
        merged = merge_caches(caches, out, bar.update).manifest
    num_rows = sum(shard.num_rows for shard in merged.shards)
    print(f"{out}: merged from {len(caches)} caches: {len(merged.shards)} shards, {num_rows:,} rows, {total:,} bytes")
    return 0


def compact(cache: Positional[Path], out: Path, zstd_level: int = COMPACT_ZSTD_LEVEL, quiet: bool = False) -> int:
    """Compress the shards of a cache harder, into a new cache with the same rows.

    Args:
        cache: Directory of the cache, which is not changed.
        out: Directory of the new cache; the same command resumes an interrupted run.
        zstd_level: 1 to 22; a higher level takes longer to write and equally long to read.
        quiet: Show no progress.
    """
    require_local(cache, out)
    before = sum(shard.shard_bytes for shard in open_cache(cache).manifest.shards)
    kept: list[int] = []
    with Progress(before, "compact", "bytes", quiet=quiet) as bar:

        def keep(num_bytes: int) -> None:
            kept.append(num_bytes)
            bar.skip(num_bytes)

        compacted = compact_cache(cache, out, zstd_level, bar.update, keep)
    after = sum(shard.shard_bytes for shard in compacted.manifest.shards)
    found = f"; {len(kept)} of {len(compacted.manifest.shards)} shards were there and stay as they were" if kept else ""
    print(f"{out}: {after:,} bytes, {1 - after / max(before, 1):.1%} fewer than {cache} with {before:,}{found}")
    return 0


def export(
    cache: Positional[Path],
    out: Path,
    format: Literal["topk-parquet"] = "topk-parquet",
    alignment: Literal["next", "same"] = "next",
    ids_column: str = "ids",
    logprobs_column: str = "logprobs",
    top_k: Annotated[int | None, tyro.conf.arg(metavar="K")] = None,
    quiet: bool = False,
) -> int:
    """Write soft targets for trainers that know only top-k lists, and say what is lost.

    Args:
        cache: Directory of the cache.
        out: Directory to make, with a Parquet file for each shard and the tokenizer.
        format: topk-parquet: columns input_ids, labels (-100 where nothing is taught), ids and logprobs.
        alignment: What the lists at position t are about: next, token t + 1, as a model's logits; same, token t.
        ids_column: Name of the column with a list of ids per position.
        logprobs_column: Name of the column with their log-probabilities.
        top_k: Give every position this many entries, the most probable ones, filled up by ids with -1e9; None gives
            each position what the cache has.
        quiet: Show no progress.
    """
    from storage.sharing.topk_export import export_topk
    from storage.sharing.topk_rows import TopkLayout

    require_local(cache, out)
    layout = TopkLayout(alignment=alignment, ids_column=ids_column, logprobs_column=logprobs_column, top_k=top_k)
    with Progress(_cache_bytes(cache), "export", "bytes", quiet=quiet) as bar:
        lost = export_topk(cache, out, layout, bar.update)
    tell(f"{out}: {lost.describe()}")
    print(f"{out}: {lost.num_targets:,} targets as {format}")
    return 0


def import_cache(config: Annotated[ImportConfig, tyro.conf.arg(name="")]) -> int:
    """Make a cache of targets that another tool wrote: dumps of vLLM and its like, top-k Parquet, DistillKit's sets."""
    from storage.importing.run import import_cache as run

    done = run(config)
    for remark in done.remarks:
        tell(f"{config.source}: {remark}")
    num_rows = sum(shard.num_rows for shard in done.cache.manifest.shards)
    found = done.found
    print(
        f"{config.out}: imported {len(found.num_tokens):,} texts, {found.num_targets:,} targets of at most "
        f"{found.top_k} ids: {len(done.cache.manifest.shards)} shards, {num_rows:,} rows"
    )
    return 0


def _cache_bytes(cache: Path) -> int:
    manifest = open_cache(cache).manifest
    return sum(s.shard_bytes for s in manifest.shards) + sum(f.file_bytes for f in manifest.files)


def main() -> None:
    """Run teachonce-cache."""
    commands: dict[str, Callable[..., int]] = {
        "inspect": inspect,
        "verify": verify,
        "head": head,
        "report": report,
        "pack": pack,
        "unpack": unpack,
        "push": push,
        "pull": pull,
        "merge": merge,
        "compact": compact,
        "import": import_cache,
        "export": export,
    }
    run_command(lambda: tyro.extras.subcommand_cli_from_dict(commands, prog="teachonce-cache", description=__doc__))
