"""Fuzzes everything that reads a cache: records, shards, streams and packed caches, with checksums that agree.

    python -m scripts.fuzz.fuzz_cache --target arrow --seconds 60
    python -m scripts.fuzz.fuzz_cache --target arrow --reproduce FILE

With atheris (`pip install atheris`) the coverage of storage/ guides the mutations; without it they are random ones
of the same inputs. An input may be read, and then all rules of the format hold, or be refused with an error of ours.
Anything else is a failure: another exception, a crash of a library, a second too many, a gigabyte too much.

An input of `manifest` and `commit` is the record's JSON; of `arrow` and `stream` a byte that chooses the kind and the
shard's bytes; of `archive` a byte and the archive's bytes, or, when the byte is odd, the tar inside it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import importlib
import importlib.util
import itertools
import json
import math
import multiprocessing
import os
import random
import re
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

# storage is imported where it is used: atheris has to watch the import.

Name = Literal["manifest", "commit", "arrow", "stream", "archive"]

_GOLDEN = Path(__file__).parents[1] / "tests" / "storage" / "golden" / "cache"
_KINDS = ("soft_targets", "samples", "beams")
_SECONDS_PER_INPUT = 60.0  # a hang, not a slow machine
_MOST_ARROW_BYTES = 512 << 20
_MOST_ADDRESS_BYTES = 8 << 30
_MOST_INPUT_BYTES = 1 << 16
_TRIES_PER_NOTE = 50

_INTS = (
    0,
    1,
    -1,
    2,
    7,
    8,
    -8,
    64,
    255,
    2**15,
    2**16,
    2**30,
    2**31 - 1,
    -(2**31),
    2**32,
    2**40,
    2**62,
    2**63 - 1,
    -(2**63),
)
_JSON_VALUES: tuple[Any, ...] = (
    *_INTS, None, True, False, 2**70, 10**400, 0.25, 1.5, -0.0, 1e308, 5e-324, math.nan, math.inf,
    "", "x", "..", "/", "a" * 300, "\0", "\ud800", "0" * 64, [], {}, [[]], {"": {}},
)  # fmt: skip

# What a zstd frame of teachonce-cache begins with, and the skippable frame with its sha256 at the end.
_FRAME_HEADER = bytes.fromhex("28b52ffd0478")
_TRAILER_HEADER = bytes.fromhex("502a4d1820000000")
_RAW_BLOCK_BYTES = 1 << 17


@dataclass(frozen=True, kw_only=True)
class FuzzConfig:
    """What to fuzz, and for how long."""

    target: Name
    """What reads the inputs."""
    seconds: float = 60.0
    """How long."""
    seed: int = 0
    """Of the mutations."""
    cache: Path = _GOLDEN
    """Good cache that inputs are made from."""
    failures: Path = Path("fuzz-failures")
    """Directory for inputs that failed."""
    reproduce: Path | None = None
    """Run this input alone, in this process."""
    engine: Literal["auto", "atheris", "random"] = "auto"
    """Auto takes atheris where it is installed."""


@dataclass(frozen=True)
class Target:
    """What to fuzz: good inputs, how to change one, and how to read one: an error of ours, or all rules hold."""

    seeds: list[bytes]
    mutate: Callable[[bytes, random.Random], bytes]
    read: Callable[[bytes], None]

    def outcome(self, data: bytes) -> str:
        """Read an input and name the outcome: "read", or the class of our error."""
        import pyarrow as pa

        from storage.errors import TeachonceError

        try:
            self.read(data)
            found, message = "read", ""
        except TeachonceError as error:
            found, message = type(error).__name__, str(error)
        assert "\n" not in message, message
        most_bytes = pa.default_memory_pool().max_memory()
        assert most_bytes <= _MOST_ARROW_BYTES, f"Arrow allocated {most_bytes} bytes"
        return found


class FuzzFailureError(Exception):
    """An input that was neither read nor refused; the message says what happened instead."""


# Targets


def make_target(name: Name, cache_dir: Path) -> Target:
    """The target `name`; `cache_dir` is a good cache that it may damage."""
    make = {
        "manifest": _manifest_target,
        "commit": _commit_target,
        "arrow": _arrow_target,
        "stream": _stream_target,
        "archive": _archive_target,
    }[name]
    return make(cache_dir)


def _manifest_target(cache_dir: Path) -> Target:
    from storage import open_cache
    from storage.errors import TeachonceError
    from storage.reading.inspection import render_summary, summarize
    from storage.records.manifest import MANIFEST_NAME, PLAN_NAME, read_plan

    only_manifest = ("shards", "files", "teacher_perplexity", "teacher_entropy_nats")

    def read(data: bytes) -> None:
        content = _parsed(data)
        (cache_dir / MANIFEST_NAME).write_bytes(seal(content) if isinstance(content, dict) else data)
        if isinstance(content, dict):
            (cache_dir / PLAN_NAME).write_bytes(seal({k: v for k, v in content.items() if k not in only_manifest}))
            with contextlib.suppress(TeachonceError):
                read_plan(cache_dir)
        cache = open_cache(cache_dir)
        assert_manifest_rules(cache.manifest)
        json.dumps(summarize(cache))
        render_summary(summarize(cache)).encode()

    return Target([_content(cache_dir / MANIFEST_NAME)], mutate_json, read)


def _commit_target(cache_dir: Path) -> Target:
    from storage import open_cache
    from storage.records.manifest import read_commit

    shards = open_cache(cache_dir).manifest.shards
    key = shards[0].key

    def read(data: bytes) -> None:
        content = _parsed(data)
        (cache_dir / key.commit_path).write_bytes(seal(content) if isinstance(content, dict) else data)
        record = read_commit(cache_dir, key)
        assert record is not None
        assert record.key == key
        assert min(record.num_rows, record.num_tokens, record.num_targets, record.shard_bytes) >= 0

    seeds = [_content(cache_dir / shard.key.commit_path) for shard in shards]
    return Target(seeds, mutate_json, read)


def _arrow_target(cache_dir: Path) -> Target:
    from storage import open_cache
    from storage.shards.shard import Shard, batch_stats

    cache = open_cache(cache_dir)
    records = {kind: cache.manifest.shards_of(kind, "train")[0] for kind in _KINDS}
    path = cache_dir / "fuzzed.arrow"

    def read(data: bytes) -> None:
        kind, content = _kind_and_content(data)
        path.write_bytes(content)
        record = dataclasses.replace(records[kind], shard_bytes=len(content), sha256=_sha256(content))
        shard = Shard(path, cache.identity, record)
        for index in range(shard.num_record_batches):
            batch = shard.read_batch(index)
            batch_stats(batch, kind)
            assert_row_rules(batch, kind, cache.identity.vocab_size)

    return Target(_shard_seeds([cache_dir / records[kind].path for kind in _KINDS]), mutate_tail, read)


def _stream_target(cache_dir: Path) -> Target:
    from storage import RowStream, open_cache
    from storage.records.manifest import MANIFEST_NAME

    manifest = json.loads(_content(cache_dir / MANIFEST_NAME))
    first = {kind: next(s for s in manifest["shards"] if s["path"].startswith(f"{kind}/train")) for kind in _KINDS}
    good = {kind: (cache_dir / shard["path"]).read_bytes() for kind, shard in first.items()}

    def read(data: bytes) -> None:
        kind, content = _kind_and_content(data)
        path = cache_dir / first[kind]["path"]
        path.write_bytes(content)
        original = dict(first[kind])
        first[kind].update(shard_bytes=len(content), sha256=_sha256(content))
        (cache_dir / MANIFEST_NAME).write_bytes(seal(manifest))
        first[kind].update(original)
        try:
            cache = open_cache(cache_dir)
            stream = RowStream(cache, kind, "train", batch_rows=2, seed=0)
            seen = [batch.rows for batch in itertools.islice(stream.batches(), -(-stream.num_rows // 2))]
        finally:
            path.write_bytes(good[kind])
        for rows in seen:
            assert_row_rules(rows, kind, cache.identity.vocab_size)
        row_ids = [row_id for rows in seen for row_id in rows.column("row_id").to_pylist()][: stream.num_rows]
        assert sorted(row_ids) == list(range(stream.num_rows)), row_ids

    return Target(_shard_seeds([cache_dir / first[kind]["path"] for kind in _KINDS]), mutate_tail, read)


def _archive_target(cache_dir: Path) -> Target:
    import zstandard

    from storage import verify_cache
    from storage.sharing.archive import pack, unpack

    work = cache_dir.parent
    packed, unpacked = work / "packed.tar.zst", work / "unpacked"
    pack(cache_dir, packed)
    archive = packed.read_bytes()
    tar = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj().decompress(archive)

    def read(data: bytes) -> None:
        content = _wrapped(data[1:]) if data[:1] and data[0] % 2 else data[1:]
        packed.write_bytes(content)
        before = {path.name for path in work.iterdir()}
        shutil.rmtree(unpacked, ignore_errors=True)
        try:
            unpack(packed, unpacked)
        except BaseException:
            assert {path.name for path in work.iterdir()} == before - {unpacked.name}, "something was left behind"
            raise
        assert verify_cache(unpacked).problems == (), "what was unpacked is not whole"

    return Target([bytes([0]) + archive, bytes([1]) + tar], mutate_tail, read)


def _wrapped(tar: bytes) -> bytes:
    """A tar in the frame that unpack expects, stored in blocks as it is, with the right checksums."""
    import xxhash

    starts = range(0, max(len(tar), 1), _RAW_BLOCK_BYTES)
    blocks = [tar[start : start + _RAW_BLOCK_BYTES] for start in starts]
    stored = b"".join(
        (len(block) << 3 | (index == len(blocks) - 1)).to_bytes(3, "little") + block
        for index, block in enumerate(blocks)
    )
    checksum = (xxhash.xxh64(tar).intdigest() & 0xFFFFFFFF).to_bytes(4, "little")
    frame = _FRAME_HEADER + stored + checksum
    return frame + _TRAILER_HEADER + hashlib.sha256(frame).digest()


def seal(content: dict[str, Any]) -> bytes:
    """A record's bytes with the checksum that belongs to its content."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps(content | {"record_sha256": _sha256(canonical.encode())}).encode()


