"""Find duplicates and benchmark text in a corpus of any size: exact, near, repeated spans, decontamination.

A document has a number, which the caller chooses: unique in the whole corpus, in [0, 2^61). A lower number is an earlier
document. Results depend on numbers, texts and scores alone, not on batches, parts and their order. Shingles and digests are
written in parts, one folder a worker or a shard. Sorting and joining them happens on disk, in bounded memory.
"""
