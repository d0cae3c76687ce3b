"""Converters from Hugging Face models and LoLCATs checkpoints to GGUF base models and LoLA adapters."""
