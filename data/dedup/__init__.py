"""Find duplicates and benchmark text in a corpus of any size: exact, near, repeated spans, decontamination.

A document has a number, which the caller chooses: unique in the whole corpus, in [0, 2^61). A lower number is an earlier
document. Documents of earlier corpora have numbers from 2^61 on: the corpus and the place in its index, see `keep.old_bits`.
Results depend on numbers, texts and scores alone, not on batches, parts and their order. Shingles and digests are written in
parts, one folder a worker or a shard. Sorting and joining them happens on disk, in bounded memory.
"""
