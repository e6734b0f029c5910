"""How the layers of a model are executed: scanned or unrolled, with rematerialisation and offload, in pipeline stages."""
