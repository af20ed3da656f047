"""Corpora: each is one file that lists its sources and loads them for ``ossicle prepare``."""
