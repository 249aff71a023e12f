"""Turn documents into blocks and prompts: tokenize them, store the tokens, split and pack them."""
