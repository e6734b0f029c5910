"""Distillation from a teacher with another tokenizer: the tokens that both share, the spans of a text, and the objective."""
