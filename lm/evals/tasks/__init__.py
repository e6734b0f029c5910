"""Benchmarks by name: specs/*.yaml declare the tasks, and each module here runs one kind of task."""
