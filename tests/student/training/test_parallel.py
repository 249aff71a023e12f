"""Several processes train as one does, stop and go on in any number, and fail with one clear line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from storage import Cache, RowStream
from student.processes import Processes
from student.training.parallel import ParallelModel
from student.training.run_log import read_metrics
from tests.places import ROOT

LAUNCHER = Path(__file__).parent / "forked_processes.py"
# Rows per step. Fewer beams than processes leave some of them without rows.
BATCH_ROWS = {"soft_targets": 7, "samples": 4, "beams": 2}
MAX_STEPS = 8


@dataclass(frozen=True)
class Ended:
    """How the processes of a job ended, and what they said and read."""

    exit_codes: list[int]
    log_dir: Path

    def messages(self, rank: int) -> str:
        return (self.log_dir / f"stderr-{rank}").read_text()

    def rows(self) -> dict[int, dict[str, list[int]]]:
        """Row ids by step and kind, of all processes together, sorted."""
        rows: dict[int, dict[str, list[int]]] = {}
        for path in self.log_dir.glob("rows-*"):
            for step, ids in map(json.loads, path.read_text().splitlines()):
                for kind, some in ids.items():
                    kinds = rows.setdefault(step, {})
                    kinds[kind] = sorted(kinds.get(kind, []) + some)
        return rows


Launch = Callable[..., Ended]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Runs teachonce-student in that many processes, with the faults and shortages that forked_processes.py knows."""
    with subprocess.Popen(
        [sys.executable, str(LAUNCHER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    ) as launcher:  # fmt: skip

        def run(
            world_size: int,
            *argv: object,
            faults: Sequence[tuple[int, int, int]] = (),
            shortages: Sequence[tuple[int, int, str, int]] = (),
            is_torchrun: bool = True,
        ) -> Ended:
            assert launcher.stdin
            assert launcher.stdout
            log_dir = tmp_path_factory.mktemp("processes")
            job = {
                "world_size": world_size, "argv": list(map(str, argv)), "log_dir": str(log_dir), "faults": faults,
                "shortages": shortages, "is_torchrun": is_torchrun,
            }  # fmt: skip
            launcher.stdin.write(json.dumps(job) + "\n")
            launcher.stdin.flush()
            return Ended(json.loads(launcher.stdout.readline()), log_dir)

        yield run
        assert launcher.stdin
        launcher.stdin.close()


@pytest.fixture(scope="module")
def train_arguments(
    cache: Cache, shape: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    """Command line of a run."""
    config = tmp_path_factory.mktemp("preset") / "student.json"
    config.write_text(json.dumps({"model_type": "gpt2"} | shape | {"n_layer": 2}))

    def make(out: Path, *more: object) -> list[object]:
        sizes = [part for kind in BATCH_ROWS for part in (f"--batch-{BATCH_FLAGS[kind]}", BATCH_ROWS[kind])]
        return [
            "train", cache.path, "--out", out, "--preset", config, "--max-steps", MAX_STEPS, "--device", "cpu",
            "--checkpoint-every", 3, "--evaluate-every", 4, "--quiet", *sizes, *more,
        ]  # fmt: skip

    return make


BATCH_FLAGS = {"soft_targets": "blocks", "samples": "samples", "beams": "beams"}


@pytest.fixture(scope="module")
def alone(
    launch: Launch, train_arguments: Callable[..., list[object]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("alone") / "student"
    assert launch(1, *train_arguments(out)).exit_codes == [0]
    return out


def require_same_run(out: Path, expected: Path) -> None:
    """The curve of losses, validation and the student are equal but for the order in which numbers were added."""
    found, wanted = read_metrics(out), read_metrics(expected)
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    for line, other in zip(found, wanted, strict=True):
        for name, value in numbers_of(other).items():
            assert numbers_of(line)[name] == pytest.approx(value, rel=1e-4, abs=1e-5), (line["step"], name)
    assert len(found) == MAX_STEPS + 2
    # Not the weights themselves: keys' biases have no gradient but rounding, which Adam blows up.
    torch.testing.assert_close(logprobs_of(out), logprobs_of(expected), rtol=0, atol=1e-3)


def logprobs_of(out: Path) -> torch.Tensor:
    ids = torch.arange(0, 120, 3).reshape(2, 20)
    with torch.no_grad():
        return torch.log_softmax(AutoModelForCausalLM.from_pretrained(out).eval()(input_ids=ids).logits, dim=2)


def numbers_of(line: dict[str, Any]) -> dict[str, float]:
    """What training decides of a line of metrics."""
    facts = line | line.get("validation", {})
    others = ("perplexity", "learning_rate", "gradient_norm")
    return {name: facts[name] for name in facts if name.endswith("_nats") or name in others}


def rows_of_one_reader(cache: Cache) -> dict[int, dict[str, list[int]]]:
    rows: dict[int, dict[str, list[int]]] = {step: {} for step in range(MAX_STEPS)}
    for kind, batch_rows in BATCH_ROWS.items():
        batches = RowStream(cache, kind, "train", batch_rows=batch_rows, seed=0).batches()
        for step in range(MAX_STEPS):
            rows[step][kind] = sorted(next(batches).rows.column("row_id").to_pylist())
    return rows


@pytest.mark.parametrize(
    ("world_size", "more"),
    [
        (2, ()),
        (3, ("--micro-batches", 2)),
        (2, ("--parallelism", "fsdp")),
        (3, ("--parallelism", "fsdp", "--micro-batches", 2, "--gradient-checkpointing")),
    ],
)
def test_several_processes_train_as_one_does(
    launch: Launch,
    train_arguments: Callable[..., list[object]],
    alone: Path,
    cache: Cache,
    tmp_path: Path,
    world_size: int,
    more: tuple[object, ...],
) -> None:
    out = tmp_path / "student"
    ended = launch(world_size, *train_arguments(out, *more))
    assert ended.exit_codes == [0] * world_size, ended.messages(0)
    assert ended.rows() == rows_of_one_reader(cache), "every row of every step, once"
    require_same_run(out, alone)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in alone.iterdir())
    AutoModelForCausalLM.from_pretrained(out)


def test_adapters_train_in_two_processes_as_in_one(
    launch: Launch, train_arguments: Callable[..., list[object]], alone: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    outs = {world_size: tmp_path / str(world_size) for world_size in (1, 2)}
    for world_size, out in outs.items():
        ended = launch(world_size, *train_arguments(out, "--preset", alone, "--lora.rank", 2))
        assert ended.exit_codes == [0] * world_size, ended.messages(0)
        assert [ended.messages(rank).count("adapters of rank 2") for rank in range(world_size)] == [1, 0][:world_size]
    require_same_run(outs[2], outs[1])
    assert not torch.equal(logprobs_of(outs[1]), logprobs_of(alone))


def test_a_bias_of_the_head_learns_in_several_processes(
    launch: Launch, train_arguments: Callable[..., list[object]], tmp_path: Path
) -> None:
    """Weight and bias of the head get their gradients from the loss, not from the head's own forward pass."""
    shape = {
        "vocab_size": 257, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3, "eos_token_id": 256,
    }  # fmt: skip
    preset = tmp_path / "phi.json"
    preset.write_text(json.dumps({"model_type": "phi"} | shape))
    biases = []
    for name in ("ddp", "fsdp"):
        out = tmp_path / name
        ended = launch(2, *train_arguments(out, "--parallelism", name, "--preset", preset))
        assert ended.exit_codes == [0, 0], ended.messages(0)
        biases.append(AutoModelForCausalLM.from_pretrained(out).lm_head.bias.detach())
    assert biases[0].abs().mean() > 1e-3
    torch.testing.assert_close(*biases, rtol=0, atol=1e-4)


@pytest.mark.parametrize("parallelism", ["ddp", "fsdp"])
def test_a_process_without_a_wanted_target_waits_for_the_others(
    launch: Launch,
    train_arguments: Callable[..., list[object]],
    wanted_cache: Cache,
    tmp_path: Path,
    parallelism: str,
) -> None:
    """A block each, of which a fourth wants nothing: often one process has no target, sometimes both have none."""

    def arguments(out: Path, *more: object) -> list[object]:
        given = train_arguments(out, *more, "--mix.samples", 0, "--mix.beams", 0)
        given[1], given[given.index("--batch-blocks") + 1] = wanted_cache.path, 2
        return given

    assert launch(1, *arguments(tmp_path / "alone")).exit_codes == [0]
    ended = launch(2, *arguments(tmp_path / "student", "--parallelism", parallelism))
    assert ended.exit_codes == [0, 0], ended.messages(0)
    require_same_run(tmp_path / "student", tmp_path / "alone")


@pytest.mark.parametrize(
    ("before", "after"),
    [(("ddp", 3), ("ddp", 2)), (("fsdp", 3), ("fsdp", 2)), (("fsdp", 2), ("ddp", 1)), (("ddp", 1), ("fsdp", 3))],
)
def test_a_run_stopped_in_some_processes_goes_on_in_others(
    launch: Launch,
    train_arguments: Callable[..., list[object]],
    alone: Path,
    cache: Cache,
    tmp_path: Path,
    before: tuple[str, int],
    after: tuple[str, int],
) -> None:
    out = tmp_path / "student"
    (parallelism, world_size), stop = before, [(before[1] - 1, 4, signal.SIGTERM)]
    stopped = launch(world_size, *train_arguments(out, "--parallelism", parallelism), faults=stop)
    assert stopped.exit_codes == [130] * world_size, stopped.messages(0)
    assert [len(stopped.messages(rank)) > 0 for rank in range(world_size)] == [True] + [False] * (world_size - 1)
    (parallelism, world_size) = after
    ended = launch(world_size, *train_arguments(out, "--parallelism", parallelism))
    assert ended.exit_codes == [0] * world_size, ended.messages(0)
    assert sorted(stopped.rows()) == [0, 1, 2, 3, 4]
    assert stopped.rows() | ended.rows() == rows_of_one_reader(cache)
    assert sorted(ended.rows()) == [5, 6, 7]
    require_same_run(out, alone)
    assert not list(out.glob("checkpoint*"))


def test_processes_of_another_launcher_join_by_what_their_environment_says(
    launch: Launch, train_arguments: Callable[..., list[object]], alone: Path, cache: Cache, tmp_path: Path
) -> None:
    """As Kubeflow, srun and MPI start them. A warning before a time limit goes to all; the same line goes on."""
    out = tmp_path / "student"
    warned = [(rank, 4, signal.SIGUSR1) for rank in range(2)]
    stopped = launch(2, *train_arguments(out), faults=warned, is_torchrun=False)
    assert stopped.exit_codes == [130, 130], stopped.messages(0)
    ended = launch(2, *train_arguments(out), is_torchrun=False)
    assert ended.exit_codes == [0, 0], ended.messages(0)
    assert stopped.rows() | ended.rows() == rows_of_one_reader(cache)
    assert sorted(ended.rows()) == [5, 6, 7]
    require_same_run(out, alone)


def test_hosts_whose_preset_differs_do_not_train_together(
    launch: Launch, train_arguments: Callable[..., list[object]], shape: dict[str, Any], tmp_path: Path
) -> None:
    for rank, heads in enumerate((2, 4)):
        (tmp_path / f"{rank}.json").write_text(json.dumps({"model_type": "gpt2"} | shape | {"n_head": heads}))
    ended = launch(2, *train_arguments(tmp_path / "student", "--preset", tmp_path / "{rank}.json"))
    assert ended.exit_codes == [2, 2]
    assert ended.messages(0) == ""
    assert "process 1: has preset_sha256 = " in ended.messages(1)
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("parallelism", ["ddp", "fsdp"])
def test_a_process_that_dies_ends_the_run_and_leaves_the_last_checkpoint(
    launch: Launch, train_arguments: Callable[..., list[object]], alone: Path, tmp_path: Path, parallelism: str
) -> None:
    out = tmp_path / "student"
    arguments = train_arguments(out, "--parallelism", parallelism)
    died = launch(3, *arguments, faults=[(1, 5, signal.SIGKILL)])
    assert died.exit_codes == [2, -9, 2], died.messages(0)
    for rank in (0, 2):
        (line,) = died.messages(rank).splitlines()
        assert f"process {rank}: another process of this run has ended" in line
    ended = launch(2, *arguments)
    assert ended.exit_codes == [0, 0], ended.messages(0)
    assert sorted(ended.rows()) == [3, 4, 5, 6, 7], "from the checkpoint after step 3 on"
    require_same_run(out, alone)


DYING_ONCE = """
import os, signal
from student import cli
from student.training import loop
from student.training.learner import Learner
step, loop._LOG_EVERY = Learner.step, 1
def dying(self, number, rows):
    if number == 5 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, number, rows)
Learner.step = dying
cli.main()
"""


def test_torchrun_starts_a_run_again_whose_process_died(
    train_arguments: Callable[..., list[object]], alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "student"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    program = ["--max-restarts", "1", "--no-python", sys.executable, "-c", DYING_ONCE]
    done = subprocess.run(
        [*torchrun, *program, *map(str, train_arguments(out))],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=150, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("another process of this run has ended") == 1
    require_same_run(out, alone)


def test_a_failure_that_all_processes_meet_is_said_once(
    launch: Launch, train_arguments: Callable[..., list[object]], tmp_path: Path
) -> None:
    ended = launch(3, *train_arguments(tmp_path / "student", "--temperature", 9))
    assert ended.exit_codes == [2, 2, 2]
    assert len(ended.messages(0).splitlines()) == 1
    assert "--temperature 9" in ended.messages(0)
    assert ended.messages(1) == ended.messages(2) == ""
    assert not (tmp_path / "student").exists()


def test_a_failure_that_one_process_alone_meets_ends_all(
    launch: Launch, train_arguments: Callable[..., list[object]], cache: Cache, tmp_path: Path
) -> None:
    """A host without the cache: it says so, and nobody waits for it."""
    (tmp_path / "host-0").mkdir()
    (tmp_path / "host-0" / "cache").symlink_to(cache.path)
    command, _, *rest = train_arguments(tmp_path / "student")
    ended = launch(2, command, tmp_path / "host-{rank}" / "cache", *rest)
    assert ended.exit_codes == [2, 2]
    assert ended.messages(0) == ""
    assert f"{tmp_path}/host-1/cache: no cache" in ended.messages(1)
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize(
    ("world_size", "shortages", "micro_batches"),
    [
        (2, [(1, 0, "in the first pass", 2)], 2),
        (2, [(1, 0, "making batches", 3)], 4),
        (3, [(0, 5, "in the last pass", 2)], 2),
        (2, [(0, 0, "in the first pass", 2), (1, 0, "in the last pass", 2)], 2),
        (3, [(0, 2, "making batches", 2), (1, 4, "in the first pass", 4), (2, 4, "in the last pass", 2)], 4),
    ],
)
def test_when_one_process_runs_out_of_memory_all_go_on_in_more_parts(
    launch: Launch,
    train_arguments: Callable[..., list[object]],
    alone: Path,
    cache: Cache,
    tmp_path: Path,
    world_size: int,
    shortages: list[tuple[int, int, str, int]],
    micro_batches: int,
) -> None:
    out = tmp_path / "student"
    ended = launch(world_size, *train_arguments(out), shortages=shortages)
    assert ended.exit_codes == [0] * world_size, ended.messages(0)
    assert ended.rows() == rows_of_one_reader(cache)
    require_same_run(out, alone)
    *said, complete = ended.messages(0).splitlines()
    steps = len({step for _, step, _, _ in shortages})
    assert len(said) == steps, "once for each step that had to be cut further"
    assert said[-1] == f"out of memory: going on with {micro_batches} micro-batches"
    assert "complete" in complete
    assert [ended.messages(rank) for rank in range(1, world_size)] == [""] * (world_size - 1)


@pytest.mark.parametrize(
    ("place", "short"), [("making batches", [1]), ("in the first pass", [0, 2]), ("in the last pass", [1])]
)
def test_a_step_that_cannot_be_cut_further_ends_all_processes_with_one_line(
    launch: Launch, train_arguments: Callable[..., list[object]], tmp_path: Path, place: str, short: list[int]
) -> None:
    ended = launch(3, *train_arguments(tmp_path / "student"), shortages=[(rank, 4, place, 1000) for rank in short])
    assert ended.exit_codes == [2, 2, 2]
    (line,) = ended.messages(0).splitlines()
    assert "--micro-batches 4: process 0 ran out of memory after 4 steps: even single rows" in line, "of 3 at most"
    assert ended.messages(1) == ended.messages(2) == ""
    assert sorted(ended.rows()) == [0, 1, 2, 3]
    assert (tmp_path / "student" / "checkpoint.pt").is_file()


@pytest.mark.parametrize(
    ("parallelism", "place", "said"),
    [
        ("ddp", "updating", "the update does not fit"),
        ("fsdp", "in the first pass", "run the same line again, it goes on with 4 micro-batches"),
        ("fsdp", "in the last pass", "run the same line again, it goes on with 4 micro-batches"),
    ],
)
def test_a_process_that_runs_out_where_the_others_wait_ends_the_run(
    launch: Launch, train_arguments: Callable[..., list[object]], tmp_path: Path, parallelism: str, place: str,
    said: str,
) -> None:  # fmt: skip
    arguments = train_arguments(tmp_path / "student", "--parallelism", parallelism, "--micro-batches", 2)
    ended = launch(3, *arguments, shortages=[(1, 4, place, 1000)])
    assert ended.exit_codes == [2, 2, 2]
    lines = [ended.messages(rank).splitlines() for rank in range(3)]
    assert [len(some) for some in lines] == [1, 1, 1]
    assert f"--micro-batches 2: process 1 ran out of memory after 4 steps: {said}" in lines[1][0]
    for rank in (0, 2):
        assert f"process {rank}: another process of this run has ended" in lines[rank][0]
    assert (tmp_path / "student" / "checkpoint.pt").is_file()


def test_an_fsdp_run_that_ran_out_goes_on_in_more_parts_when_it_is_started_again(
    launch: Launch, train_arguments: Callable[..., list[object]], alone: Path, cache: Cache, tmp_path: Path
) -> None:
    """As `torchrun --max-restarts` does: the same line, until it fits."""
    out = tmp_path / "student"
    arguments = train_arguments(out, "--parallelism", "fsdp")
    shortages = [(1, 0, "in the first pass", 2), (0, 5, "in the last pass", 4)]
    codes, said = [], []
    for _ in range(3):
        ended = launch(2, *arguments, shortages=shortages)
        codes.append(ended.exit_codes)
        said.append(ended.messages(0).splitlines()[0])
    assert codes == [[2, 2], [2, 2], [0, 0]]
    assert said[1:] == [f"going on with {parts} micro-batches, for memory ran out before" for parts in (2, 4)]
    require_same_run(out, alone)
    assert not (out / "micro_batches.json").exists()


def test_gradients_become_means_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parameter that another process alone has a gradient of has one, a parameter that nobody uses has none."""
    model = torch.nn.ParameterDict({name: torch.zeros(2) for name in ("both", "none", "other")})
    parallel = ParallelModel(model, "ddp", Processes())
    parallel.processes = Processes(rank=0, world_size=2)
    model["both"].grad = torch.tensor([1.0, 2.0])
    of_other = iter([torch.tensor([3.0, 0.0]), torch.tensor([4.0, 8.0])])
    flags_of_other = torch.tensor([1.0, 0.0, 1.0])
    monkeypatch.setattr(Processes, "sum", lambda self, values: values + flags_of_other)

    def all_reduce(gradient: torch.Tensor, async_op: bool) -> Any:
        gradient += next(of_other)
        return SimpleNamespace(wait=lambda: None)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    parallel.join_gradients()
    assert model["both"].grad.tolist() == [2.0, 1.0]
    assert model["other"].grad.tolist() == [2.0, 4.0]
    assert model["none"].grad is None


def test_all_processes_begin_with_the_first_ones_parameters_and_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, src: tensor.fill_(7 + src))
    model = torch.nn.BatchNorm1d(3)
    ParallelModel(model, "ddp", Processes(rank=1, world_size=2))
    assert {float(value) for tensor in model.state_dict().values() for value in tensor.flatten()} == {7.0}


def test_one_process_has_no_other_to_share_with(
    launch: Launch, train_arguments: Callable[..., list[object]], tmp_path: Path
) -> None:
    ended = launch(1, *train_arguments(tmp_path / "student", "--parallelism", "fsdp"))
    assert ended.exit_codes == [2]
    assert "--parallelism fsdp" in ended.messages(0)
