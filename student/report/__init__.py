"""The report about students: one page on what they learnt, what they lost, and how to have it again."""
