"""Every key of a training run, with values for a small model on one machine."""

import ml_collections
from ml_collections.config_dict import placeholder

from lm.config import model_keys


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0  # of the initial weights and of the order of the data
    config.steps = 1000  # updates in the whole run
    config.epochs = placeholder(float)  # passes over the training data; if set, steps follow from it
    config.batch_size = 32  # sequences per step, over all devices
    config.batch_warmup = ""  # fewer rows at first: "500: 8; 2000: 16" are 8 until step 500, 16 until 2000, then batch_size
    config.sequence_length = 256  # tokens per sequence, at most model.max_positions
    # Slices of a batch, processed one after another: less memory, same result. 0: chosen, on a CPU slices of at most 2,048
    # tokens a device, which its caches hold, else 1.
    config.accumulate = 0
    config.objective = ""  # FILE.py:FUNCTION: a loss of your own in place of next-token prediction (docs/extend.md)
    # Of matrix products: bfloat16 or float32; parameters are float32. auto: bfloat16 on TPUs, GPUs and processors with AMX or
    # AVX-512 BF16, float32 on others. A run keeps what it began with.
    config.dtype = "auto"

    config.init_from = placeholder(str)  # workdir, Hugging Face folder or GGUF file: its model config, weights, tokenizer
    # Rotary positions of init_from, changed for a longer sequence_length (docs/train.md, A longer context). Local layers keep
    # theirs. At most one of the two.
    config.extend = ml_collections.ConfigDict()
    config.extend.theta = 0.0  # base of the angles, raised (Xiong et al. 2023); 0: unchanged
    config.extend.yarn = 0.0  # factor of YaRN over the context of init_from (Peng et al. 2023); 0: none
    config.tokenizer = placeholder(str)  # a tokenizer.model or tokenizer.json, or a folder with one; none: train one
    config.data = ml_collections.ConfigDict()
    config.data.input = placeholder(str)  # folder, file, glob or TFDS name; none: this Python installation
    config.data.text_key = "text"  # field of JSONL, column of Parquet, feature of TFDS
    config.data.max_bytes = placeholder(int)  # bytes of text used from each source
    # Shares of the sources: "code=2,docs=1", "temperature=2", "epochs: code=2,docs=0.5", a .json file, or stages of these that
    # begin at a fraction of the steps: "0: code=2,docs=1; 0.8: docs=1". None: by size. See data/text/weights.py.
    config.data.weights = placeholder(str)
    config.data.valid_fraction = 0.01  # fraction of documents for validation; 0: no validation
    config.data.max_valid_bytes = 1_000_000  # of validation text, over all sources
    config.data.tokenizer_sample_bytes = 16_000_000  # of text that a new tokenizer is trained on
    # Pieces to add to the vocabulary of init_from, learnt from the text: fewer tokens for the words of a domain. 0: none.
    config.data.new_pieces = 0
    config.data.log_ids = False  # write ids.jsonl: the row ids of each step's batch

    # All keys of lm/config/model.py, which explains them, with sections rope, mla, moe, adapter, quantization and pipeline. Set
    # here are those of a Qwen3-like model. Locked: an unknown key is an error.
    config.model = ml_collections.ConfigDict(
        model_keys(
            vocab_size=8192,  # rows of the embedding; the tokenizer may have fewer pieces
            num_layers=6,
            embed_dim=384,
            num_heads=6,
            num_kv_heads=6,
            head_dim=64,  # 0: embed_dim / num_heads
            mlp_dim=1024,
            qk_norm="head",  # norm of queries and keys: none, head (each head), full (all heads together)
            init="fan_in",  # initial weights: fan_in (std 1/√inputs, sublayers start at 0) or gpt2 (std 0.02)
            scan_layers=True,  # False unrolls the stack: slower to compile, faster on a CPU
            # Products of the layers, forward and backward: none (dtype), int8 or float8, which some chips compute twice as fast
            # as bfloat16. Experts, embedding, head, router and attention scores keep dtype.
            quantized_training="none",
            remat="matmuls",  # the more is recomputed, the less is kept: none, matmuls (kept), attention (kept), full
            remat_matmuls_last=0,  # so many last layers have remat=matmuls instead: faster, where memory is left over
            offload=False,  # keep that, and the layers' inputs, in host memory until the backward pass (docs/train.md, Memory)
            pipeline=dict(
                microbatches=0,  # of a slice of the batch, with mesh.stage: at most this many; 0: 4 × mesh.stage
                repeats=1,  # how often a microbatch goes around the stages: more shorten the bubble and send more
                overlap=False,  # send while the stages compute other microbatches: for slow networks; twice the bubble
            ),
        )
    ).lock()

    config.dial = ml_collections.ConfigDict()  # one knob for model, batch, rates and length (lm/train/dial.py)
    config.dial.depth = 0  # layers, from which all else follows that the command line does not give; 0: off
    config.dial.aspect = 64  # width per layer
    config.dial.tokens_per_parameter = 20.0  # training tokens for each active parameter

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "normuon"  # normuon, muon, adamw, lion, or FILE.py:FUNCTION (lm/train/optimizers/chain.py)
    # Peak. None: chosen for the objective, the model's size and the weights it starts from (lm/train/rates.py).
    config.optimizer.learning_rate = placeholder(float)
    # Learning rate of embeddings, as a multiple of that of other weights. None: by the model's size where they begin large
    # (model.init=fan_in without a tied head; lm/train/rates.py), else 1.
    config.optimizer.embedding_rate = placeholder(float)
    config.optimizer.head_rate = placeholder(float)  # learning rate of the head, as such a multiple
    config.optimizer.schedule = "wsd"  # wsd, cosine or constant
    config.optimizer.warmup = 100  # steps
    config.optimizer.final = 0.05  # last learning rate as a fraction of the peak
    config.optimizer.decay = 0.6  # wsd: fraction of the steps that decay
    config.optimizer.b1 = 0.8  # decay of the mean of gradients
    config.optimizer.b2 = 0.95  # decay of the mean of squared gradients; lion: of the mean of gradients
    config.optimizer.eps = 1e-8  # adamw: added to the root of the mean of squared gradients
    config.optimizer.momentum = 0.95  # muon, normuon: decay of the mean of gradients of hidden matrices
    # normuon: a step changes the matrices of one in so many layers, by so many times as much, for that share of the products
    # (docs/recipe.md). 1: of all layers. 0: chosen, 1, 2 or 4; the smaller the batch, the more.
    config.optimizer.turns = 0
    config.optimizer.state_dtype = "float32"  # of the moments of matrices: float32, bfloat16 or int8 (a quarter of the memory)
    config.optimizer.offload = False  # keep the moments of matrices in host memory between updates (docs/train.md, Memory)
    config.optimizer.weight_decay = 0.1  # per step, times the learning rate; norm scales and biases do not decay
    config.optimizer.clip_norm = 1.0  # limit of the global gradient norm; inf: no clipping
    config.optimizer.z_loss = 1e-4  # weight of (log Z)²
    config.optimizer.mtp_loss = 0.3  # weight of the multi-token prediction loss, if model.mtp_depth is not 0

    config.ema = 0.0  # decay of a moving average of the parameters, which is validated, saved and exported; 0: none

    config.evals = ml_collections.ConfigDict()  # tasks of evaluate.py during training; keys as in configs/evaluate/default.py
    config.evals.tasks = ""  # comma-separated names of tasks; "": none
    config.evals.every = 0  # steps; 0: only at the end
    config.evals.data_dir = placeholder(str)  # items are DIR/<task>/*.{csv,jsonl,parquet}
    config.evals.num_fewshot = placeholder(int)  # examples before each item; none: the task's own number
    config.evals.limit = placeholder(float)  # maximum items of each task; below 1: a share of them
    config.evals.chat_template = ""  # "": plain prompts; own: the model's template; plain: "User: …"; or a Jinja file
    config.evals.judge = "rules"  # for tasks with a judge: rules, refusal, classifier:FOLDER, openai:URL
    config.evals.options = ""  # YAML: settings of tasks by kind

    config.mesh = ml_collections.ConfigDict()  # devices along each axis; -1: the remaining devices
    config.mesh.stage = 1  # layers and batch split: a pipeline (model.pipeline)
    config.mesh.data = -1  # batch split, parameters whole
    config.mesh.fsdp = 1  # batch and parameters split
    config.mesh.tensor = 1  # heads and hidden units split, and between blocks sequences
    config.mesh.expert = 1  # experts and batch split
    config.mesh.context = 1  # sequences split, for lengths whose activations one device cannot hold
    # Groups of devices with a fast network inside; only `data` crosses the one between. None: as TPUs and GPUs report.
    config.mesh.slices = placeholder(int)

    config.valid_every = 100  # steps; 0: only at the end
    config.valid_first = placeholder(bool)  # validate before the first step too; None: if init_from is set
    config.valid_batches = 8  # batches per validation, spread over the split; at the end all
    config.checkpoint_every = 200  # steps; the last step is always saved
    config.keep_last = 2  # newest checkpoints that are kept
    config.keep_every = 0  # also keep every checkpoint at a multiple of this
    config.keep_hours = 0.0  # also keep one checkpoint every so many hours; 0: none
    config.keep_best = False  # also keep the checkpoint with the best validation, if valid_every validates at its step
    config.watchdog = ml_collections.ConfigDict()  # of machines that hang or are slow (docs/train.md)
    # Seconds without a finished step after which the run ends with the stacks of all threads and exit code 76. 0: chosen, 20
    # times the median step, at least 600.
    config.watchdog.timeout = 0.0
    config.watchdog.other = 14_400.0  # seconds that a compilation, a validation or a save may take; 0: no limit
    config.watchdog.compare_every = 100  # steps between two comparisons of the hosts; 0: none
    config.watchdog.slower = 1.5  # name a host that needs this many times the median of the others
    # Steps skipped in a row, because loss or gradient is not finite or a spike, before the run rewinds, or stops.
    config.max_skipped_in_row = 10
    config.guard = ml_collections.ConfigDict()  # against spikes of loss and gradient norm (docs/train.md, When a run diverges)
    config.guard.on = True  # skip spikes, and rewind; without effect on align.py's method rl
    config.guard.window = 128  # accepted steps with which a step is compared
    config.guard.warmup = 100  # accepted steps before the first one that may be skipped
    # Deviations above the median that make a spike; inf: none. A deviation is at least 0.5 % of the loss, or a factor of e^0.35
    # of the gradient norm, so with 8 a norm is a spike only from 16 times its median on.
    config.guard.threshold = 8.0
    config.guard.high_steps = 100  # accepted steps in a row with a loss a fifth above its lowest level that rewind; 0: off
    config.guard.rewinds = 3  # times that the run may go back to a checkpoint, and on with other data; 0: it never does
    config.guard.lower_rate = 1.0  # factor of the learning rate after a rewind
    config.guard.lower_steps = 100  # steps with that factor
    config.find_nan = False  # name the first tensor that is not finite when a step fails; each step waits for the one before
    config.trackers = ""  # also log to wandb, mlflow, trackio: "wandb,mlflow" (docs/runs.md); "": to none of them
    config.profile = ""  # steps whose trace goes to WORKDIR/profile for XProf: "10-12", both included; "": none
    config.samples = placeholder(tuple)  # prompts that the report completes; none: the first words of held-out documents
    return config


def adamw(config: ml_collections.ConfigDict) -> None:
    """Set the recipe of most published models of this shape: AdamW with a cosine, and small initial weights."""
    config.model.update(qk_norm="none", init="gpt2")
    config.optimizer.update(name="adamw", schedule="cosine", final=0.1, decay=0.2, b1=0.9, b2=0.95)
