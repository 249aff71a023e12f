"""From a data source to blocks and prompts: documents are read, tokenized, stored and packed."""
