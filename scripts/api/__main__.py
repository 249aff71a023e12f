"""Write docs/api.md from the docstrings of the public names of storage and student.

python -m scripts.api
"""

from __future__ import annotations

from scripts.api.page import PAGE, render

if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(PAGE)
