"""Evaluation of a model: tasks, judges, comparison of runs, contamination, and failures to train on."""
