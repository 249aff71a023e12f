"""The study of what teaches best: targets (targets.py), bytes of targets (bytes.py) and beginnings (beginnings/)."""
