"""teachonce-cache: look at a cache and prove it whole."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from storage.cache import open_cache
from storage.command import EXIT_BAD_INPUT, run_command
from storage.inspection import render_head, render_summary, summarize
from storage.progress import Progress
from storage.verification import verify_cache


def inspect(cache: Positional[Path], json_output: Annotated[bool, tyro.conf.arg(name="json")] = False) -> int:
    """Say what is in a cache.

    Args:
        cache: Directory of the cache.
        json_output: Print the manifest's summary as JSON.
    """
    summary = summarize(open_cache(cache))
    print(json.dumps(summary, indent=1, sort_keys=True) if json_output else render_summary(summary))
    return 0


def verify(cache: Positional[Path], quiet: bool = False) -> int:
    """Check every byte, row and count of a cache; exit 2 and one line per problem when something is wrong.

    Args:
        cache: Directory of the cache.
        quiet: Show no progress.
    """
    manifest = open_cache(cache).manifest
    total = sum(s.shard_bytes for s in manifest.shards) + sum(f.file_bytes for f in manifest.files)
    with Progress(total, "verify", "bytes", quiet=quiet) as bar:
        found = verify_cache(cache, bar.update)
    for problem in found.problems:
        print(f"teachonce-cache: damaged: {problem}", file=sys.stderr)
    if found.problems:
        return EXIT_BAD_INPUT
    print(f"{cache}: whole: {found.num_shards} shards, {found.num_rows:,} rows, {found.num_bytes:,} bytes")
    return 0


def head(
    cache: Positional[Path],
    kind: Literal["soft_targets", "samples", "beams"] = "soft_targets",
    split: Literal["train", "validation"] = "train",
    num_rows: int = 2,
) -> int:
    """Show a few rows as text, with the teacher's top alternatives per token.

    Args:
        cache: Directory of the cache.
        kind: Which rows.
        split: Which split.
        num_rows: How many rows.
    """
    for line in render_head(open_cache(cache), kind, split, num_rows):
        print(line)
    return 0


def main() -> None:
    """Entry point."""
    commands: dict[str, Callable[..., int]] = {"inspect": inspect, "verify": verify, "head": head}
    run_command(lambda: tyro.extras.subcommand_cli_from_dict(commands, prog="teachonce-cache", description=__doc__))
