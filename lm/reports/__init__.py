"""Reports of runs: one report.json and one self-contained report.html per verb."""
