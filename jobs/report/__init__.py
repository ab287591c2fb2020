"""The morning report: what became of an output's rows, what it took, and how its runs ended."""

import logging

# Before it is imported: where a home can't be written, or while it looks for fonts, matplotlib says
# so in lines of its own, among a run's of JSON.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
