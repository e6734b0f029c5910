"""The tour: a language model's whole life, one plain file a stage. Read README.md first; `python -m tour` runs it."""
