"""Begin a cache: publish its plan and its tokenizer before the first shard."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pipeline.identity import identity_of
from pipeline.job import Job
from pipeline.plan import Begun, planned_shards, shard_ranges
from pipeline.teacher.model import Teacher
from storage.disk.files import refusals
from storage.disk.hashing import directory_sha256
from storage.errors import ConfigError
from storage.records.identity import MAX_SHARDS
from storage.records.manifest import TOKENIZER_DIR
from storage.writing.destinations import Destination


def begin(job: Job, destination: Destination) -> Begun:
    """Publish the plan, or check that the published plan is this run's. Then publish the tokenizer.

    Raises CacheMismatchError, ConfigError when a manifest cannot hold so many shards, WriteRefusedError or
    TransferError.
    """
    _require_few_shards(job)
    saved_tokenizer = _save_tokenizer(job.teacher, destination.work_dir)
    identity = destination.begin_or_resume(identity_of(job, directory_sha256(saved_tokenizer)))
    tokenizer_files = {f"{TOKENIZER_DIR}/{path.name}": path for path in sorted(saved_tokenizer.iterdir())}
    for name, path in tokenizer_files.items():
        destination.add_file(name, path.read_bytes())
    return Begun(
        identity=identity,
        shards=list(shard_ranges(job.producers, job.config.shard_tokens)),
        tokenizer_files=list(tokenizer_files),
    )


def _require_few_shards(job: Job) -> None:
    """Raise ConfigError when the plan has more shards than a manifest can hold."""
    shard_tokens = job.config.shard_tokens
    num_shards = sum(sum(splits.values()) for splits in planned_shards(job.producers, shard_tokens).values())
    if num_shards > MAX_SHARDS:
        raise ConfigError(
            f"--shard-tokens {shard_tokens} makes {num_shards:,} shards, a cache holds {MAX_SHARDS:,}; "
            f"expected --shard-tokens {-(-shard_tokens * num_shards // MAX_SHARDS):,} or more"
        )


def _save_tokenizer(teacher: Teacher, work_dir: Path) -> Path:
    """Save the tokenizer in a new directory, which no other run uses. Return the directory."""
    with refusals(work_dir):
        directory = Path(tempfile.mkdtemp(dir=work_dir, prefix="tokenizer-"))
    with refusals(directory):
        # Several chat templates would become files in a directory; a cache's tokenizer is files side by side.
        has_one = not isinstance(teacher.tokenizer.chat_template, dict)
        teacher.tokenizer.save_pretrained(directory, save_jinja_files=has_one)
    return directory
