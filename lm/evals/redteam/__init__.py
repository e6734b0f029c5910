"""Red-teaming: harmful requests, attacks that try to get them answered, and success rates.

task.py runs it all on a model, prompts.py reads benchmarks, hazards.py names the hazards, figures.py computes metrics, and
agreement.py compares two refusal detectors. search.py rewrites a request with another model's help (PAIR, TAP), gcg.py finds a
suffix by gradients, and searched.py uses both in the task.
"""