def _content(path: Path) -> bytes:
    content = json.loads(path.read_bytes())
    del content["record_sha256"]
    return json.dumps(content).encode()


def _parsed(data: bytes) -> Any:
    try:
        content = json.loads(data)
        json.dumps(content, sort_keys=True)
    except (ValueError, RecursionError):
        return None
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _shard_seeds(paths: list[Path]) -> list[bytes]:
    """A shard of each kind, and again with buffers as they are: there a changed byte changes a value, or an offset."""
    from scripts.support.arrow_file import stored_as_it_is

    contents = [path.read_bytes() for path in paths]
    return [
        bytes([index]) + form(content) for form in (bytes, stored_as_it_is) for index, content in enumerate(contents)
    ]


def _kind_and_content(data: bytes) -> tuple[str, bytes]:
    return _KINDS[data[0] % len(_KINDS) if data else 0], data[1:]


# What must hold of all that was read, said anew without a line of storage


def assert_manifest_rules(manifest: Any) -> None:
    """Shards are the planned ones and follow each other; numbers are in range."""
    identity = manifest.identity
    assert 1 <= identity.vocab_size <= 2**31
    assert 1 <= identity.block_size <= 2**20
    assert 1 <= identity.record_batch_rows <= 2**16
    assert all(math.isfinite(t) and t > 0 for t in identity.temperatures)
    planned = [
        f"{kind}/{split}-{index:05d}-of-{count:05d}.arrow"
        for kind in _KINDS
        for split in ("train", "validation")
        for count in [identity.planned_shards.get(kind, {}).get(split, 0)]
        for index in range(count)
    ]
    assert [shard.path for shard in manifest.shards] == planned
    rows_before: Counter[str] = Counter()
    for shard in manifest.shards:
        place = shard.path.partition("-")[0]
        assert shard.first_row_id == rows_before[place] or "sources" in identity.data
        rows_before[place] += shard.num_rows
        assert shard.num_rows >= 0
        assert re.fullmatch("[0-9a-f]{64}", shard.sha256)
    assert max(rows_before.values(), default=0) < 2**63
    tail_weight = identity.config.get("soft_targets", {}).get("tail_weight")
    assert tail_weight is None or 0 < tail_weight < 1


