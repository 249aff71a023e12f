"""Conversations and pairs: make one text of a row, and say which of its characters the teacher is to teach."""
