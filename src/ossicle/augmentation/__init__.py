"""What is done to a batch of waveforms on the device before the model hears them."""
