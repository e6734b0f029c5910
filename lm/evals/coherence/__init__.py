"""Coherence of texts: entities, repetition, and the benefit of distant context."""
