"""The engine: requests that come and go, decoded together over a paged key/value cache."""
