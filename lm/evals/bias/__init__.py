"""Measures of stereotypes and of differences between groups, each with a 95 % interval.

A metric NAME comes with NAME_low and NAME_high. Each module builds a task of lm/evals/tasks. `given` reads a task's keys and
data; lm/evals/stats/intervals.py computes the intervals.
"""
