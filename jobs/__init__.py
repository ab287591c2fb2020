"""Entry points: the `rushes` command and its recipes."""
