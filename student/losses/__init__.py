"""Losses of the student: sparse targets, token log-probabilities and beam selection."""
