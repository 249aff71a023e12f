from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from storage.disk.hashing import sha256_file


@pytest.mark.parametrize("num_bytes", [0, 1, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, (3 << 18) + 5, 5 << 20])
def test_sha256_of_a_file_shorter_or_longer_than_one_piece(tmp_path: Path, num_bytes: int) -> None:
    content = random.Random(num_bytes).randbytes(num_bytes)
    (tmp_path / "file").write_bytes(content)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()
