"""Parts of the study of sparse targets (scripts/study/targets.py)."""
