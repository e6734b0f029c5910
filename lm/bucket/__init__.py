"""Buckets (gs://, s3://): a workdir in a bucket, and models, tokenizers and datasets that lie there."""
