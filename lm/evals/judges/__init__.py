"""Who grades an answer: rules, a classifier of our own, or a model behind an endpoint."""
