"""A service desk: customers, their records, tools that change them, rules, and a user who is simulated by rules."""
