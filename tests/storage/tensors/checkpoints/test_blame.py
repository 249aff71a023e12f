"""What a model's files make a library raise becomes one line that names the setting."""

from __future__ import annotations

from typing import Any

import pytest

from storage.errors import UnusableModelError
from storage.tensors.checkpoints.blame import blaming_files


@pytest.mark.parametrize(
    "settings",
    [{"hidden_act": "spiral"}, {"size": 1, "rope_parameters": {"full_attention": {"hidden_act": "spiral"}}}],
)
def test_a_name_that_a_library_does_not_know_is_told_with_its_setting(settings: dict[str, Any]) -> None:
    with pytest.raises(UnusableModelError, match="hidden_act is 'spiral' in its config"), blaming_files("", settings):
        raise KeyError("spiral")


def test_a_name_that_no_setting_holds() -> None:
    with pytest.raises(UnusableModelError, match="no 'spiral'"), blaming_files("", {"parts": {"size": 1}}):
        raise KeyError("spiral")
