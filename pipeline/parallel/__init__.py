"""One model over several ranks: which parameters are cut, how, and how each rank loads its own."""
