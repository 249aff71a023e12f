"""DistillKit's compressed sets: the decoder against values computed by hand, and sets of the made-up teacher."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.importing.errors import ImportRowError, ImportSourceError, MisalignedRowError
from storage.importing.formats.distillkit import decode_logprobs, unpack_bits
from storage.importing.formats.distillkit_config import Compression, ResidualBin
from tests.storage.importing.conftest import Import
from tests.storage.importing.dumps import MadeUpTeacher, write_parquet
from tests.storage.importing.truth import check_text, stored

PLAIN = Compression(
    d=300, k=4, exact_k=2, exact_dtype="float32", terms=(0, 1, "sqrt"), term_dtype="float32", residual_bins=(),
    delta_encoding=False, normalize_t=False,
)  # fmt: skip
Row = dict[str, Any]


def decoded(content: bytes, compression: Compression) -> list[float]:
    assert len(content) == compression.logprob_bytes
    return decode_logprobs(np.frombuffer(content, np.uint8)[None], compression)[0].tolist()


def test_ids_are_packed_from_the_highest_bit_on() -> None:
    # 299 = 100101011, 1 = 000000001, 256 = 100000000, 5 = 000000101, and four bits to fill the last byte:
    # 10010101 10000000 01100000 00000000 0101|0000
    assert (PLAIN.id_bits, PLAIN.id_bytes) == (9, 5)
    packed = np.array([[0x95, 0x80, 0x60, 0x00, 0x50]], dtype=np.uint8)
    assert unpack_bits(packed, 9, 4).tolist() == [[299, 1, 256, 5]]


@pytest.mark.parametrize(("d", "bits"), [(2, 1), (256, 8), (257, 9), (50257, 16), (65536, 16), (151936, 18)])
def test_bits_of_an_id(d: int, bits: int) -> None:
    assert dataclasses.replace(PLAIN, d=d, k=1, exact_k=1).id_bits == bits


def test_a_curve_through_what_is_not_exact() -> None:
    content = struct.pack("<5f", -0.5, -1.0, -2.0, -0.5, -0.25)
    # place 0: −2; place 1: −2 − 0.5 − 0.25 √1
    assert decoded(content, PLAIN) == [-0.5, -1.0, -2.0, -2.75]


def test_a_curve_over_places_from_0_to_1() -> None:
    compression = dataclasses.replace(PLAIN, k=5, terms=(0, 2), normalize_t=True)
    content = struct.pack("<4f", -0.5, -1.0, -2.0, -1.0)
    # places 0, ½ and 1: −2 − place²
    assert decoded(content, compression) == [-0.5, -1.0, -2.0, -2.25, -3.0]


def test_residuals_in_bins_of_few_bits() -> None:
    bins = (
        ResidualBin(scale_dtype="float16", element_bits=4, num_elements=1),
        ResidualBin(scale_dtype="float32", element_bits=1, num_elements=2),
    )
    compression = dataclasses.replace(PLAIN, k=6, exact_k=1, terms=(0,), residual_bins=bins)
    # 4 bits: 11 − 8 = 3 steps of 0.125; 1 bit: 1 is +0.5, 0 is −0.5; the last two places have no residual
    content = struct.pack("<2f", -0.5, -2.0) + struct.pack("<e", 0.125) + b"\xb0" + struct.pack("<f", 0.5) + b"\x80"
    assert decoded(content, compression) == [-0.5, -1.625, -1.5, -2.5, -2.0, -2.0]


def test_differences_in_bfloat16() -> None:
    compression = dataclasses.replace(PLAIN, k=3, exact_k=3, exact_dtype="bfloat16", terms=(), delta_encoding=True)
    # bfloat16 is the high half of a float32: −0.5 is BF00, −1 is BF80
    assert decoded(b"\x00\xbf\x00\xbf\x80\xbf", compression) == [-0.5, -1.0, -2.0]


def packed_row(teacher: MadeUpTeacher, ids: list[int], k: int) -> Row:
    """A row as DistillKit captures it: k exact float32 a position, for all but the last token."""
    best = [teacher.top(i, k) for i in ids[:-1]]
    bits = ["".join(f"{i:09b}" for i in chosen) for chosen in best]
    return {
        "input_ids": ids,
        "compressed_logprobs": [
            list(struct.pack(f"<{k}f", *teacher.logprobs(i)[chosen])) for i, chosen in zip(ids[:-1], best, strict=True)
        ],
        "bytepacked_indices": [
            [int(row[start : start + 8].ljust(8, "0"), 2) for start in range(0, len(row), 8)] for row in bits
        ],
    }


def settings(k: int) -> Row:
    return {
        "d": 257, "k": k, "exact_k": k, "exact_dtype": "float32", "polynomial_terms": None, "term_dtype": "float32",
        "residual_bins": [], "delta_encoding": False, "error_diffusion": False, "normalize_t": False,
    }  # fmt: skip


@pytest.fixture
def captured(made_up: MadeUpTeacher, tmp_path: Path) -> Path:
    """A directory as DistillKit's capture leaves it: two files, and how they were compressed."""
    directory = tmp_path / "captured"
    directory.mkdir()
    for file in range(2):
        rows = [packed_row(made_up, made_up.text(9 + n, 10 * file + n), 5) for n in range(4)]
        write_parquet(directory / f"data_{file}.parquet", rows)
    (directory / "compression_config.yaml").write_text(json.dumps(settings(5)))
    return directory


