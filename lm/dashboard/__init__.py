"""The live page over many runs: it reads what runs append, thins their curves, and derives alerts. See __main__.py."""
