"""Measures of hallucination: closed-book questions, claims against documents and self-consistency."""
