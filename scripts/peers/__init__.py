"""Trials of storage formats: the same rows are written in several formats, damaged and read.

scripts/support has the rows (`rows`) and the other libraries' formats (`mosaic`, `lit`). Here `ours` writes and reads
our format, `worker` runs writers and readers in processes that may be killed, and `trials` damages and judges.
"""
