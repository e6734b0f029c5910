"""What the monitor computes: measures of an exchange, references, change detection, canaries, rules."""
