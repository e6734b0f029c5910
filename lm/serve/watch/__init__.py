"""What the monitor computes: measures of an exchange, references, change detection, and the status page."""
