"""What a run tells its reader: one report.json and one self-contained report.html a verb."""
