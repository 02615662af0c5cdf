"""Models on a node: reading GGUF, converting it for the engine, tokenizers, catalog and providers."""
