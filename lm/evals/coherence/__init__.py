"""Whether a text hangs together: entities, repetition, and how much far context helps."""
