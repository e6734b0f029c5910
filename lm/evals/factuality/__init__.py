"""Measures of hallucination: closed-book questions, claims against documents, self-consistency, and cloze facts."""
