"""Token mixers: frames in, frames of the same shape out."""
