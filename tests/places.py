"""Where things lie: tests name no place by how deep they lie themselves."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "storage" / "golden"
# Real text and logits beside the checkout; tests that want them skip where they are not.
SHARED_DATA = ROOT.parent / "shared" / "data"
