"""The fuzzer: whatever reads a cache gets damaged ones, and reads them by the rules or refuses them.

`targets` are what reads, `mutators` do the damage, `rules` judge what was read, `worker` is a process that may crash,
`at_random` and `with_atheris` are the two ways to look for inputs.
"""
