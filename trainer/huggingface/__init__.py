"""trainer/huggingface."""
