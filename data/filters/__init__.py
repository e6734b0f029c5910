"""Measure and repair documents: language, addresses, personal data, characters, word lists, bias.

Functions take a batch of texts or of other columns. Those that measure return NumPy columns, one value a document; those that
rewrite return the new texts too. A recipe decides later which values drop a document.
"""
