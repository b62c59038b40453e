"""Text as batches: corpora, tokenizers and windows of tokens."""
