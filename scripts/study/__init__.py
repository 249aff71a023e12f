"""Parts of the study of sparse targets (scripts/study_targets.py)."""
