"""A run killed with SIGKILL, wherever that happens, ends with the bytes of an undisturbed one."""

from __future__ import annotations

import base64
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from pipeline import BeamsConfig, SamplesConfig
from tests.places import ROOT

# Everything heavy is imported once; each run is a fork that kills itself at the moment asked for.
SCRIPT = """
import base64, json, os, pickle, signal, sys
import pipeline.run, storage.shards.shard, torch
from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerFast
from pipeline.run import precompute
torch.set_num_threads(1)

def kill_at(module, name, calls, after):
    original, count = getattr(module, name), iter(range(calls))
    def dying(*args, **settings):
        last = next(count, None) is None
        if last and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **settings)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(module, name, dying)

def run(config, kill):
    child = os.fork()
    if child == 0:
        try:
            if kill:
                module, name, calls, after = kill
                kill_at(sys.modules[module], name, calls, after)
            precompute(config)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

undisturbed, killed = pickle.loads(base64.b64decode(sys.argv[1]))
codes = [run(undisturbed, None)]
for kill in json.loads(sys.argv[2]):
    codes.append(run(killed, kill))
codes.append(run(killed, None))
print(json.dumps(codes))
"""

KILLS = [
    ("pipeline.corpus.tokenization", "write_file", 0, False),  # text is tokenized, its directory not yet in place
    ("storage.writing.directory_destination", "write_commit", 0, False),  # a shard is published without its record
    ("storage.writing.directory_destination", "write_commit", 1, True),  # right after a commit record
    ("storage.shards.shard", "check_batch", 1, False),  # in the middle of a shard
    ("storage.disk.files", "sync_directory", 2, False),  # renamed, not yet synced
    ("storage.writing.card_and_manifest", "write_manifest", 0, False),  # all shards are there, the manifest is not
    ("storage.writing.card_and_manifest", "write_manifest", 0, True),  # the manifest is there, the work files are too
]


@pytest.fixture
def run_script() -> Callable[..., list[int]]:
    def run_script(*configs: object) -> list[int]:
        arguments = [base64.b64encode(pickle.dumps(configs)).decode(), json.dumps(KILLS)]
        root = ROOT
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *arguments], cwd=root, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run_script


def test_a_run_killed_again_and_again_ends_with_the_same_bytes(
    helpers: ModuleType,
    teacher_dir: Path,
    text_file: Path,
    tmp_path: Path,
    snapshot: Callable[[Path], dict[str, str]],
    run_script: Callable[..., list[int]],
) -> None:
    undisturbed, killed = (
        helpers.tiny_config(
            teacher_dir,
            text_file,
            tmp_path / name,
            max_tokens=3000,
            shard_tokens=600,
            samples=SamplesConfig(num_prompts=6, prompt_tokens=5, max_new_tokens=4),
            beams=BeamsConfig(num_prompts=6, prompt_tokens=5, max_new_tokens=3),
        )
        for name in ("undisturbed", "killed")
    )
    codes = run_script(undisturbed, killed)
    assert codes == [0, *[-9] * len(KILLS), 0]
    found = snapshot(tmp_path / "killed")
    assert found == snapshot(tmp_path / "undisturbed")
    assert len([name for name in found if name.endswith(".arrow")]) > 6
