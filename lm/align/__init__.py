"""Alignment: a pretrained model learns to follow, to prefer, to solve and to refuse."""