def assert_row_rules(batch: Any, kind: str, vocab_size: int) -> None:
    """The rules of a row (storage/FORMAT.md), with plain loops."""
    check = {"soft_targets": _assert_block, "samples": _assert_sample, "beams": _assert_beam}[kind]
    for row in batch.to_pylist():
        check(row, vocab_size)


def _assert_block(row: dict[str, Any], vocab_size: int) -> None:
    lengths = row["segment_lengths"]
    assert min(lengths) > 0
    assert sum(lengths) == len(row["input_ids"])
    assert max(row["input_ids"]) < vocab_size
    segments = [segment for segment, length in enumerate(lengths) for _ in range(length)]
    ids, logprobs = iter(row["ids"]), iter(row["logprobs"])
    for t in range(len(segments) - 1):
        head = [next(ids) for _ in range(row["head_size"][t])]
        tail = [next(ids) for _ in range(row["tail_size"][t])]
        assert segments[t] == segments[t + 1] or not head + tail
        assert head == sorted(head)
        assert tail == sorted(tail)
        assert len({*head, *tail}) == len(head + tail)
        assert all(i < vocab_size for i in head + tail)
        head_logprobs = [next(logprobs) for _ in head]
        assert all(-math.inf < logprob <= 0 for logprob in head_logprobs)
        assert row["tail_logprob"][t] <= 0
        assert -math.inf < row["label_logprob"][t] <= 0
        assert 0 <= row["entropy"][t] <= math.log(vocab_size) * 1.01 + 0.01
        if segments[t] == segments[t + 1]:
            mass = sum(map(math.exp, head_logprobs)) + math.exp(row["tail_logprob"][t])
            assert abs(mass - 1) < 0.1, mass
    assert next(ids, None) is None
    assert next(logprobs, None) is None


