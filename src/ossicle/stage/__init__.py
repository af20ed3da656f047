"""Chains of runs, and the labels that pass between them."""
