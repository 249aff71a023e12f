"""Hosts with nothing in common but a directory, or a URL, make one cache; another learns from it by URL alone."""

from __future__ import annotations

import json
import re
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import BeamsConfig, PrecomputeConfig, SamplesConfig
from scripts.faults.bench import difference, snapshot
from tests.hosts import Host, Hosts
from tests.precomputed import precomputed

FLAGS = [
    "--document-separator", "\\n", "--block-size", 32, "--batch-tokens", 64, "--shard-tokens", 1100,
    "--validation-fraction", 0.2, "--device", "cpu", "--samples.num-prompts", 20, "--samples.prompt-tokens", 6,
    "--samples.max-new-tokens", 6, "--beams.num-prompts", 20, "--beams.prompt-tokens", 6, "--beams.max-new-tokens", 5,
]  # fmt: skip


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    made = Hosts()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def makers(hosts: Hosts, teacher_dir: Path, text_file: Path) -> list[Host]:
    """Two hosts, each with a copy of teacher and text on its own disk."""
    made = [hosts.add(name) for name in ("host-a", "host-b")]
    for host in made:
        shutil.copytree(teacher_dir, hosts.disk(host.name) / "teacher")
        shutil.copy(text_file, hosts.disk(host.name) / "text.txt")
    return made


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, teacher_dir: Path, text_file: Path) -> Path:
    """What one process leaves."""
    teacher = shutil.copytree(teacher_dir, tmp_path_factory.mktemp("expected") / "teacher")
    data = Path(shutil.copy(text_file, teacher.with_name("text.txt")))
    config = PrecomputeConfig(
        teacher=str(teacher), data=str(data), out=teacher.with_name("cache"), document_separator="\\n", block_size=32,
        batch_tokens=64, shard_tokens=1100, validation_fraction=0.2, device="cpu", quiet=True,
        samples=SamplesConfig(num_prompts=20, prompt_tokens=6, max_new_tokens=6),
        beams=BeamsConfig(num_prompts=20, prompt_tokens=6, max_new_tokens=5),
    )  # fmt: skip
    return precomputed(config).path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def arguments(host: Host, out: Path | str) -> list[object]:
    return ["--teacher", host.me / "teacher", "--data", host.me / "text.txt", "--out", out, *FLAGS]


@pytest.fixture(scope="module")
def shared_cache(hosts: Hosts, makers: list[Host]) -> Path:
    """A cache that two hosts made at the same time."""
    out = hosts.store / "cache"
    runs = [host.start_python("pipeline.cli", *arguments(host, out)) for host in makers]
    for run in runs:
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
    return out


def test_two_hosts_make_the_bytes_of_one(hosts: Hosts, shared_cache: Path, expected: Path) -> None:
    assert difference(snapshot(shared_cache), snapshot(expected)) is None
    print("spaces of their own" if hosts.are_separate else "separate directories only")


