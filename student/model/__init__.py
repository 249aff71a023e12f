"""The student: any causal language model that fits a cache. Build or load it, check it, and call its body and head."""
