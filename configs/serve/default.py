"""Default values of all keys of a server."""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.checkpoint = placeholder(str)  # a workdir, a Hugging Face folder, a GGUF file; none: SmolLM2 of `make serve`
    config.name = placeholder(str)  # of the model in requests; none: the name of the checkpoint's folder or file
    config.chat_template = placeholder(str)  # a Jinja file; none: the model's own
    config.batch = placeholder(str)  # OpenAI's batch file (JSON lines): answer it, write WORKDIR/results.jsonl, and end

    config.host = "127.0.0.1"  # address to listen at; one that other machines reach needs auth.keys or auth.open
    config.port = 8000  # 0: any free port
    config.watch = 0.0  # seconds between two looks for a newer checkpoint in a training run's workdir; 0: none
    config.drain = 30.0  # seconds that running requests have to end after SIGTERM

    # The engine.
    config.rows = 32  # requests that are decoded together
    config.blocks = 0  # of the key/value cache; 0: by the memory
    config.dtype = ""  # of matrix products: bfloat16, float32; "": as in training
    config.cache_dtype = ""  # int8: keys and values in 8 bits; "": the compute type
    config.quantize = ""  # int8, int4: of the weights; "": as stored
    config.speculate = ""  # ngram, or the path of a draft model; "": no speculation

    # Adapters (LoRA) are models of their own names.
    config.adapters = ""  # comma-separated NAME=FOLDER: loaded at the start
    config.adapter_dir = placeholder(str)  # folder of those that clients may load while it runs; none: they may load none

    # Limits; 0: none, except where another meaning is given.
    config.max_prompt_tokens = 0  # of a prompt
    config.max_new_tokens = 0  # of an answer
    config.max_choices = 128  # prompts × continuations of one request
    config.timeout = 600.0  # seconds of a request, in the queue and out of it
    config.body_bytes = 4 << 20  # of a request; at least 1
    config.read_seconds = 60.0  # in which a request must have come, and in which a client must take a part of a stream
    config.unread_tokens = 4096  # of a stream that its client does not read, before it is cancelled; at least 1

    config.auth = ml_collections.ConfigDict()
    config.auth.keys = placeholder(str)  # file with lines NAME DIGEST; DIGEST is printf %s KEY | sha256sum; none: no keys
    config.auth.open = False  # serve without keys at an address that other machines reach
    config.auth.per_minute = placeholder(int)  # requests a minute of each key or address; none: no limit on loopback, else 600
    return config
