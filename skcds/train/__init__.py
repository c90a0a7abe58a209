"""How networks are trained: phases of objectives over a run, within a budget, from checkpoint to checkpoint."""
