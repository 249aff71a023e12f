"""Use a cache: open it, shuffle and stream its rows, summarise it, and verify every byte."""
