"""The command line: configs, runs and commands."""
