"""The fuzzer: give damaged caches to all code that reads caches. It must refuse them or read rows that keep the rules.

`targets` holds the readers, `mutators` damages inputs, `rules` checks what was read, and `worker` reads in a process
that may crash. `at_random` and `with_atheris` are two ways to search for inputs.
"""
