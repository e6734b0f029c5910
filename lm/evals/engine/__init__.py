"""The model as tasks ask it: texts to ids, log-likelihoods and generations in batches, and answers that are kept."""
