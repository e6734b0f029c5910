"""Run a model for tasks: encode texts, compute log-likelihoods, generate in batches, and cache answers."""
