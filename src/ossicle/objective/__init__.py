"""Losses: what compares an encoder with a target."""
