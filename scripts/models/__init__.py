"""The sweep over every causal family of transformers: tiny models, tried as teachers and as students, and their table.

`families` makes the tiny models, with the settings of `settings`; `left_out` says which families are none. `materials`
makes text, tokenizer and caches; `truth` computes in float64 what a model says of one text alone. `teachers` and
`students` try a family against it, `guarded` does so in a process that may hang or crash, `table` writes
`docs/models.md`.
"""
