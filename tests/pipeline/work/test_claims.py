"""Several processes, one directory: what one is at the others leave alone, until it is done or gone."""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import subprocess
import sys
import threading
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from pipeline import BeamsConfig, PrecomputeConfig, SamplesConfig
from pipeline.engines.local import in_order_of_host
from pipeline.plan import ShardRange
from pipeline.work.claims import Claims, claimed
from storage import Cache
from storage.errors import WriteRefusedError
from storage.records.identity import ShardKey
from tests.other_users import give_away, without_rights
from tests.places import ROOT
from tests.precomputed import precomputed

Snapshot = Callable[[Path], dict[str, str]]


def test_a_claim_is_one_holders_until_it_is_given_back(tmp_path: Path) -> None:
    with Claims(tmp_path) as ours, Claims(tmp_path) as theirs:
        assert ours.take("a")
        assert not theirs.take("a")
        assert theirs.take("b")
        ours.give_back("a")
        assert theirs.take("a")
        assert not ours.take("a")
    with Claims(tmp_path) as later:
        assert later.take("a")
        assert later.take("b")


def test_a_claim_file_of_another_user_can_be_taken_and_is_held(tmp_path: Path) -> None:
    with Claims(tmp_path) as theirs:
        assert theirs.take("a")
        give_away(tmp_path, 0o777)
        (tmp_path / "claims" / "a").chmod(0o444)
        with without_rights(), Claims(tmp_path) as ours:
            assert not ours.take("a")
            theirs.give_back("a")
            assert ours.take("a")
            assert not theirs.take("a")


def test_a_directory_of_claims_that_may_not_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "claims").mkdir()
    give_away(tmp_path)
    with without_rights(), Claims(tmp_path) as claims, pytest.raises(WriteRefusedError, match="Permission denied"):
        claims.take("a")


