"""Run the stages of the demo, each as a command in a separate process, and print their results."""

from __future__ import annotations

import json
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from storage import Cache, open_cache
from storage.errors import ConfigError
from storage.rows.samples import decode

_PROMPTS_SHOWN = 3
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_PICTURE_SIZE = "1280,1500"


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Settings of the demo. The defaults need no download."""

    out: Path = Path("demo")
    """Directory for everything that the demo writes."""
    teacher: str | None = None
    """Directory or hub id of a teacher. None trains a small teacher first."""
    data: str = "stdlib"
    """Text to use, given as for teachonce-precompute --data."""
    preset: str = "mini"
    """Shape of both students."""
    steps: int = 600
    """Training steps of each student: the one that learns from the cache and the one that learns from labels alone."""


def run_demo(config: DemoConfig) -> int:
    """Run the stages and print the table."""
    started = time.monotonic()
    _require_same_demo(config)
    cache = config.out / "cache"
    if not (cache / "manifest.json").is_file():
        teacher = config.teacher or str(_own_teacher(config))
        _run(
            "pipeline.cli", "--teacher", teacher, "--data", config.data, "--out", str(cache),
            "--samples.num-prompts", "768", "--samples.max-new-tokens", "48",
            "--beams.num-prompts", "640", "--beams.max-new-tokens", "16",
        )  # fmt: skip
    if config.teacher is None:
        _move_away(config)
    _run("storage.cli", "verify", str(cache))
    training = ("--preset", config.preset, "--max-steps", str(config.steps), "--learning-rate", "2e-3")
    _run("student.cli", "train", str(cache), "--out", str(config.out / "student"), *training)
    _run(
        "student.cli", "train", str(cache), "--out", str(config.out / "ce_only"), *training,
        "--mix.soft-targets", "0", "--mix.samples", "0", "--mix.beams", "0", "--mix.labels", "1",
    )  # fmt: skip
    results = _results(config, open_cache(cache))
    (config.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(_table(results))
    print(_continuations(config, open_cache(cache)))
    report = _report(config, cache)
    print(f"\n{config.out / 'results.json'} holds these figures; {_cost(started)}")
    print(f"what the student learnt and lost: {report}")
    return 0


def _require_same_demo(config: DemoConfig) -> None:
    """Raise ConfigError when --out holds stages of a demo with other settings, which must not be reused."""
    facts = {"teacher": config.teacher, "data": config.data, "preset": config.preset, "steps": config.steps}
    path = config.out / "demo.json"
    if path.is_file():
        for field, begun in json.loads(path.read_text()).items():
            if begun != facts[field]:
                raise ConfigError(
                    f"--out {config.out}: made with --{field} {begun}, not {facts[field]}; use another --out"
                )
    config.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts))


def _own_teacher(config: DemoConfig) -> Path:
    teacher, away = config.out / "teacher", config.out / "teacher-moved-away"
    if away.is_dir():
        away.rename(teacher)
    _run("scripts.demo.make_teacher", "--data", config.data, "--out", str(teacher))
    return teacher


def _move_away(config: DemoConfig) -> None:
    """Rename the teacher's directory, so that later stages cannot read the teacher."""
    teacher = config.out / "teacher"
    if teacher.is_dir():
        teacher.rename(config.out / "teacher-moved-away")
        print(f"{teacher} is moved away; from here on there is only the cache", file=sys.stderr)


def _run(module: str, *arguments: str) -> str:
    name = _COMMANDS[module]
    code = f"import sys; sys.argv[0] = {name!r}; from {module} import main; main()"
    print(f"\n$ {name} {shlex.join(arguments)}", file=sys.stderr, flush=True)
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True) as process:
        try:
            output, _ = process.communicate()
        except KeyboardInterrupt:
            process.wait()  # the stage heard it too and is saving what it has
            raise
    if process.returncode:
        print("this stage failed; mend what it says and run the demo again: finished stages are kept", file=sys.stderr)
        sys.exit(process.returncode)
    return output


