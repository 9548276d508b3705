"""Packed rows to logits: decoder, masks, rotary embeddings, attention. Knows nothing of datasets or trainer."""
