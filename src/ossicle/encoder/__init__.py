"""Stacks of blocks around a mixer."""
