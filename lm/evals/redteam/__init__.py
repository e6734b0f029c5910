"""Red-teaming: requests that a model should refuse, the attacks that get them answered, and how often they do.

task.py tries a model with all of it, prompts.py reads the benchmarks, hazards.py names the hazards, figures.py counts, and
agreement.py tells how far two ways to detect refusals agree. search.py rewrites a request with another model's help (PAIR,
TAP), gcg.py finds a suffix by gradients, and searched.py puts both to use in the task.
"""
