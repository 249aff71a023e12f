"""The report from end to end: measure every student, look at some rows, write the page."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from storage.pages.markup import Markup, join
from storage.pages.page import Section, page, publish_page, require_file_name
from storage.pages.svg import require_matplotlib
from storage.reading.cache import Cache, open_cache
from storage.text.completions import completion_text
from student.config import EvaluateConfig, ReportConfig
from student.evaluation import evaluate_loaded
from student.generation.generator import generation_speeds
from student.model.device import choose_device
from student.model.fitting import load_fitting_student
from student.model.tokenizers import load_cache_tokenizer
from student.report.candidates import candidates_view, rank_some_prompts
from student.report.curves import calibration_charts, divergence_charts, training_charts
from student.report.headline import headline
from student.report.passage import look_at_passage, passage_view
from student.report.reproduction import cost_table, reproduction
from student.report.runs import Run, TextOf, distinct_names
from student.report.summary import summary_view, told_about
from student.report.texts import continue_some_prompts, texts_view, variety_table
from student.report.training_log import TrainingLog
from student.run_record import read_run
from student.training.run_log import metrics_lines


def report(config: ReportConfig) -> int:
    """Write the page and return its size in bytes.

    Raises MissingExtraError without matplotlib, ConfigError or WriteRefusedError for a page that cannot be written,
    NoSuchStudentError, VocabularyMismatchError, CheckpointError for a damaged run.json, or a CacheError.
    """
    require_matplotlib()
    require_file_name(config.out)
    cache = open_cache(config.cache)
    settings = [read_run(directory) for directory in config.students]
    device = choose_device(config.device)
    models = [load_fitting_student(directory, cache).to(device).eval() for directory in config.students]
    runs = [
        Run(
            name=name,
            directory=directory,
            settings=run_settings,
            log=TrainingLog.of(metrics_lines(directory)),
            measures=evaluate_loaded(model, cache, _evaluation(config, directory)),
            tokens_per_second=speed,
        )
        for name, directory, run_settings, model, speed in zip(
            distinct_names(config.students), config.students, settings, models, generation_speeds(models), strict=True
        )
    ]
    content = report_page(config, cache, runs, models, _text_of(cache), _machine(device))
    publish_page(config.out, content)
    return len(content)


def report_page(
    config: ReportConfig,
    cache: Cache,
    runs: Sequence[Run],
    models: Sequence[Any],
    text_of: TextOf,
    machine: str,
) -> bytes:
    """Return the HTML page. The bytes are the same for the same runs, models and cache.

    models: the model of each run; text_of: from token ids to text; machine: where speed was measured, in words.
    """
    names, teacher = [run.name for run in runs], cache.identity.teacher
    passage = look_at_passage(models, cache, text_of)
    candidates = rank_some_prompts(models, cache, text_of)
    texts = continue_some_prompts(models, cache, text_of)
    has_blocks = runs[0].measures["num_targets"]
    parts: list[tuple[str, str, Markup | None]] = [
        ("figures", "Teacher and student", headline(runs, teacher, machine)),
        ("divergence", "Where it differs from the teacher", divergence_charts(runs) if has_blocks else None),
        ("calibration", "Calibration", calibration_charts(runs) if has_blocks else None),
        ("passage", "Token by token", passage_view(passage, names) if passage else None),
        ("candidates", "Choosing among candidates", candidates_view(candidates, names) if candidates else None),
        ("texts", "Texts", _texts(runs, texts_view(texts, names) if texts else None)),
        ("training", "Training", training_charts(runs)),
        ("cost", "Bytes and time", cost_table(cache, runs)),
        ("reproduce", "Have it again", reproduction(cache, str(config.cache), runs, config.out)),
    ]
    sections = [Section(key=key, title=title, content=content) for key, title, content in parts if content]
    told = told_about(runs)
    *earlier, last = [run.name for run in told]
    students = f"{', '.join(earlier)} and {last}" if earlier else last
    return page(
        title=f"{students}, distilled from {teacher['id']}", lead=summary_view(runs, teacher), sections=sections
    )


def _texts(runs: Sequence[Run], side_by_side: Markup | None) -> Markup | None:
    found = [part for part in (variety_table(runs), side_by_side) if part]
    return join(found) if found else None


def _evaluation(config: ReportConfig, directory: Path) -> EvaluateConfig:
    return EvaluateConfig(
        student=directory,
        cache=config.cache,
        num_prompts=config.num_prompts,
        device=config.device,
        quiet=config.quiet,
    )


def _text_of(cache: Cache) -> TextOf:
    return functools.partial(completion_text, load_cache_tokenizer(cache), skip_special_tokens=False)


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    num_threads = torch.get_num_threads()
    threads = f"{num_threads} thread{'s' * (num_threads > 1)}"
    return f"{threads} of a machine with {os.cpu_count()} {platform.machine()} cores"
