"""Students as GGUF files, with their tokenizers."""
