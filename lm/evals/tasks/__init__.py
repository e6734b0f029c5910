"""Benchmarks by name: specs/*.yaml say what a task asks, the modules here run each kind of them."""
