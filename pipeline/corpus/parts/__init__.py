"""Parts of a corpus: each is tokenized by itself, by any process, and then they are joined."""
