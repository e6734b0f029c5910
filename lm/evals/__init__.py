"""Evaluation: tasks, scorers and red-teaming, the n-gram baselines a language model must beat, and the report."""