_COMMANDS = {
    "pipeline.cli": "teachonce-precompute",
    "storage.cli": "teachonce-cache",
    "student.cli": "teachonce-student",
    "scripts.demo.make_teacher": "python -m scripts.demo.make_teacher",
}


def _results(config: DemoConfig, cache: Cache) -> dict[str, dict[str, Any]]:
    teacher = cache.identity.teacher
    results: dict[str, dict[str, Any]] = {
        "teacher": {
            "num_parameters": teacher["num_parameters"],
            "model_bytes": teacher["weights_bytes"],
            "perplexity": cache.manifest.teacher_perplexity("validation"),
            "kl_nats": 0.0,
            "top1_agreement": 1.0,
            "selection_accuracy": 1.0,
        }
    }
    for name in ("student", "ce_only"):
        directory = config.out / name
        results[name] = json.loads(
            _run("student.cli", "evaluate", str(directory), "--cache", str(cache.path), "--json")
        )
    return results


def _table(results: dict[str, dict[str, Any]]) -> str:
    chance = results["student"]["selection_chance"]
    lines = [
        f"\n{'':<10}{'parameters':>12}{'bytes':>14}{'perplexity':>12}{'KL nats/token':>18}{'top-1':>8}"
        f"{f'selection (chance {chance:.2f})':>26}"
    ]
    for name, found in results.items():
        error = f" ± {found['kl_standard_error']:.4f}" if found.get("kl_standard_error") is not None else ""
        kl = f"{found['kl_nats']:.4f}{error}"
        lines.append(
            f"{name:<10}{found['num_parameters']:>12,}{found['model_bytes']:>14,}{found['perplexity']:>12.2f}{kl:>18}"
            f"{found['top1_agreement']:>8.3f}{found['selection_accuracy']:>26.3f}"
        )
    return "\n".join(lines)


def _continuations(config: DemoConfig, cache: Cache) -> str:
    """Show held-out prompts with the continuations of the teacher (from the cache), the student and the baseline."""
    lines = []
    rows = (row for batch in cache.record_batches("samples", "validation") for row in decode(batch))
    for row in islice((row for row in rows if row.sample_index == 0), _PROMPTS_SHOWN):
        prompt = _decode(cache, row.prompt_ids)
        lines += [f"\nprompt   {prompt!r}", f"teacher  {row.text!r}"]
        for name in ("student", "ce_only"):
            text = _run(
                "student.cli", "generate", str(config.out / name), "--prompt", prompt,
                "--max-new-tokens", "48", "--temperature", "1", "--top-p", "1", "--seed", str(row.row_id),
            )  # fmt: skip
            lines.append(f"{name:<8} {text[:-1]!r}")
    return "\n".join(lines)


def _report(config: DemoConfig, cache: Path) -> Path:
    """Write the page about both students. If a Chromium is installed, also write a screenshot of the page."""
    report = config.out / "report.html"
    students = [str(config.out / name) for name in ("student", "ce_only")]
    _run("student.cli", "report", *students, "--cache", str(cache), "--out", str(report))
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser:
        with tempfile.TemporaryDirectory() as profile:
            subprocess.run(
                [
                    browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
                    f"--user-data-dir={profile}", f"--window-size={_PICTURE_SIZE}",
                    f"--screenshot={report.with_suffix('.png').resolve()}", report.resolve().as_uri(),
                ],
                capture_output=True,
                check=False,
            )  # fmt: skip
    return report


def _decode(cache: Cache, ids: Any) -> str:
    from transformers import AutoTokenizer

    text: str = AutoTokenizer.from_pretrained(cache.tokenizer_dir).decode(ids.tolist())
    return text


def _cost(started: float) -> str:
    peak_kb = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return f"{(time.monotonic() - started) / 60:.1f} minutes, peak memory of a process {peak_kb / 2**20:.2f} GB"
