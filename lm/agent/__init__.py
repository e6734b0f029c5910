"""An agent: a model that plans, calls tools, observes and answers, under a budget, consent and a guard (docs/agent.md)."""
