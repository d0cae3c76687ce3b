"""Linear-attention language models with LoLA's three memories on quantized GGUF weights."""
