"""What ``ossicle bench`` measures, and the peers that it measures beside."""
