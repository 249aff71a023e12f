"""The page about students: what they learnt, what they lost, and how to reproduce it."""
