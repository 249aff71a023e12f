"""Caches made of numbers alone: no teacher, no torch, a few kilobytes each; and the tools to damage them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow as pa
import pytest

from storage.disk.files import write_file
from storage.disk.hashing import sha256_file
from storage.records.commits import write_commit, write_plan
from storage.records.dataset_card import dataset_card
from storage.records.identity import SPLITS, CacheIdentity, FileRecord, ShardKey, ShardRecord
from storage.records.manifest import Manifest, write_manifest
from storage.rows import beams, samples, soft_targets
from storage.rows.beams import BeamRow, Candidate
from storage.rows.kinds import KINDS
from storage.rows.samples import SampleRow
from storage.rows.soft_targets import SoftTargetRows
from storage.shards.shard import write_shard
from tests.places import ROOT
from tests.storage.object_store import FakeHub

# What they assert is told as what a test asserts is.
pytest.register_assert_rewrite(
    "tests.storage.broken_rows",
    "tests.storage.reading.readers",
    "tests.storage.sharing.merges",
    "tests.storage.stopping",
)

VOCAB_SIZE = 50
BLOCK_SIZE = 6
RECORD_BATCH_ROWS = 4
TEMPERATURES = (1.0, 2.0)
ROWS_PER_SHARD = {
    "soft_targets": {"train": [8, 7, 5], "validation": [3]},
    "samples": {"train": [4, 2]},
    "beams": {"train": [5], "validation": [1]},
}


def soft_target_rows(
    num_rows: int,
    *,
    first_row_id: int = 0,
    vocab_size: int = VOCAB_SIZE,
    block_size: int = BLOCK_SIZE,
    head: int = 3,
    tail: int = 2,
    temperatures: tuple[float, ...] = TEMPERATURES,
    marks_wanted: bool = False,
    seed: int = 0,
) -> SoftTargetRows:
    """Valid random rows whose values are exact in float16; every third row packs two documents.

    marks_wanted: about half of the targets are unwanted, in every fourth row all.
    """
    rng = np.random.default_rng([seed, first_row_id])
    shape = (num_rows, block_size)
    segment_lengths = [
        np.array([block_size + 1] if r % 3 or block_size < 2 else [2, block_size - 1]) for r in range(num_rows)
    ]
    head_size, tail_size = np.full(shape, head), np.full(shape, tail)
    tail_logprob, entropy, label_logprob = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    ids, logprobs = [], []
    is_wanted = np.random.default_rng([seed, first_row_id, 1]).random(shape) < (0.5 if marks_wanted else 1)
    if marks_wanted:
        is_wanted[3::4] = False
    for r in range(num_rows):
        document = np.repeat(np.arange(len(segment_lengths[r])), segment_lengths[r])
        for t in range(block_size):
            is_wanted[r, t] &= document[t] == document[t + 1]
            if not is_wanted[r, t]:
                head_size[r, t] = tail_size[r, t] = 0
                continue
            chosen = rng.choice(vocab_size, size=head + tail, replace=False)
            ids += [np.sort(chosen[:head]), np.sort(chosen[head:])]
            masses = rng.dirichlet(np.ones(head + (head < vocab_size)))
            logprobs.append(np.log(masses[:head]))
            tail_logprob[r, t] = np.log(masses[head]) if head < vocab_size else -np.inf
            entropy[r, t] = rng.uniform(0, np.log(vocab_size))
            label_logprob[r, t] = -rng.exponential()
    token = np.uint16 if vocab_size < 65536 else np.uint32
    return SoftTargetRows(
        row_id=np.arange(first_row_id, first_row_id + num_rows),
        input_ids=rng.integers(0, vocab_size, size=(num_rows, block_size + 1)).astype(token),
        segment_lengths=segment_lengths,
        is_wanted=is_wanted if marks_wanted else None,
        head_size=head_size,
        tail_size=tail_size,
        ids=np.concatenate([*ids, []]).astype(token),
        logprobs=np.concatenate([*logprobs, []]).astype(np.float16),
        tail_logprob=tail_logprob.astype(np.float16),
        entropy=entropy.astype(np.float16),
        label_logprob=label_logprob.astype(np.float16),
        tempered_tail_logmass={
            t: (rng.normal(size=shape) * (is_wanted | (not marks_wanted))).astype(np.float16)
            for t in temperatures if t != 1.0
        },
    )  # fmt: skip


def sample_rows(
    num_rows: int, *, first_row_id: int = 0, vocab_size: int = VOCAB_SIZE, seed: int = 0
) -> list[SampleRow]:
    """Valid random texts, exact in float16."""
    rng = np.random.default_rng([seed, first_row_id])
    rows = []
    for row_id in range(first_row_id, first_row_id + num_rows):
        length = int(rng.integers(1, 6))
        rows.append(
            SampleRow(
                row_id=row_id,
                prompt_id=row_id // 2,
                sample_index=row_id % 2,
                prompt_ids=rng.integers(0, vocab_size, size=int(rng.integers(1, 4))),
                completion_ids=rng.integers(0, vocab_size, size=length),
                completion_logprobs=-rng.exponential(size=length).astype(np.float16),
                text=f"text {row_id} → “é”\n\t🦉",
                finish_reason=("stop", "length")[row_id % 2],
                seed=2**64 - 1 - row_id,
            )
        )
    return rows


def beam_rows(num_rows: int, *, first_row_id: int = 0, vocab_size: int = VOCAB_SIZE, seed: int = 0) -> list[BeamRow]:
    """Valid random candidates, exact in float32, one to three per prompt."""
    rng = np.random.default_rng([seed, first_row_id])
    rows = []
    for row_id in range(first_row_id, first_row_id + num_rows):
        scores = sorted((-rng.exponential(size=1 + row_id % 3)).astype(np.float32).tolist(), reverse=True)
        lengths = rng.integers(1, 5, size=len(scores)).tolist()
        rows.append(
            BeamRow(
                row_id=row_id,
                prompt_id=row_id,
                prompt_ids=rng.integers(0, vocab_size, size=int(rng.integers(1, 4))),
                candidates=[
                    Candidate(
                        candidate_ids=rng.integers(0, vocab_size, size=length),
                        score=score,
                        sum_logprob=score * length,
                        finish_reason=("length", "stop")[c % 2],
                        text=f"candidate {row_id}.{c} ∎",
                    )
                    for c, (score, length) in enumerate(zip(scores, lengths, strict=True))
                ],
            )
        )
    return rows


def encode_rows(kind: str, num_rows: int, first_row_id: int, identity: CacheIdentity, seed: int = 0) -> pa.RecordBatch:
    """One record batch of valid random rows."""
    schema = identity.schema(kind)
    match kind:
        case "soft_targets":
            rows = soft_target_rows(
                num_rows,
                first_row_id=first_row_id,
                vocab_size=identity.vocab_size,
                block_size=identity.block_size,
                temperatures=identity.temperatures,
                marks_wanted=soft_targets.has_is_wanted(identity.config.get("soft_targets", {})),
                seed=seed,
            )
            return soft_targets.encode(rows, schema, 10)
        case "samples":
            return samples.encode(
                sample_rows(num_rows, first_row_id=first_row_id, vocab_size=identity.vocab_size, seed=seed), schema
            )
        case _:
            return beams.encode(
                beam_rows(num_rows, first_row_id=first_row_id, vocab_size=identity.vocab_size, seed=seed), schema
            )


def small_identity(
    rows_per_shard: dict[str, dict[str, list[int]]] = ROWS_PER_SHARD, **changes: object
) -> CacheIdentity:
    """What a small cache says about itself."""
    settings: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "block_size": BLOCK_SIZE,
        "record_batch_rows": RECORD_BATCH_ROWS,
        "temperatures": TEMPERATURES,
        "teacher": {
            "id": "nobody",
            "revision": None,
            "architecture": "NoModel",
            "num_parameters": 0,
            "context_length": 64,
            "dtype": "float32",
            "weights_bytes": 0,
            "weights_sha256": "0" * 64,
        },
        "tokenizer": {"size": VOCAB_SIZE, "sha256": "0" * 64, "eos_token_id": None},
        "data": {
            "source": "nothing",
            "fingerprint": "0" * 64,
            "licence": "cc0-1.0",
            "packing": "none",
            "num_documents": 0,
            "num_tokens": {"train": 0, "validation": 0},
        },
        "config": {"soft_targets": {"top_k": 3, "tail_weight": 0.25}},
        "software": {"teachonce": "0.1.0"},
        "planned_shards": {
            kind: {split: len(shards) for split, shards in splits.items()} for kind, splits in rows_per_shard.items()
        },
    }
    return CacheIdentity(**(settings | changes))


def write_small_cache(
    directory: Path, rows_per_shard: dict[str, dict[str, list[int]]] = ROWS_PER_SHARD, seed: int = 0, **changes: object
) -> Path:
    """Write a finished cache whose shards hold the given numbers of rows."""
    identity = small_identity(rows_per_shard, **changes)
    write_plan(directory, identity)
    records: list[ShardRecord] = []
    for kind in KINDS:
        for split in SPLITS:
            sizes = rows_per_shard.get(kind, {}).get(split, [])
            for index, num_rows in enumerate(sizes):
                first = sum(sizes[:index])
                key = ShardKey(kind=kind, split=split, index=index, num_shards=len(sizes))
                starts = range(0, num_rows, identity.record_batch_rows)
                batches = [
                    encode_rows(kind, min(identity.record_batch_rows, num_rows - start), first + start, identity, seed)
                    for start in starts
                ]
                records.append(write_shard(directory, identity, key, first, batches))
                write_commit(directory, records[-1])
    card = directory / "README.md"
    write_file(card, dataset_card(identity, tuple(records)).encode())
    files = (FileRecord(path=card.name, file_bytes=card.stat().st_size, sha256=sha256_file(card)),)
    write_manifest(directory, Manifest(identity=identity, shards=tuple(records), files=files))
    return directory


def seal(content: dict[str, Any]) -> bytes:
    """A record's bytes with the checksum that belongs to its content, however hostile."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps(content | {"record_sha256": hashlib.sha256(canonical.encode()).hexdigest()}).encode()


