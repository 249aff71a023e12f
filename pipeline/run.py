"""Run precompute from beginning to end with the chosen engine.

A run that is killed at any point and then started again ends with the same bytes as an undisturbed run.
"""

from __future__ import annotations

import dataclasses
import datetime
import tempfile
from collections.abc import Callable
from pathlib import Path

from pipeline.beginning import begin
from pipeline.config import PrecomputeConfig
from pipeline.corpus.notices import tokenization_notices
from pipeline.engines.local import write_shards
from pipeline.engines.ray_driver import tokenize_on_ray, write_on_ray
from pipeline.framing import framing_remarks
from pipeline.identity import facts_of
from pipeline.job import Job, lay_out, load_teacher_and_source, open_text, tokenize
from pipeline.plan import Begun, TokenizedText, summary_of
from pipeline.teacher.loading import load_reader
from pipeline.work.work_directory import work_directory
from storage.disk.files import write_file
from storage.errors import WriteRefusedError
from storage.progress import tell
from storage.records.identity import SPLITS, CacheIdentity
from storage.records.manifest import Manifest
from storage.writing.destinations import Destination, open_destination

_DATE_NAME = "chat_date"


def precompute(config: PrecomputeConfig) -> Manifest:
    """Run the teacher over the data and return the manifest of the finished cache. Keep shards that are committed.

    A finished cache of this run that cannot be written, as on a read-only disk, is returned as it is.

    Raises DataError, TeacherError, CacheMismatchError, ConfigError, WriteRefusedError or TransferError.
    """
    try:
        return _run(config)
    except (FileNotFoundError, WriteRefusedError):
        # A read-only disk, or a run whose lock did not exclude this one has finished and cleaned up.
        destination = open_destination(config.out, config.work_dir)
        finished = destination.finished()
        if finished is None:
            raise
    config = as_begun(config, destination)
    destination.require_same_facts(facts_of(load_teacher_and_source(config)))
    return finished


def _run(config: PrecomputeConfig) -> Manifest:
    write = {"local": _write_here, "ray": _write_on_ray}[config.engine]
    destination = open_destination(config.out, config.work_dir)
    destination.require_own()
    config = as_begun(config, destination)
    with work_directory(destination):
        _note_date(config, destination.work_dir)
        begun = write(config, destination)
        return destination.finish(begun.identity, begun.tokenizer_files)


def tokenize_only(config: PrecomputeConfig) -> str:
    """Tokenize the text, without the teacher's weights or a GPU. Return what was made and what to do next.

    The tokens stay in the work directory, where the run finds them. Raises DataError, TeacherError, ConfigError or
    WriteRefusedError.
    """
    destination = open_destination(config.out, config.work_dir)
    destination.require_own()
    if destination.finished() is not None:
        return f"{destination.where}: complete, there is nothing to tokenize"
    config = as_begun(config, destination)
    make = {"local": _tokenize_here, "ray": tokenize_on_ray}[config.engine]
    with work_directory(destination, keeps_tokens=True):
        _note_date(config, destination.work_dir)
        made = make(config, destination)
    for line in tokenization_notices(config, made.facts):
        tell(line)
    counts = ", ".join(
        f"{split} {made.num_tokens[split]:,} tokens in {made.num_documents[split]:,} documents" for split in SPLITS
    )
    return f"tokenized into {destination.work_dir}: {counts}; the same line without --only runs the teacher on them"


def _tokenize_here(config: PrecomputeConfig, destination: Destination) -> TokenizedText:
    return summary_of(tokenize(open_text(load_reader(config), config), destination.work_dir))


def as_begun(config: PrecomputeConfig, destination: Destination) -> PrecomputeConfig:
    """Return the settings with what they leave to a cache that was begun: the date of chats, and rounded scalars."""
    begun = destination.published_plan()
    if begun and config.soft_targets.scalar_mantissa_bits is None:
        bits = begun.scalar_mantissa_bits
        config = dataclasses.replace(
            config, soft_targets=dataclasses.replace(config.soft_targets, scalar_mantissa_bits=bits)
        )
    return _with_chat_date(config, begun, destination.work_dir)


def _with_chat_date(config: PrecomputeConfig, begun: CacheIdentity | None, work_dir: Path) -> PrecomputeConfig:
    """Return the settings with the date that chat templates print: the given one, the plan's, the tokens', or today's.

    It is chosen here, before any process of the run reads a clock of its own.
    """
    if config.chat_date is not None or not config.may_hold_chats:
        return config
    chosen = begun.data.get("chat_date") if begun else _noted_date(work_dir)
    return dataclasses.replace(config, chat_date=str(chosen or datetime.date.today()))


def _noted_date(work_dir: Path) -> str | None:
    """Return the date of the run whose tokens lie in the work directory; None if none is noted."""
    noted = work_dir / _DATE_NAME
    return noted.read_text() if noted.exists() else None


def _note_date(config: PrecomputeConfig, work_dir: Path) -> None:
    """Note the date of chats, so that a run that goes on tomorrow finds the tokens of today."""
    if config.chat_date is not None:
        write_file(work_dir / _DATE_NAME, config.chat_date.encode())


def _write_here(config: PrecomputeConfig, destination: Destination) -> Begun:
    loaded = load_teacher_and_source(config)
    destination.require_same_facts(facts_of(loaded))
    if not config.quiet:
        for remark in framing_remarks(loaded):
            tell(remark)
    job = lay_out(loaded, destination.work_dir)
    begun = begin(job, destination)
    _tell(config, begun)
    write_shards(config, destination, job.producers, begun)
    return begun


def _write_on_ray(config: PrecomputeConfig, destination: Destination) -> Begun:
    begun = write_on_ray(config, destination)
    _tell(config, begun)  # what a worker prints reaches nobody
    return begun


def _tell(config: PrecomputeConfig, begun: Begun) -> None:
    """Print on standard error what a user should know of how the text was tokenized."""
    for line in tokenization_notices(config, begun.identity.data):
        tell(line)


def plan_only(config: PrecomputeConfig, report: Callable[[Job], str]) -> str:
    """Load the teacher, tokenize the text, and return `report` of the job. Write only to a temporary directory.

    Raises DataError, TeacherError, ConfigError, WriteRefusedError or TransferError, and CacheMismatchError when a
    different cache was begun at --out.
    """
    destination = open_destination(config.out, config.work_dir)
    config = as_begun(config, destination)
    with tempfile.TemporaryDirectory() as directory:
        loaded = load_teacher_and_source(config)
        destination.require_same_facts(facts_of(loaded))
        return "\n".join([*begun_lines(destination), report(lay_out(loaded, Path(directory)))])


def begun_lines(destination: Destination) -> list[str]:
    """Return a line for --plan on what is made of a cache that was begun; none if it was not."""
    begun = destination.published_plan()
    if begun is None:
        return []
    keys = begun.planned_keys()
    destination.look_up(keys)
    records = [record for key in keys if (record := destination.read_commit(key))]
    made = f"{len(records):,} of {len(keys):,} shards, {sum(record.shard_bytes for record in records) / 1e6:,.1f} MB"
    num_tokens = sum(begun.data["num_tokens"].values())
    return [f"{'begun':<14}{destination.where} holds {made}, of {num_tokens:,} tokens; what follows is the whole run"]


def announce(config: PrecomputeConfig, manifest: Manifest) -> None:
    """Print on standard error where the cache is, its number of shards and their bytes."""
    where = open_destination(config.out, config.work_dir).where
    total = sum(shard.shard_bytes for shard in manifest.shards)
    tell(f"{where}: complete, {len(manifest.shards)} shards, {total:,} bytes")