def _assert_sample(row: dict[str, Any], vocab_size: int) -> None:
    assert row["prompt_ids"]
    assert row["completion_ids"]
    assert max(row["prompt_ids"] + row["completion_ids"]) < vocab_size
    assert len(row["completion_logprobs"]) == len(row["completion_ids"])
    assert all(-math.inf < logprob <= 0 for logprob in row["completion_logprobs"])
    assert row["finish_reason"] in ("stop", "length")


def _assert_beam(row: dict[str, Any], vocab_size: int) -> None:
    lengths = row["candidate_lengths"]
    assert row["prompt_ids"]
    assert min(lengths) > 0
    assert sum(lengths) == len(row["candidate_ids"])
    assert max(row["prompt_ids"] + row["candidate_ids"]) < vocab_size
    assert all(len(row[name]) == len(lengths) for name in ("scores", "sum_logprobs", "finish_reasons", "texts"))
    assert row["scores"] == sorted(row["scores"], reverse=True)
    assert all(-math.inf < value <= 0 for value in row["scores"] + row["sum_logprobs"])
    assert {*row["finish_reasons"]} <= {"stop", "length"}
    ids = iter(row["candidate_ids"])
    assert len({tuple(next(ids) for _ in range(length)) for length in lengths}) == len(lengths)


# Mutations


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Keys dropped, renamed and retyped, items repeated and exchanged; now and then a byte."""
    content = _parsed(data)
    if content is None or rng.random() < 0.05:
        return mutate_bytes(data, rng)
    try:
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            places = list(containers(content))
            if not places:
                break
            _mutate_container(rng.choice(places), rng)
        return json.dumps(content).encode()
    except RecursionError:  # nested too deeply to be copied
        return data


def containers(content: Any) -> Iterator[Any]:
    """Every object and list that holds something, however deep."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list) and value:
            yield value
            waiting += value.values() if isinstance(value, dict) else value


