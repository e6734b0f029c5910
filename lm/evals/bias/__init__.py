"""Measures of stereotypes and of differences between groups, each with a 95 % interval.

A metric NAME comes with NAME_low and NAME_high. Each module builds a task of lm/evals/tasks. rows.py opens its data, and
lm/evals/stats/intervals.py computes the intervals.
"""