def test_claims_end_with_an_exception(tmp_path: Path) -> None:
    def fail() -> None:
        with Claims(tmp_path) as claims:
            claims.take("a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    with Claims(tmp_path) as claims:
        assert claims.take("a")


def test_claims_end_with_their_process(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from pipeline.work.claims import Claims\n"
        "print(Claims(Path(sys.argv[1])).take('a'), flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        # The Claims above is let go at once; its descriptor stays open until the process ends.
        assert holder.stdout.readline() == "True\n"
        with Claims(tmp_path) as claims:
            assert not claims.take("a")
            holder.kill()
            holder.wait()
            assert claims.take("a")
    finally:
        holder.kill()
        holder.communicate()


def test_whoever_waits_for_a_claim_gets_it_when_it_is_free(tmp_path: Path) -> None:
    seen: list[str] = []

    def second() -> None:
        with claimed(tmp_path, "a"):
            seen.append("second")

    with claimed(tmp_path, "a"):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.3)
        seen.append("first")
    waiting.join(10)
    assert seen == ["first", "second"]


def test_a_refused_claim_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(WriteRefusedError, match="No locks available"):
        Claims(tmp_path).take("a")


def shards(num_shards: int, kinds: tuple[str, ...] = ("soft_targets", "beams")) -> list[ShardRange]:
    return [
        ShardRange(
            key=ShardKey(kind=kind, split="train", index=index, num_shards=num_shards),
            first_row=index,
            end_row=index + 1,
        )
        for kind in kinds
        for index in range(num_shards)
    ]


def test_every_host_has_an_order_of_its_own_and_keeps_it() -> None:
    planned = shards(40)
    orders = [in_order_of_host(planned, host) for host in ("node-1", "node-2", "node-1")]
    assert orders[0] == orders[2] != orders[1]
    for order in orders:
        assert sorted(order, key=planned.index) == planned
        assert [shard.key.kind for shard in order] == [shard.key.kind for shard in planned]


@pytest.mark.parametrize("num_hosts", [2, 8])
def test_hosts_that_do_not_see_each_others_claims_seldom_make_the_same_shard(num_hosts: int) -> None:
    """All hosts take a step at a time, and skip what was committed before the step."""
    planned = shards(400, kinds=("soft_targets",))
    orders = [iter(in_order_of_host(planned, f"node-{number}")) for number in range(num_hosts)]
    made: Counter[int] = Counter()
    while len(made) < len(planned):
        committed = set(made)
        made.update(
            shard.key.index
            for order in orders
            if (shard := next((s for s in order if s.key.index not in committed), None))
        )
    # In the planned order every host would make every shard.
    assert made.total() < 1.15 * len(planned)


# Everything heavy is imported once. Each fork tells what it made; one of a job's may die in its first part of the text,
# or at its first shard.
SCRIPT = """
import base64, os, pickle, signal, sys, time
import torch
import transformers.models.gpt2.modeling_gpt2
from pipeline.corpus import tokenization
from pipeline.corpus.parts import sharing
from pipeline.run import precompute
from pipeline.sources import parts
from storage.writing import directory_destination
torch.set_num_threads(1)
parts.PART_BYTES = int(sys.argv[2])

def run(config, number, dying):
    write, join, made = directory_destination.write_shard, tokenization._join, []
    write_part = sharing.write_part
    def write_shard(out, identity, key, *rest):
        if (number, "shard") == dying:
            os.kill(os.getpid(), signal.SIGKILL)
        made.append(key.path)
        return write(out, identity, key, *rest)
    def dying_part(plan, part, directory, room, count):
        def counted(num_tokens):
            if (number, "part") == dying:
                os.kill(os.getpid(), signal.SIGKILL)
            count(num_tokens)
        if dying and dying[1] == "part" and number != dying[0]:
            time.sleep(0.2)  # leave one to the process that is to die
        write_part(plan, part, directory, room, counted)
        made.append(f"part {plan.parts.index(part)}")
    directory_destination.write_shard = write_shard
    sharing.write_part = dying_part
    tokenization._join = lambda *args: (made.append("the text"), join(*args))
    precompute(config)
    os.write(1, "".join(f"{number} {name}\\n" for name in made).encode())

for config, num_processes, dying in pickle.loads(base64.b64decode(sys.argv[1])):
    children = []
    for number in range(num_processes):
        child = os.fork()
        if child == 0:
            try:
                run(config, number, dying)
                os._exit(0)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
        children.append(child)
    print("codes", *[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children], flush=True)
"""


@pytest.fixture(scope="module")
def configure(helpers: ModuleType, teacher_dir: Path, text_file: Path) -> Callable[[Path], PrecomputeConfig]:
    def configure(out: Path) -> PrecomputeConfig:
        return helpers.tiny_config(
            teacher_dir, text_file, out, batch_tokens=32, shard_tokens=600,
            samples=SamplesConfig(num_prompts=20, prompt_tokens=5, max_new_tokens=4),
            beams=BeamsConfig(num_prompts=20, prompt_tokens=5, max_new_tokens=3),
        )  # fmt: skip

    return configure


DYING = (None, (1, "part"), (1, "shard"))
PART_BYTES = 600
Dying = tuple[int, str] | None


@pytest.fixture(scope="module")
def together(
    configure: Callable[[Path], PrecomputeConfig], tmp_path_factory: pytest.TempPathFactory
) -> dict[Dying, tuple[Path, list[int], dict[str, list[int]]]]:
    """For each of DYING: what three processes on one directory left, their exit codes, and who made what."""
    outs = {dying: tmp_path_factory.mktemp("together") / "cache" for dying in DYING}
    argument = b64encode(pickle.dumps([(configure(out), 3, dying) for dying, out in outs.items()])).decode()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, argument, str(PART_BYTES)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=200,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines, found = iter(done.stdout.splitlines()), {}
    for dying, out in outs.items():
        makers: dict[str, list[int]] = {}
        while not (line := next(lines)).startswith("codes "):
            number, name = line.split(" ", 1)
            makers.setdefault(name, []).append(int(number))
        found[dying] = (out, [int(code) for code in line.split()[1:]], makers)
    return found


@pytest.fixture(scope="module")
def alone(configure: Callable[[Path], PrecomputeConfig], tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """What one process leaves."""
    return precomputed(configure(tmp_path_factory.mktemp("alone") / "cache"))


@pytest.mark.parametrize("dying", DYING)
def test_processes_divide_the_work_and_finish_what_a_dead_one_left(
    together: dict[Dying, tuple[Path, list[int], dict[str, list[int]]]], alone: Cache, snapshot: Snapshot,
    dying: Dying,
) -> None:  # fmt: skip
    out, codes, makers = together[dying]
    assert codes == [-signal.SIGKILL if dying and number == dying[0] else 0 for number in range(3)]
    assert snapshot(out) == snapshot(alone.path)
    shards = {shard.path for shard in alone.manifest.shards}
    parts = {name for name in makers if name.startswith("part ")}
    if dying is None:
        assert parts == {f"part {index}" for index in range(len(parts))}
        assert len(parts) > 5
        assert makers.keys() == parts | shards | {"the text"}
    else:  # it may have made some of these, and can tell no more
        assert shards <= makers.keys() <= parts | shards | {"the text"}
    assert {name: numbers for name, numbers in makers.items() if len(numbers) > 1} == {}
    assert len({number for numbers in makers.values() for number in numbers}) > 1
