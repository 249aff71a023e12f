"""Draw text from a student token by token, and rank candidates by its scores."""
