"""From shards to batches, planned and exactly once."""
