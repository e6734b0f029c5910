"""A recipe of curation: which stages measure and rewrite the documents, and which thresholds then drop some."""
