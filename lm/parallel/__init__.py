"""Where arrays live: the mesh, the table from logical to mesh axes, and the start of a multi-host job."""
