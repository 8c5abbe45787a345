"""Which rank has which GPU: from what each rank sees, to one answer for all. Knows nothing of the rest."""
