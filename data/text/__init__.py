"""Convert documents to packed batches of tokens: tokenizers, splits, duplicates, packing, datasets on disk, batches."""
