"""Documents to packed batches of tokens: tokenizers, splits, duplicates, packing, the dataset on disk, batches."""
