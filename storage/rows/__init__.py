"""What a row means, kind by kind: columns, rules, encoding and decoding."""
