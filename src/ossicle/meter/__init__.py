"""Counters with no opinion: FLOPs, throughput, energy, the cost card."""
