"""The teacher's texts and candidates, token by token."""
