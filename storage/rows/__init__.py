"""The rows of each kind: columns, rules, encoding and decoding."""
