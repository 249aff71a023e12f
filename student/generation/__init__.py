"""Text out of a student, drawn token by token, and candidates ranked by it."""
