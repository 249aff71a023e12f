"""What a tokenizer does to a text: how it begins, where it ends, and how ids become text. Imports no tokenizer."""
