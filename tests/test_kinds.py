"""Kinds are told apart by their objects in the tables: only the files listed here name one."""

from __future__ import annotations

import ast
import typing

import pytest

from storage import cli
from storage.rows.kinds import KINDS
from tests.places import ROOT

OWN_FILE = "the file of one kind"
ABOUT_ONE_KIND = "a measure, or a part of a page, that is about the rows of this kind alone"
MAY_NAME = {
    "storage/rows/soft_target_kind.py": OWN_FILE,
    "storage/rows/samples.py": OWN_FILE,
    "storage/rows/beams.py": OWN_FILE,
    "pipeline/producers/soft_targets.py": OWN_FILE,
    "pipeline/producers/samples.py": OWN_FILE,
    "pipeline/producers/beams.py": OWN_FILE,
    "student/losses/parts/soft_targets.py": OWN_FILE,
    "student/losses/parts/samples.py": OWN_FILE,
    "student/losses/parts/beams.py": OWN_FILE,
    "student/loops/soft_targets.py": OWN_FILE,
    "student/loops/samples.py": OWN_FILE,
    "student/loops/dataset.py": "default of an argument",
    "student/losses/targets.py": "settings of soft targets, for whatever is computed from them",
    "storage/importing/facts.py": "what is imported are soft targets",
    "storage/importing/run.py": "what is imported are soft targets",
    "storage/sharing/topk_export.py": "what is exported are soft targets",
    "storage/cli.py": "choices of a flag, written out for its help",
    "pipeline/cutting/config.py": "a text is read as for soft targets, without prompts",
    "pipeline/cutting/text.py": "a cache holds its text in the blocks of soft targets",
    "pipeline/config.py": "choices of a flag, written out for its help; the settings of each kind are fields",
    "storage/records/identity.py": "every cache states how soft targets were rounded",
    "storage/records/manifest.py": "the manifest states the teacher's means over soft targets",
    "storage/report/cache_page.py": ABOUT_ONE_KIND,
    "storage/report/cache_rows.py": ABOUT_ONE_KIND,
    "student/evaluation/acceptance.py": ABOUT_ONE_KIND,
    "student/evaluation/blocks.py": ABOUT_ONE_KIND,
    "student/evaluation/continuations.py": ABOUT_ONE_KIND,
    "student/evaluation/ranking.py": ABOUT_ONE_KIND,
    "student/evaluation/whole.py": ABOUT_ONE_KIND,
    "student/export/held_out.py": ABOUT_ONE_KIND,
    "student/report/candidates.py": ABOUT_ONE_KIND,
    "student/report/passage.py": ABOUT_ONE_KIND,
    "student/report/texts.py": ABOUT_ONE_KIND,
    "student/run_record.py": "runs of earlier versions gave candidates another weight",
    "student/training/run_directory.py": "a student keeps the length penalty that its cache's beams were scored with",
}


def names_a_kind(source: str) -> bool:
    strings = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return any(value in KINDS for value in strings if isinstance(value, str))


def test_the_guard_sees_comparisons_tables_and_patterns() -> None:
    assert names_a_kind('kind == "beams"')
    assert names_a_kind('{"samples": 1}[kind]')
    assert names_a_kind('match kind:\n    case "soft_targets":\n        pass\n')
    assert not names_a_kind('"beams of light"')


@pytest.mark.parametrize("package", ["storage", "pipeline", "student"])
def test_only_these_files_name_a_kind(package: str) -> None:
    files = {str(file.relative_to(ROOT)): file for file in (ROOT / package).rglob("*.py")}
    naming = {name for name, file in files.items() if names_a_kind(file.read_text())}
    assert naming == {name for name in MAY_NAME if name.startswith(f"{package}/")}


def test_head_offers_every_kind() -> None:
    assert typing.get_args(typing.get_type_hints(cli.head)["kind"]) == tuple(KINDS)
