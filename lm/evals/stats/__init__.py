"""Metrics of results, confidence intervals, and tests of differences."""
