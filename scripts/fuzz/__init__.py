"""Fuzzing of everything that reads a cache."""
