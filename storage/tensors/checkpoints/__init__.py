"""Load a model from files that may hold anything: its config, the number of its weights, adapters, first passes."""
