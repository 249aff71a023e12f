"""The same rows in several formats: written, damaged and read again.

`ours`, and `mosaic` and `lit` of support, write and read; `worker` does so in processes that may be killed; `trials`
damages and judges; `comparison` gives each system its trials.
"""
