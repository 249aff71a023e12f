"""--engine ray on a real Ray of two nodes: the bytes of a local run, whoever is killed, and one line for an error."""

from __future__ import annotations

import base64
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from pipeline import BeamsConfig, PrecomputeConfig, SamplesConfig, precompute
from pipeline.errors import WorkerError
from storage.disk.files import TEMPORARY_PREFIX
from tests.places import ROOT

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed: pip install -e .[ray]")

Snapshot = Callable[[Path], dict[str, str]]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two nodes of one CPU each, as on two machines."""
    settings = {"num_cpus": 1, "object_store_memory": 100_000_000}
    # As a rule workers are nice to other processes, which on a busy machine would leave them no time.
    head = {"include_dashboard": False, "_system_config": {"worker_niceness": 0}} | settings
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(**settings)
        yield cluster.address
    finally:
        cluster.shutdown()


@pytest.fixture(scope="module")
def text(helpers: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "documents.txt"
    path.write_text("".join(helpers.make_text(90, seed=5)))
    return path


@pytest.fixture(scope="module")
def configure(helpers: ModuleType, teacher_dir: Path, text: Path) -> Callable[..., PrecomputeConfig]:
    """A run whose shards of soft targets take a third of a second: a row in each of the teacher's passes."""

    def configure(out: Path | str, **changes: object) -> PrecomputeConfig:
        settings: dict[str, object] = {
            "document_separator": "\n",
            "batch_tokens": 32,
            "shard_tokens": 3000,
            "samples": SamplesConfig(num_prompts=40, prompt_tokens=5, max_new_tokens=5),
            "beams": BeamsConfig(num_prompts=40, prompt_tokens=5, max_new_tokens=4),
        }
        teacher = changes.pop("teacher", teacher_dir)
        return helpers.tiny_config(teacher, text, out, **(settings | changes))

    return configure


@pytest.fixture(scope="module")
def expected(configure: Callable[..., PrecomputeConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process leaves."""
    out = tmp_path_factory.mktemp("expected") / "cache"
    precompute(configure(out))
    assert len(list(out.rglob("*.arrow"))) >= 6
    return out


@pytest.fixture
def start(configure: Callable[..., PrecomputeConfig]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a driver, in a process group of its own."""
    code = (
        "import base64, pickle, sys\n"
        "config = pickle.loads(base64.b64decode(sys.argv[1]))\n"
        "sys.argv = ['teachonce-precompute', '--engine', 'ray']\n"
        "from storage.command import run_command\n"
        "from pipeline.run import announce, precompute\n"
        "run_command(lambda: announce(config, precompute(config)))\n"
    )
    started: list[subprocess.Popen[str]] = []

    def start(out: Path, **changes: object) -> subprocess.Popen[str]:
        config = configure(out, **({"engine": "ray", "quiet": False} | changes))
        process = subprocess.Popen(
            [sys.executable, "-c", code, base64.b64encode(pickle.dumps(config)).decode()],
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def writers(out: Path) -> list[int]:
    """Ray's processes that have a half-written shard of this cache open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if not (process / "cmdline").read_bytes().startswith(b"ray::"):
                continue
            names = [os.readlink(link) for link in (process / "fd").iterdir()]
        except OSError:  # it has just ended
            continue
        if any(name.startswith(f"{out}/") and TEMPORARY_PREFIX in name and ".arrow" in name for name in names):
            found.append(int(process.name))
    return found


def committed_shards(out: Path) -> dict[str, int]:
    """When each committed shard was written."""
    names = [path.name for path in out.glob("commits/*.json") if not path.name.startswith(TEMPORARY_PREFIX)]
    return {name: (out / "commits" / name).stat().st_mtime_ns for name in names}


def a_writer(out: Path, run: subprocess.Popen[str]) -> int:
    """The process id of a worker in the middle of a shard, once one is committed."""
    deadline = time.monotonic() + 90
    while run.poll() is None and time.monotonic() < deadline:
        found = writers(out)
        if found and committed_shards(out):
            return found[0]
        time.sleep(0.005)
    run.kill()
    raise AssertionError(f"no worker was seen to write; {list(out.rglob('*'))}; {run.communicate()}")


def test_a_worker_killed_in_the_middle_of_a_shard_is_replaced_and_the_bytes_are_those_of_one_process(
    start: Callable[..., subprocess.Popen[str]], expected: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    run = start(tmp_path / "cache", num_workers=2)
    os.kill(a_writer(tmp_path / "cache", run), signal.SIGKILL)
    output, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    assert snapshot(tmp_path / "cache") == snapshot(expected)
    assert output == ""
    first, *bars, last = errors.splitlines()
    assert first == "Ray workers: 2, CPUs each: 1; loading"
    assert sorted(bar.partition(":")[0] for bar in bars) == ["beams", "samples", "soft_targets", "tokenize"]
    assert "complete" in last


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_driver_that_is_stopped_leaves_shards_to_a_rerun_of_either_engine(
    start: Callable[..., subprocess.Popen[str]],
    configure: Callable[..., PrecomputeConfig],
    address: str,
    expected: Path,
    tmp_path: Path,
    snapshot: Snapshot,
    sent: signal.Signals,
    status: int,
) -> None:
    out = tmp_path / "cache"
    run = start(out, address=address)
    orphan = a_writer(out, run)
    committed = committed_shards(out)
    os.killpg(run.pid, sent)
    precompute(configure(out))  # at once, while the driver's workers may still be there
    assert snapshot(out) == snapshot(expected)
    assert committed.items() <= committed_shards(out).items()
    _, errors = run.communicate(timeout=60)
    assert run.returncode == status, errors
    if sent == signal.SIGINT:
        assert "run the same line again" in errors
        assert "Traceback" not in errors
    deadline = time.monotonic() + 30
    while Path(f"/proc/{orphan}").exists():
        assert time.monotonic() < deadline, "the driver's worker outlives it"
        time.sleep(0.05)
    assert snapshot(out) == snapshot(expected)


def test_ray_workers_need_no_directory_in_common(
    configure: Callable[..., PrecomputeConfig], address: str, expected: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    url = f"file://{tmp_path}/remote/cache"
    precompute(configure(url, engine="ray", address=address, num_workers=2, work_dir=tmp_path / "work"))
    assert snapshot(tmp_path / "remote" / "cache") == snapshot(expected)
    assert list((tmp_path / "work").iterdir()) == [], "workers tidied up when they left"


def test_a_worker_that_cannot_load_the_teacher_is_told_with_its_host(
    configure: Callable[..., PrecomputeConfig], address: str, tmp_path: Path
) -> None:
    config = configure(
        tmp_path / "cache", engine="ray", address=address, num_workers=1, teacher=str(tmp_path / "nothing")
    )
    with pytest.raises(WorkerError) as caught:
        precompute(config)
    assert str(caught.value).startswith(f"worker on {os.uname().nodename}: teacher {tmp_path}/nothing: cannot be")
    assert not (tmp_path / "cache").exists()
