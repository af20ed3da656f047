"""What every floor shares: dimensions, batches, clocks, seeds, errors."""