def _mutate_container(container: Any, rng: random.Random) -> None:
    key = rng.choice(list(container) if isinstance(container, dict) else range(len(container)))
    value, action = container[key], rng.random()
    if action < 0.4:
        container[key] = copy.deepcopy(rng.choice(_JSON_VALUES))  # or it would become part of itself
    elif action < 0.55 and type(value) in (int, float) and abs(value) < 2**64:
        container[key] = value + rng.choice((-1, 1, 0.5, value))
    elif action < 0.7:
        del container[key]
    elif isinstance(container, list):
        container.insert(rng.randrange(len(container) + 1), copy.deepcopy(value))
    elif action < 0.85:
        container[rng.choice(("", key + " ", key.upper(), "surprise"))] = container.pop(key)
    else:
        container[key] = copy.deepcopy(container[rng.choice(list(container))])


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bits, bytes and numbers changed, pieces copied, cut out and put in."""
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at, action = rng.randrange(len(changed)), rng.random()
        if action < 0.3:
            changed[at] ^= 1 << rng.randrange(8)
        elif action < 0.5:
            changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif action < 0.9:
            width, number_format = rng.choice(((2, "<H"), (4, "<I"), (8, "<Q")))
            at -= at % width
            number = struct.pack(number_format, rng.choice(_INTS) % (1 << 8 * width))
            changed[at : at + width] = number[: len(changed) - at]
        elif action < 0.96:
            length, source = rng.randrange(1, 64), rng.randrange(len(changed))
            piece = changed[source : source + length]
            changed[at : at + len(piece)] = piece
        elif action < 0.98:
            del changed[at : at + rng.randrange(1, 16)]
            changed = changed or bytearray(1)
        else:
            changed[at:at] = rng.randbytes(rng.randrange(1, 16))
    return bytes(changed)


def mutate_tail(data: bytes, rng: random.Random) -> bytes:
    """Like mutate_bytes; the first byte, which chooses what the others are, stays."""
    return data[:1] + mutate_bytes(data[1:], rng)


# A process that may crash


class Worker:
    """A process that reads inputs one by one, so that a crash or a hang of a library is seen and not suffered."""

    def __init__(self, name: Name, cache_dir: Path) -> None:
        self.cache_dir = cache_dir
        self._name = name
        self._start()

    def run(self, data: bytes) -> str:
        """The outcome's name; raises FuzzFailureError."""
        try:
            self._connection.send_bytes(data)
            answered = self._connection.poll(_SECONDS_PER_INPUT)
            failure, text = self._connection.recv() if answered else (True, f"no answer in {_SECONDS_PER_INPUT:.0f} s")
        except (EOFError, ConnectionError):
            self.process.join()
            answered, failure, text = False, True, f"the process died with exit code {self.process.exitcode}"
        if not answered:
            self.close()
            self._start()
        if failure:
            raise FuzzFailureError(text)
        return str(text)

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self._connection.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self._name, self.cache_dir), daemon=True)
        self.process.start()
        theirs.close()


