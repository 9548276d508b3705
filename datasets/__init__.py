"""Raw files to packed rows: readers, tokenizers, packing, lanes, loading. Knows nothing of models or trainer."""
