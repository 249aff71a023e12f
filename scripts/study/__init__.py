"""The study of sparse targets: students and noise (scripts/study/targets.py) and bytes (scripts/study/bytes.py)."""
