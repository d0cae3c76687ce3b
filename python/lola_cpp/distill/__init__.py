"""Makes LoLA adapters from Hugging Face folders: attention transfer, then LoRA (LoLCATs, arXiv 2410.10254)."""
