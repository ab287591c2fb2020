"""The morning report: what became of an output's rows, what it took, and how its runs ended."""
