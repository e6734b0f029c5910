"""Sharding and multi-host: the mesh, the table from logical to mesh axes, and the start and end of a job."""