def test_a_reader_on_a_third_host_learns_from_a_url_alone(hosts: Hosts, shared_cache: Path, makers: list[Host]) -> None:
    server, reader = makers[0], hosts.add("reader", has_store=False)
    ip = "127.0.0.1"
    if hosts.are_separate:
        ip = "10.77.1.1"
        server.connect(reader, ip, "10.77.1.2")
        assert reader.call("ls", reader.store) == ""
        assert reader.call("ls", hosts.base / "disks") == ""
    serving = server.start(sys.executable, "-u", "-m", "http.server", 0, "--bind", ip, "--directory", server.store)
    assert serving.stdout is not None
    port = re.search(r"port (\d+)", serving.stdout.readline())
    assert port is not None
    shape = {"vocab_size": 257, "n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2}
    (hosts.disk("reader") / "shape.json").write_text(json.dumps({"model_type": "gpt2"} | shape))
    training = reader.start_python(
        "student.cli", "train", f"http://{ip}:{port[1]}/cache", "--out", "student", "--preset", "shape.json",
        "--max-steps", 3, "--batch-blocks", 4, "--batch-samples", 2, "--batch-beams", 2, "--device", "cpu",
    )  # fmt: skip
    _, errors = training.communicate(timeout=120)
    assert training.returncode == 0, errors
    assert (hosts.disk("reader") / "student" / "model.safetensors").is_file()
    assert list(hosts.disk("reader").rglob("*.arrow")), "shards come to the reader's own disk"


@pytest.fixture(scope="module")
def object_store(hosts: Hosts) -> tuple[Host, dict[str, str]]:
    """A host that serves S3 and shares no directory with any other, and what it takes to use it."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install -e .[s3]")
    pytest.importorskip("moto.server", reason="moto is not installed: pip install -e .[dev]")
    host = hosts.add("object-store", has_store=False)
    port = 9000 if hosts.are_separate else free_port()
    serving = host.start_python("moto.server", "--host", "0.0.0.0", "--port", port)
    assert serving.stderr is not None
    while "Running on" not in (line := serving.stderr.readline()):
        assert line, serving.communicate()
    threading.Thread(target=serving.stderr.read, daemon=True).start()  # or it waits for somebody to read its log
    variables = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
    variables |= {"AWS_EC2_METADATA_DISABLED": "true", "PORT": str(port)}
    make = "import s3fs, sys; s3fs.S3FileSystem(endpoint_url=sys.argv[1]).mkdir('bucket')"
    making = host.start(sys.executable, "-c", make, f"http://127.0.0.1:{port}", **variables)
    assert making.wait(60) == 0, making.communicate()
    return host, variables


def test_hosts_that_share_a_url_and_nothing_else(
    hosts: Hosts, object_store: tuple[Host, dict[str, str]], expected: Path, teacher_dir: Path, text_file: Path
) -> None:
    store, variables = object_store
    port = variables["PORT"]

    def at_store(host: Host, number: int) -> dict[str, str]:
        ip = "127.0.0.1"
        if hosts.are_separate:
            ip = f"10.78.{number}.1"
            store.connect(host, ip, f"10.78.{number}.2")
        return variables | {"AWS_ENDPOINT_URL": f"http://{ip}:{port}"}

    makers = [hosts.add(name, has_store=False) for name in ("maker-1", "maker-2")]
    runs = []
    for number, host in enumerate(makers):
        shutil.copytree(teacher_dir, hosts.disk(host.name) / "teacher")
        shutil.copy(text_file, hosts.disk(host.name) / "text.txt")
        found = at_store(host, number)
        runs.append(host.start_python("pipeline.cli", *arguments(host, "s3://bucket/cache"), **found))
    for run in runs:
        _, errors = run.communicate(timeout=240)
        assert run.returncode == 0, errors
        assert "s3://bucket/cache: complete" in errors
    for host in makers:
        assert not list(hosts.disk(host.name).rglob("*.arrow")), "nothing stays on the way"
        assert not list((hosts.disk(host.name) / ".cache").rglob("precompute-*"))

    reader = hosts.add("url-reader", has_store=False)
    at_reader = at_store(reader, 7)
    pulling = reader.start_python("storage.cli", "pull", "s3://bucket/cache", reader.me / "pulled", **at_reader)
    _, errors = pulling.communicate(timeout=120)
    assert pulling.returncode == 0, errors
    assert difference(snapshot(hosts.disk("url-reader") / "pulled"), snapshot(expected)) is None
    training = reader.start_python(
        "student.cli", "train", "s3://bucket/cache", "--out", reader.me / "student", "--preset", "mini",
        "--max-steps", 3, "--batch-blocks", 4, "--batch-samples", 2, "--batch-beams", 2, "--device", "cpu", **at_reader,
    )  # fmt: skip
    _, errors = training.communicate(timeout=120)
    assert training.returncode == 0, errors
    assert (hosts.disk("url-reader") / "student" / "model.safetensors").is_file()


@pytest.fixture(scope="module")
def ray_address(hosts: Hosts, makers: list[Host]) -> str:
    """A Ray whose two nodes are two hosts."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e .[ray]")
    if not hosts.are_separate:
        pytest.skip("two Rays in one network are one machine: needs root, unshare, nsenter and ip")
    head, node = makers
    head.connect(node, "10.77.2.1", "10.77.2.2")
    common = ["--block", "--num-cpus", 1, "--object-store-memory", 100_000_000, "--disable-usage-stats"]
    for host, place in (
        (head, ["--head", "--node-ip-address", "10.77.2.1", "--port", 6379, "--include-dashboard", "false"]),
        (node, ["--node-ip-address", "10.77.2.2", "--address", "10.77.2.1:6379"]),
    ):
        started = host.start_python(
            "ray.scripts.scripts",
            "start",
            *place,
            *common,
            "--temp-dir",
            host.me / "ray",
            RAY_AUTH_MODE="disabled",
            RAY_worker_niceness="0",
        )
        assert started.stdout is not None
        while "Ray runtime started" not in (line := started.stdout.readline()):
            assert line, started.communicate()[1]
    return "10.77.2.1:6379"


def test_ray_on_two_hosts_makes_the_bytes_of_one_process(
    hosts: Hosts, makers: list[Host], ray_address: str, expected: Path
) -> None:
    out = hosts.store / "by-ray"
    flags = ["--engine", "ray", "--address", ray_address]
    run = makers[0].start_python("pipeline.cli", *arguments(makers[0], out), *flags, RAY_AUTH_MODE="disabled")
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    assert "Ray workers: 2" in errors
    assert difference(snapshot(out), snapshot(expected)) is None
