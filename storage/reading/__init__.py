"""A cache in use: opened, shuffled, streamed, summed up, and proved byte by byte."""
