"""models/huggingface."""
