"""Generate the teacher's texts and candidates, token by token."""
