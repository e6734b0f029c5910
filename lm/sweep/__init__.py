"""Sweeps: many runs of a verb with other values of some keys, chosen, pruned and recorded with Optuna."""