def edit_record(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a record in place and give it the checksum that belongs to it."""
    content = json.loads(path.read_bytes())
    content.pop("record_sha256")
    change(content)
    path.write_bytes(seal(content))


def edit_identity(cache_dir: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the identity in plan.json and manifest.json alike."""
    for name in ("plan.json", "manifest.json"):
        edit_record(cache_dir / name, change)


def edit_shard_record(cache_dir: Path, path: str, **changes: object) -> None:
    """Change a shard's record in its commit and in the manifest alike."""
    index = next(i for i, s in enumerate(_manifest(cache_dir)["shards"]) if s["path"] == path)
    kind, name = path.split("/")
    edit_record(
        cache_dir / "commits" / f"{kind}-{name.partition('-of-')[0]}.json", lambda content: content.update(changes)
    )

    def change(manifest: dict[str, Any]) -> None:
        manifest["shards"][index].update(changes)
        with contextlib.suppress(ArithmeticError, TypeError):
            manifest.update(_means(manifest["shards"]))

    edit_record(cache_dir / "manifest.json", change)


def accept_shard(cache_dir: Path, path: str, **changes: object) -> None:
    """Make the records speak of the bytes that now stand at `path`."""
    content = (cache_dir / path).read_bytes()
    edit_shard_record(cache_dir, path, shard_bytes=len(content), sha256=hashlib.sha256(content).hexdigest(), **changes)


def replace_shard(
    cache_dir: Path, path: str, schema: pa.Schema, batches: list[pa.RecordBatch], **changes: object
) -> None:
    """Put other record batches at `path`, with records that agree."""
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(cache_dir / path), "wb") as file, pa.ipc.new_file(file, schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    accept_shard(cache_dir, path, **changes)


def edit_column(batch: pa.RecordBatch, name: str, edit: Callable[[list[Any]], object]) -> pa.RecordBatch:
    """The batch with one column's values, as Python lists, changed by `edit`."""
    values = batch.column(name).to_pylist()
    edit(values)
    arrays = {field.name: batch.column(field.name) for field in batch.schema}
    arrays[name] = pa.array(values, type=batch.schema.field(name).type)
    return pa.RecordBatch.from_arrays(list(arrays.values()), schema=batch.schema)


def _means(shards: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """The teacher's perplexity and entropy as the manifest states them, by split."""
    means: dict[str, dict[str, float | None]] = {"teacher_perplexity": {}, "teacher_entropy_nats": {}}
    for split in SPLITS:
        chosen = [shard for shard in shards if shard["path"].startswith(f"soft_targets/{split}-")]
        num_targets = sum(shard["num_targets"] for shard in chosen)
        loss, entropy = (
            math.fsum(shard[name] for shard in chosen) / num_targets if num_targets else None
            for name in ("label_nll_sum_nats", "entropy_sum_nats")
        )
        means["teacher_perplexity"][split] = None if loss is None else math.exp(loss)
        means["teacher_entropy_nats"][split] = entropy
    return means


def _manifest(cache_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((cache_dir / "manifest.json").read_bytes())
    return content


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """What builds valid rows, batches, identities and caches."""
    return SimpleNamespace(
        soft_target_rows=soft_target_rows,
        sample_rows=sample_rows,
        beam_rows=beam_rows,
        batch=encode_rows,
        identity=small_identity,
        cache=write_small_cache,
    )


@pytest.fixture(scope="session")
def forge() -> SimpleNamespace:
    """What changes records, shards and columns so that their checksums still agree."""
    return SimpleNamespace(
        seal=seal,
        record=edit_record,
        identity=edit_identity,
        shard_record=edit_shard_record,
        accept_shard=accept_shard,
        replace_shard=replace_shard,
        column=edit_column,
    )


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run code in a process of its own with 4 GiB of memory and ten seconds, for what could eat the machine."""

    def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        limited = f"import resource; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n{code}"
        command = [sys.executable, "-c", limited, *map(str, arguments)]
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, -1, "", "still running after ten seconds")

    return run


@pytest.fixture(scope="session")
def _pristine_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_cache(tmp_path_factory.mktemp("small") / "cache")


@pytest.fixture
def small_cache(_pristine_cache: Path, tmp_path: Path) -> Path:
    """The directory of a small finished cache that the test may damage."""
    return Path(shutil.copytree(_pristine_cache, tmp_path / "cache"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub on loopback that the real client talks to, without its Xet protocol and its waits."""
    made = FakeHub()
    client = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: client(endpoint=made.url, token=False))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    yield made
    made.stop()
