"""IFEval (Zhou et al. 2023): instructions whose following a program can verify, and the programs."""
