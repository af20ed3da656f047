"""Parametrised modules that the floors above build with."""