def test_a_set_becomes_a_cache(imported: Import, made_up: MadeUpTeacher, captured: Path) -> None:
    cache = imported(captured, "distillkit")
    assert cache.identity.unknown_columns == ("entropy", "label_logprob"), "labels outside the five are not known"
    assert cache.manifest.teacher_perplexity("train") is None
    found = {tuple(text["ids"]): text for text in stored(cache)}
    assert len(found) == 8
    for file in range(2):
        for n in range(4):
            ids = made_up.text(9 + n, 10 * file + n)
            check_text(found[tuple(ids)], made_up, ids, 5, with_label=False)


def test_labels_mark_what_is_not_taught(imported: Import, made_up: MadeUpTeacher, tmp_path: Path) -> None:
    ids = made_up.text(8, 0)
    row = packed_row(made_up, ids, 5) | {"labels": [-100, -100, -100, *ids[3:6], -100, ids[7]]}
    path = write_parquet(tmp_path / "data.parquet", [row])
    (tmp_path / "compression_config.yaml").write_text(json.dumps({"logprob_compressor": settings(5)}))
    (found,) = stored(imported(path, "distillkit", labels_column="labels"))
    assert [target is not None for target in found["targets"]] == [False, False, True, True, True, False, True]
    check_text(found, made_up, ids, 5, with_label=False)


def test_a_set_of_another_configuration_is_refused(imported: Import, captured: Path) -> None:
    (captured / "compression_config.yaml").write_text(json.dumps(settings(6)))
    with pytest.raises(
        ImportRowError, match=r"row 0: position 0: compressed_logprobs has 20 bytes, expected 24 by its"
    ):
        imported(captured, "distillkit")
    (captured / "compression_config.yaml").write_text("k: 5\n")
    with pytest.raises(
        ImportSourceError, match=r"compression_config\.yaml: is not how DistillKit writes d, k.*KeyError"
    ):
        imported(captured, "distillkit")
    (captured / "compression_config.yaml").unlink()
    with pytest.raises(ImportSourceError, match="missing: it says how the set was compressed"):
        imported(captured, "distillkit")


def test_rows_one_position_too_long_are_refused(imported: Import, made_up: MadeUpTeacher, captured: Path) -> None:
    row = packed_row(made_up, made_up.text(9, 0), 5)
    row["input_ids"] = row["input_ids"][:-2]
    write_parquet(captured / "data_1.parquet", [row])
    with pytest.raises(MisalignedRowError, match=r"data_1\.parquet, row 0: has lists at 8 positions for 7 tokens"):
        imported(captured, "distillkit")
