"""How much frozen features know."""
