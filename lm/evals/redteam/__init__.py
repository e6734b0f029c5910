"""Red-teaming: harmful requests, attacks that try to get them answered, and success rates.

task.py runs it all on a model, prompts.py reads benchmarks, attacks.py rewrites requests, safety_eval.py asks and judges, and
figures.py computes metrics. search.py rewrites a request with another model's help (PAIR, TAP), gcg.py finds a suffix by
gradients.
"""
