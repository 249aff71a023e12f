"""Run the stages of the demo: the teacher's side, then, with the teacher gone, the students' side."""

from __future__ import annotations

import json
import resource
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from scripts.demo.picture import take_picture
from scripts.demo.results import continuations, results_of, table
from scripts.demo.sides import Side
from scripts.demo.stages import Stages
from storage import open_cache
from storage.errors import ConfigError
from storage.progress import tell

_HERE = Path(__file__).parent
EMBEDDED_TEACHER = _HERE / "teacher"
EMBEDDED_TEXT = _HERE / "text" / "stdlib.jsonl.zst"
# What the students differ in; everything else is the same for all three.
STUDENTS = ("student", "ce_only", "cut")
_BEST_FIRST = ("cut", "student", "ce_only")
_LABELS_ALONE = ("--mix.soft-targets", "0", "--mix.samples", "0", "--mix.beams", "0", "--mix.labels", "1")
# In so few steps the teacher's texts and candidates take more time than they teach (docs/beginnings.md).
_FROM_THE_CACHE = ("--mix.samples", "0", "--mix.beams", "0")
# Seconds on two idle cores.
_STAGES = {
    "the teacher runs once": 45.0,
    "a beginning is cut from the teacher": 6.0,
    "the cache is checked": 2.0,
    "student: learns from the cache": 31.0,
    "ce_only: learns from the labels alone": 22.0,
    "cut: begins as layers of the teacher, learns from the cache": 22.0,
    "the students are measured": 8.0,
    "the page is written": 24.0,
}


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Settings of the demo. The defaults need no download."""

    out: Path = Path("demo")
    """Directory for everything that the demo writes."""
    teacher: str | None = None
    """Directory or hub id of a teacher. None takes the small one that lies beside the demo."""
    data: str | None = None
    """Text to use, given as for teachonce-precompute --data. None takes docstrings that lie beside the demo."""
    max_tokens: int | None = 250_000
    """Most tokens of the text that the teacher reads; None reads all."""
    layers: str = "3"
    """Layers of the teacher that one student begins as, given as for teachonce-cut --layers; all have its shape."""
    keep_mlp: float = 0.5
    """Share of these layers' MLP neurons that it begins with; 1 for a teacher of whose neurons none can be left out."""
    steps: int = 220
    """Training steps of each student."""
    seed: int = 0
    """Seed of the students' new weights and of the order of rows, to see by how much another one changes the table."""


def run_demo(config: DemoConfig) -> int:
    """Run the stages, print the table and write results.json and the page."""
    started = time.monotonic()
    _require_same_demo(config)
    stages = Stages(_STAGES)
    _teacher_side(config, stages)
    _student_side(config, stages)
    (config.out / "seconds.json").write_text(json.dumps(stages.taken(), indent=1) + "\n")
    print(f"\n{config.out / 'results.json'} holds the table's figures; {_cost(started)}")
    print(f"what the students learnt and lost, as a page: {config.out / 'report.html'}")
    return 0


def _require_same_demo(config: DemoConfig) -> None:
    """Raise ConfigError when --out holds stages of a demo with other settings, which must not be reused."""
    names = ("teacher", "data", "max_tokens", "layers", "keep_mlp", "steps", "seed")
    facts = {name: getattr(config, name) for name in names}
    path = config.out / "demo.json"
    begun = json.loads(path.read_text()) if path.is_file() else facts
    if begun.keys() != facts.keys():
        raise ConfigError(f"--out {config.out}: made by another version of the demo; use another --out")
    for name in names:
        if begun[name] != facts[name]:
            flag = name.replace("_", "-")
            raise ConfigError(
                f"--out {config.out}: made with --{flag} {begun[name]}, not {facts[name]}; use another --out"
            )
    config.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts))


def _teacher_side(config: DemoConfig, stages: Stages) -> None:
    cache, beginning, teacher = config.out / "cache", config.out / "beginning", config.out / "teacher"
    is_whole = (cache / "manifest.json").is_file() and (beginning / "config.json").is_file()
    if config.teacher is None and not is_whole:
        shutil.copytree(EMBEDDED_TEACHER, teacher, dirs_exist_ok=True)
    named = config.teacher or str(teacher)
    with Side() as side:
        stages.begin("the teacher runs once")
        if not is_whole:
            limit = () if config.max_tokens is None else ("--max-tokens", str(config.max_tokens))
            side.run(
                "teachonce-precompute", "--teacher", named, "--data", config.data or str(EMBEDDED_TEXT),
                "--out", str(cache), *limit, "--samples.num-prompts", "512", "--samples.max-new-tokens", "48",
                "--beams.num-prompts", "320", "--beams.max-new-tokens", "16",
            )  # fmt: skip
        stages.begin("a beginning is cut from the teacher")
        if not is_whole:
            width = ("--keep-mlp", str(config.keep_mlp), "--cache", str(cache)) if config.keep_mlp < 1 else ()
            side.run("teachonce-cut", named, "--layers", config.layers, *width, "--out", str(beginning))
    _move_away(teacher)


def _move_away(teacher: Path) -> None:
    """Rename the teacher's directory, so that nothing after this can read the teacher."""
    if teacher.is_dir():
        away = teacher.with_name("teacher-moved-away")
        shutil.rmtree(away, ignore_errors=True)
        teacher.rename(away)
        tell(f"{teacher} is moved away; from here on there are only the cache and the beginning")


def _student_side(config: DemoConfig, stages: Stages) -> None:
    cache, beginning = config.out / "cache", config.out / "beginning"
    with Side() as side:
        stages.begin("the cache is checked")
        side.run("teachonce-cache", "verify", str(cache))
        for name, preset, mix in (
            ("student: learns from the cache", beginning / "config.json", _FROM_THE_CACHE),
            ("ce_only: learns from the labels alone", beginning / "config.json", _LABELS_ALONE),
            ("cut: begins as layers of the teacher, learns from the cache", beginning, _FROM_THE_CACHE),
        ):
            stages.begin(name)
            side.run(
                "teachonce-student", "train", str(cache), "--out", str(config.out / name.split(":")[0]),
                "--preset", str(preset), "--max-steps", str(config.steps), "--batch-blocks", "8",
                "--seed", str(config.seed), *mix,
            )  # fmt: skip
        stages.begin("the students are measured")
        opened = open_cache(cache)
        students = {name: config.out / name for name in STUDENTS}
        results = results_of(side, opened, students)
        (config.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        print(table(results))
        print(continuations(side, opened, students), flush=True)
        stages.begin("the page is written")
        report = config.out / "report.html"
        side.run(
            "teachonce-student",
            "report",
            *(str(students[name]) for name in _BEST_FIRST),
            "--cache",
            str(cache),
            "--out",
            str(report),
        )
    take_picture(report)


def _cost(started: float) -> str:
    peak_kb = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return f"{(time.monotonic() - started) / 60:.1f} minutes, peak memory of a process {peak_kb / 2**20:.2f} GB"
