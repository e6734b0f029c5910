"""Plan a training run for TPUs that are not attached: compile the real step ahead of time, say if it fits and how fast it is.

compiled.py: the compiled step. program.py: reads the compiler's program. network.py: a model of
collectives and of transfers to hosts. estimate.py: time of a step. plan.py: all of it for one config. search.py: the best mesh,
remat policy and slices. command.py: the flag --plan and what it prints.
"""
