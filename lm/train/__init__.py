"""Training: schedule, optimizer, one step, the loop around it, its log, and its plan for machines not at hand."""
