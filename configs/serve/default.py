"""Default values of all keys of a server."""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.checkpoint = placeholder(str)  # a workdir, a Hugging Face folder, a GGUF file; none: SmolLM2 of `make serve`
    config.name = placeholder(str)  # of the model in requests; none: the name of the checkpoint's folder or file
    config.chat_template = placeholder(str)  # a Jinja file; none: the model's own
    config.batch = placeholder(str)  # OpenAI's batch file (JSON lines): answer it, write WORKDIR/results.jsonl, and end

    config.host = "127.0.0.1"  # address to listen at; one that other machines reach needs auth.key_file or auth.open
    config.port = 8000  # 0: any free port
    config.watch = 0.0  # seconds between two looks for a newer checkpoint in a training run's workdir; 0: none
    config.drain = 30.0  # seconds that running requests have to end after SIGTERM

    # The engine.
    config.rows = 32  # requests that are decoded together
    config.queue = 1024  # requests that wait; more are refused with 429
    config.context = 256  # tokens for which the key/value cache on a CPU has room for each of `rows`; longer requests share it
    # Blocks of 16 tokens of the cache, on a TPU of 128. 0: on a CPU room for `rows` requests of `context` tokens, or for one of
    # the model's whole context if that is more, but at most a quarter of the free memory; on an accelerator 0.9 of its free
    # memory.
    config.blocks = 0
    config.dtype = ""  # of the matrices: bfloat16, float32; "": as in training, bfloat16 for quantised ones of a GGUF file
    config.cache_dtype = ""  # of keys and values: float32, bfloat16, int8; "": as the matrices, bfloat16 for integer ones
    # int8, int4 (a scale for 32 inputs): round weights. w8a8: also the activations to 8 bits, the fastest for many requests;
    # "": as stored
    config.quantize = ""
    # Guess tokens ahead, which changes no answer. ngram: those that followed the same few tokens before; mtp: by the model's
    # own module for multi-token prediction (model.mtp_depth); or the path of a smaller model with the same vocabulary; "": no
    # guesses.
    config.speculate = ""

    # Devices along each axis; all 1: the first device, however many there are. -1: the remaining devices.
    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = 1  # requests split, parameters whole
    config.mesh.fsdp = 1  # requests and parameters split; each step gathers the parameters
    config.mesh.tensor = 1  # heads and hidden units split: each device reads its part of the parameters
    config.mesh.expert = 1  # experts and requests split

    # Adapters (LoRA) are models of their own names.
    config.adapters = ml_collections.ConfigDict()
    config.adapters.load = ""  # comma-separated NAME=FOLDER: loaded at the start
    config.adapters.dir = placeholder(str)  # folder of those that clients may load while it runs; none: they may load none
    config.adapters.count = 0  # room for so many at a time; 0: for those of `load`, and 4 more if there is a `dir`
    config.adapters.rank = 16  # their largest rank
    config.adapters.targets = ".*"  # regular expression of the matrices that they may change, as in model.adapter

    # Limits; 0: none, except where another meaning is given.
    config.max_prompt_tokens = 0  # of a prompt
    config.max_new_tokens = 0  # of an answer
    config.max_choices = 128  # prompts × continuations of one request
    config.max_media = 16  # images and sounds of one request, for models that see or hear; 0 takes none
    config.media_bytes = 8 << 20  # of all of them; the body of a request may be larger by their base64
    config.timeout = 600.0  # seconds of a request, in the queue and out of it
    config.body_bytes = 4 << 20  # of a request; at least 1
    config.read_seconds = 60.0  # in which a request must have come, and in which a client must take a part of a stream
    config.unread_tokens = 4096  # of a stream that its client does not read, before it is cancelled; at least 1

    # How a chat is sampled that does not say; /v1/models tells it. Texts are continued at 1, as in OpenAI's API. None: as the
    # checkpoint's generation_config.json says; if it does not, a temperature of 0.7 and a top-p of 0.95.
    config.sampling = ml_collections.ConfigDict()
    config.sampling.temperature = placeholder(float)  # 0: greedy
    config.sampling.top_p = placeholder(float)  # the likeliest tokens that add up to this probability; 1: all
    config.sampling.top_k = placeholder(int)  # the k likeliest tokens; 0: all

    config.auth = ml_collections.ConfigDict()
    config.auth.key_file = placeholder(str)  # file with lines NAME DIGEST; DIGEST is printf %s KEY | sha256sum; none: no keys
    config.auth.open = False  # serve without keys at an address that other machines reach
    config.auth.hosts = "localhost,127.0.0.1,[::1]"  # names for a server on loopback without keys; *: any, as behind a proxy
    # Comma-separated origins of web pages that may ask too (CORS), as https://app.example; *: any page.
    config.auth.origins = ""
    config.auth.per_minute = placeholder(int)  # requests a minute of each key or address; none: no limit on loopback, else 600

    # Guardrails and the monitor of behaviour (docs/monitoring.md).
    config.guardrails = ml_collections.ConfigDict()
    config.guardrails.constitution = ""  # YAML file whose policies are enforced; "": none
    config.monitor = ml_collections.ConfigDict()
    config.monitor.share = 1.0  # of requests that are measured
    config.monitor.reference = 600  # exchanges that a checkpoint's behaviour is compared with, its first ones
    config.monitor.reference_file = ""  # a window of an earlier run instead
    config.monitor.recent = 300  # exchanges that the page describes
    config.monitor.alpha = 0.001  # probability that a checkpoint and adapter whose behaviour never changes ever alerts
    config.monitor.judge = ""  # what calls answers unsafe, beside the guardrails: classifier:FOLDER, openai:URL
    config.store = ml_collections.ConfigDict()
    config.store.share = 0.05  # of exchanges that are kept; those that are flagged or rated always are
    config.store.days = 30.0  # that an exchange is kept; 0: no limit
    config.store.megabytes = 1000.0  # of the store; then the oldest go; 0: no limit
    config.status = ml_collections.ConfigDict()
    config.status.seconds = 5.0  # between two points of the page's plots
    config.status.samples = 720  # points that are kept
    return config
