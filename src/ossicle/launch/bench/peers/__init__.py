"""HuBERT's training step in other toolkits, each asked for the same work."""
