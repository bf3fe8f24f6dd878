"""Local training, in several forms that give the same numbers: which one is fastest depends on model and machine."""
