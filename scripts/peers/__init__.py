"""Parts of scripts/peers/__main__.py: the same rows in several formats, written, damaged and read again.

`rows` makes the data, `ours`, `mosaic` and `lit` write and read it, `worker` does so in processes that may be killed,
`trials` damages and judges.
"""
