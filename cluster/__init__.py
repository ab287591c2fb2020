"""Where it runs: the only home of ray."""