def _serve(connection: Connection, name: Name, cache_dir: Path) -> None:
    """Answer each input with whether it failed, and the outcome or the traceback."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_ADDRESS_BYTES, _MOST_ADDRESS_BYTES))
    target = make_target(name, cache_dir)
    with contextlib.suppress(EOFError):
        while True:
            data = connection.recv_bytes()
            try:
                connection.send((False, target.outcome(data)))
            except Exception:
                connection.send((True, traceback.format_exc()))


# Engines


@dataclass(kw_only=True)
class Report:
    """What a run did: inputs read, outcomes by name, and the failure with the file that holds its input."""

    num_inputs: int = 0
    outcomes: Counter[str] = dataclasses.field(default_factory=Counter)
    failure: str = ""
    coverage: str = ""


def fuzz_at_random(config: FuzzConfig, work: Path) -> Report:
    """Random mutations of the good inputs until one fails or the time is over."""
    rng, report = random.Random(config.seed), Report()
    target = make_target(config.target, _copy(config.cache, work / "seeds"))
    worker = Worker(config.target, _copy(config.cache, work / "cache"))
    end = time.monotonic() + config.seconds
    try:
        while time.monotonic() < end:
            data = target.mutate(rng.choice(target.seeds), rng)
            report.num_inputs += 1
            try:
                report.outcomes[worker.run(data)] += 1
            except FuzzFailureError as error:
                report.failure = f"{_keep(config, data)}: {error}"
                break
    finally:
        worker.close()
    return report


def fuzz_with_atheris(config: FuzzConfig, work: Path) -> Report:
    """Mutations that atheris guides by the coverage of storage/, in a process of their own."""
    config.failures.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("spawn").Process(target=_run_atheris, args=(config, work))
    process.start()
    process.join()
    log = (work / "log").read_text(errors="replace")
    executed = re.findall(r"stat::number_of_executed_units: (\d+)|^#(\d+)", log, flags=re.MULTILINE)
    report = Report(
        num_inputs=max((int(a or b) for a, b in executed), default=0),
        outcomes=Counter(json.loads((work / "outcomes.json").read_text())),
        coverage=", ".join(re.findall(r"cov: \d+ ft: \d+ corp: \d+", log)[-1:]),
    )
    if process.exitcode:
        said = [line for line in log.splitlines() if not re.match(r"(#\d+)?\s*(REDUCE|NEW|pulse|INITED|READ)", line)]
        report.failure = f"exit code {process.exitcode}\n" + "\n".join(said[-40:])
    return report


def _run_atheris(config: FuzzConfig, work: Path) -> None:
    atheris = importlib.import_module("atheris")
    log = os.open(work / "log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    with atheris.instrument_imports(include=["storage"]):
        import storage
        import storage.sharing.archive  # noqa: F401
    target = make_target(config.target, _copy(config.cache, work / "cache"))
    corpus, outcomes = work / "corpus", Counter[str]()
    corpus.mkdir()
    for index, seed in enumerate(target.seeds):
        (corpus / str(index)).write_bytes(seed)

    def note() -> None:
        (work / "outcomes.json").write_text(json.dumps(outcomes))

    def read(data: bytes) -> None:
        outcome = target.outcome(data)
        outcomes[outcome] += 1
        if outcomes[outcome] == 1 or outcomes.total() % _TRIES_PER_NOTE == 0:
            note()

    def mutate(data: bytes, most_bytes: int, seed: int) -> bytes:
        rng = random.Random(seed)
        changed = target.mutate(data, rng) if rng.random() < 0.7 else atheris.Mutate(data, most_bytes)
        return bytes(changed[:most_bytes])

    note()
    settings = {
        "max_total_time": max(1, round(config.seconds)),
        "seed": config.seed + 1,  # 0 stands for one drawn at random
        "timeout": round(_SECONDS_PER_INPUT),
        "max_len": _MOST_INPUT_BYTES,
        "rss_limit_mb": 4096,
        "print_final_stats": 1,
        "artifact_prefix": f"{config.failures.absolute()}/{config.target}-",
    }
    flags = [f"-{name}={value}" for name, value in settings.items()]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], read, custom_mutator=mutate)
    atheris.Fuzz()


def _keep(config: FuzzConfig, data: bytes) -> Path:
    config.failures.mkdir(parents=True, exist_ok=True)
    path = config.failures / f"{config.target}-{_sha256(data)[:16]}"
    path.write_bytes(data)
    return path


def _copy(cache: Path, directory: Path) -> Path:
    """A copy of the cache in a directory that holds nothing else."""
    return Path(shutil.copytree(cache, directory / "cache"))


def main() -> int:
    """Run the target; exit 1 with an input that failed."""
    import tyro

    config = tyro.cli(FuzzConfig, description=__doc__)
    has_atheris = importlib.util.find_spec("atheris") is not None
    if config.engine == "atheris" and not has_atheris:
        print("atheris is not installed: pip install atheris, or --engine random", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="teachonce-fuzz-") as directory:
        work = Path(directory)
        if config.reproduce:
            print(make_target(config.target, _copy(config.cache, work)).outcome(config.reproduce.read_bytes()))
            return 0
        guided = has_atheris and config.engine != "random"
        if not guided and config.engine == "auto":
            print("atheris is not installed (pip install atheris): mutations are not guided", file=sys.stderr)
        report = (fuzz_with_atheris if guided else fuzz_at_random)(config, work)
    outcomes = ", ".join(f"{name} {count}" for name, count in report.outcomes.most_common())
    print(f"{config.target}: {report.num_inputs} inputs, {len(report.outcomes)} outcomes: {outcomes} {report.coverage}")
    if report.failure:
        print(f"{config.target}: FAILED, inputs in {config.failures}: {report.failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
