"""One clip over several ranks: how a model is cut and loaded, how a step's passes are dealt out."""
