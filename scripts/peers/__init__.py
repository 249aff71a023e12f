"""Trials of storage formats: the same rows are written in several formats, damaged and read.

scripts/support has the rows (`rows`) and the other libraries' formats (`mosaic`, `lit`). Here `ours` writes and reads
our format, `worker` runs writers and readers in processes that may be killed, `trials` damages and judges, and
`comparison` runs all trials of a system.
"""
