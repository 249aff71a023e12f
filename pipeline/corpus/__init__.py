"""Turn a data source into blocks and prompts: read, tokenize, store and pack its documents."""
