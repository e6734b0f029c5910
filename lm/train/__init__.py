"""Training: schedule, optimizer, one step, the loop around it, its log, and ahead-of-time compilation for other machines."""
