"""Conversations with images and audio: their tokens and arrays, their files, their batches."""
