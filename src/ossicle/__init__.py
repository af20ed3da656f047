"""Efficient, distributed, self-supervised pretraining of speech encoders."""
