"""Byte-level BPE on tiktoken, exact: from tokenizer.json or GGUF metadata."""
