"""The records of a cache: plan, commit records, manifest, their settings, and the dataset card."""
