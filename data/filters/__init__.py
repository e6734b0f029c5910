"""Filters of curation: functions that measure documents, and functions that rewrite them. A recipe applies the thresholds."""
