"""Cut a smaller model out of a teacher: fewer layers, neurons and heads, chosen evenly or by what they do to a text."""
