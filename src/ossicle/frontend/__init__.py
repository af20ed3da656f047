"""From waveforms to frames."""
