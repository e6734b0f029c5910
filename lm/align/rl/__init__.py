"""Reinforcement learning: rollouts, rewards, tools, advantages, and the objective."""
