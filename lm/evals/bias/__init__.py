"""Whom a model harms: measures of stereotypes, each with an interval of 95 % on every figure.

A figure NAME stands beside NAME_low and NAME_high. Each module makes a task of lm/evals/tasks; `given` reads what a task
is given, `intervals` says how sure a figure is.
"""
