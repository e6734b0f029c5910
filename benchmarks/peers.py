"""How fast do others train this shape, and in how much memory? Each peer is measured in a process of its own.

    hf      transformers' LlamaForCausalLM, SDPA attention, loss by model(input_ids, labels=...)
    torch   a plain PyTorch model of the same shape, written the way nanoGPT is
    flax    a plain Flax model (benchmarks/flax_peer.py)

The first two keep float32 master parameters, compute in float32 or under autocast to bfloat16, clip the gradient to norm 1 and
step with fused AdamW, on every core the process may use. They are not compiled: this is how people run them on a CPU, but for
one thing: they keep their memory from step to step. Warm-up steps and the making of batches are not timed.

    python -m benchmarks.peers --peer=hf --dtype=float32 --shape='{"layers": 6}' --steps=10 --seconds=60

The last line printed is the result as JSON. This module imports torch only inside the measured process,
so that a JAX program can call `measure` without loading a second thread pool.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time

from lm import HUGE_PAGES

# A PyTorch step frees and asks for gigabytes. By default glibc returns them to the kernel, which clears each page anew: 10 to
# 60 % of HF's time, by the day. Kept, its steps are the fastest and differ least.
KEEP_MEMORY = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776"
STATE = 128  # size of a key of a layer with states, as in Qwen3-Next and Mamba-2
WARMUP_STEPS = 2
FEWEST_STEPS = 5


@dataclasses.dataclass(frozen=True)
class Shape:
    """The model and the batch that a peer is measured at. A step sees `batch * length` tokens."""

    layers: int = 6
    width: int = 384
    heads: int = 6
    kv_heads: int = 6
    head_size: int = 64
    feed_forward: int = 1024
    vocab: int = 8192
    length: int = 256
    batch: int = 32
    tied: bool = False
    mixer: str = "attention"  # or delta, mamba, with values twice as wide as the model, or conv: every layer's

    @classmethod
    def from_json(cls, text: str) -> "Shape":
        """Reads `{"layers": 6, ...}`; absent keys keep their default. Raises ValueError naming a bad key."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"shape must be a JSON object, not {text!r}")
        types = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        for key, value in values.items():
            if key not in types:
                raise ValueError(f"shape has no key {key!r}; its keys are {', '.join(types)}")
            if type(value) is not types[key]:
                raise ValueError(f"shape.{key} must be {types[key].__name__}, not {value!r}")
        return cls(**values)

    @property
    def flops(self) -> int:
        """FLOPs of a training step: 6 for each weight of a product and token, and causal attention's (PaLM, appendix B)."""
        attended = self.heads * self.head_size
        mixer, context = {
            "attention": (2 * self.width * (attended + self.kv_heads * self.head_size), attended * self.length),
            "conv": (4 * self.width**2, 0),
        }.get(self.mixer, (self.width * (6 * self.width + 2 * self.num_key_heads * STATE), 0))  # without those of states
        weights = self.layers * (mixer + 3 * self.width * self.feed_forward) + self.vocab * self.width
        return 6 * self.batch * self.length * (weights + self.layers * context)

    @property
    def num_key_heads(self) -> int:
        """Heads of keys of a layer with states: half as many as of values, as in Qwen3-Next; Mamba-2's one group."""
        return self.width // STATE if self.mixer == "delta" else 1


# GPT-2 124M's sizes in a Llama: gated units are two thirds as many, so that weights are equal; V is nanoGPT's.
SHAPES = {
    "14m": Shape(),
    "gpt2": Shape(12, 768, 12, 12, 64, 2048, 50304, 1024, 4, True),
    "smollm2": Shape(30, 576, 9, 3, 64, 1536, 49152, 512, 8, True),
    "delta": Shape(mixer="delta"),
    "mamba": Shape(mixer="mamba"),
    "conv": Shape(mixer="conv"),
}


def measure(
    peer: str,
    shape: Shape,
    *,
    steps: int = 10,
    seconds: float = 60.0,
    plain: bool = False,
    dtype: str = "bfloat16",
    python: str = sys.executable,
) -> dict:
    """Trains `peer` at `shape` in a subprocess and returns what it measured.

    Timing ends after `steps` steps, or after `seconds` once min(steps, 5) steps are done.

    Args:
      plain: with memory as glibc gives it, instead of kept by a PyTorch peer, and in huge pages for Flax (`GLIBC_TUNABLES`).
      dtype: of products of the PyTorch peers, bfloat16 or float32.
      python: the interpreter, if the peers are installed in another environment than this one.

    Returns:
      peer, tokens_per_second (from the median step), step_seconds (list), peak_bytes (the process's largest
      resident size), loss_first and loss_last (nats a token, first and last timed step), parameters, threads,
      tunables (as the process saw them), shape, versions. The PyTorch peers also cores_elsewhere (mean number
      of cores that other processes kept busy meanwhile: above 0.1 or so the figures are not the peer's, since
      its threads wait for one another).

    Raises:
      RuntimeError: the subprocess failed; the message carries the end of its stderr.
    """
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    if not plain:
        environment["GLIBC_TUNABLES"] = HUGE_PAGES if peer == "flax" else KEEP_MEMORY
    mine = ["benchmarks.peers", f"--peer={peer}", f"--seconds={seconds}", f"--dtype={dtype}"]
    module = ["benchmarks.flax_peer"] if peer == "flax" else mine
    command = [python, "-m", *module, f"--steps={steps}", f"--shape={json.dumps(dataclasses.asdict(shape))}"]
    environment["JAX_PLATFORMS"] = "cpu"
    root = pathlib.Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-15:])
        raise RuntimeError(f"peer {peer!r} failed with exit code {done.returncode}:\n{tail}")
    return json.loads(done.stdout.splitlines()[-1])


# Inside the measured process. A builder returns (model, loss_of), where loss_of(tokens_BT) is the mean
# next-token loss over T - 1 targets, to be called under autocast.


def build_hf(shape: Shape):
    """transformers' Llama at `shape`, or its Qwen 3.5, Bamba or LFM2 without attention, randomly initialized."""
    import transformers

    states = dict(linear_key_head_dim=STATE, linear_value_head_dim=STATE, linear_num_key_heads=shape.num_key_heads)
    name, mixer = {
        "attention": ("Llama", {}),
        "delta": (
            "Qwen3_5Text",
            dict(states, layer_types=["linear_attention"], linear_num_value_heads=2 * shape.num_key_heads),
        ),
        "mamba": ("Bamba", dict(attn_layer_indices=[], mamba_n_heads=shape.width // 32, mamba_n_groups=1, mamba_d_state=STATE)),
        "conv": ("Lfm2", dict(layer_types=["conv"], conv_L_cache=3, block_auto_adjust_ff_dim=False)),
    }[shape.mixer]
    if "layer_types" in mixer:
        mixer["layer_types"] *= shape.layers
    config = getattr(transformers, f"{name}Config")(
        num_hidden_layers=shape.layers,
        hidden_size=shape.width,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_size,
        intermediate_size=shape.feed_forward,
        vocab_size=shape.vocab,
        max_position_embeddings=shape.length,
        tie_word_embeddings=shape.tied,
        attn_implementation="sdpa",
        dtype="float32",
        use_cache=False,
        **mixer,
    )
    model = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config)
    return model, lambda tokens_BT: model(tokens_BT, labels=tokens_BT).loss


def build_torch(shape: Shape):
    """A plain Llama: pre-norm RMSNorm, rotary positions, causal SDPA, SwiGLU; fused input projections."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.sizes = [count * shape.head_size for count in (shape.heads, shape.kv_heads, shape.kv_heads)]
            self.qkv = nn.Linear(shape.width, sum(self.sizes), bias=False)
            self.out = nn.Linear(self.sizes[0], shape.width, bias=False)

        def forward(self, x_BTD, cos_TK, sin_TK):
            parts = self.qkv(x_BTD).split(self.sizes, -1)
            q_BHTK, k_BGTK, v_BGTK = (y.unflatten(-1, (-1, shape.head_size)).transpose(1, 2) for y in parts)
            q_BHTK, k_BGTK = rotate(q_BHTK, cos_TK, sin_TK), rotate(k_BGTK, cos_TK, sin_TK)
            grouped = shape.kv_heads != shape.heads
            y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BGTK, v_BGTK, is_causal=True, enable_gqa=grouped)
            return self.out(y_BHTK.transpose(1, 2).flatten(2))

    class FeedForward(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up = nn.Linear(shape.width, 2 * shape.feed_forward, bias=False)
            self.down = nn.Linear(shape.feed_forward, shape.width, bias=False)

        def forward(self, x_BTD):
            gate_BTF, up_BTF = self.gate_up(x_BTD).chunk(2, -1)
            return self.down(F.silu(gate_BTF) * up_BTF)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention_norm, self.attention = nn.RMSNorm(shape.width, eps=1e-6), Attention()
            self.feed_forward_norm, self.feed_forward = nn.RMSNorm(shape.width, eps=1e-6), FeedForward()

        def forward(self, x_BTD, cos_TK, sin_TK):
            x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cos_TK, sin_TK)
            return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))

    class Llama(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(shape.vocab, shape.width)
            self.blocks = nn.ModuleList(Block() for _ in range(shape.layers))
            self.norm = nn.RMSNorm(shape.width, eps=1e-6)
            self.head = nn.Linear(shape.width, shape.vocab, bias=False)
            for weight in self.parameters():
                if weight.ndim == 2:
                    nn.init.normal_(weight, std=0.02)
            if shape.tied:
                self.head.weight = self.embed.weight
            rate = 10_000.0 ** -(torch.arange(0, shape.head_size, 2) / shape.head_size)
            angle_TK = torch.outer(torch.arange(shape.length), rate).repeat(1, 2)
            self.register_buffer("cos_TK", angle_TK.cos().bfloat16(), persistent=False)
            self.register_buffer("sin_TK", angle_TK.sin().bfloat16(), persistent=False)

        def forward(self, tokens_BT):
            x_BTD = self.embed(tokens_BT)
            for block in self.blocks:
                x_BTD = block(x_BTD, self.cos_TK, self.sin_TK)
            return self.head(self.norm(x_BTD))

    def rotate(x, cos_TK, sin_TK):
        first, second = x.chunk(2, -1)
        return x * cos_TK + torch.cat((-second, first), -1) * sin_TK

    model = Llama()

    def loss_of(tokens_BT):
        # Shifting the targets, not the logits, spares a copy of the largest array of the step.
        targets_BT = F.pad(tokens_BT[:, 1:], (0, 1), value=-100)
        return F.cross_entropy(model(tokens_BT).flatten(0, 1).float(), targets_BT.flatten())

    return model, loss_of


BUILDERS = {"hf": build_hf, "torch": build_torch}


def result(peer: str, shape: Shape, timed: list[tuple[float, float]], peak_bytes: int) -> dict:
    """Return what every peer reports. timed: (seconds, loss) of each step."""
    step_seconds, losses = zip(*timed)
    if not all(map(math.isfinite, losses)):
        raise RuntimeError(f"the loss of peer {peer!r} is not finite: {losses}")
    return {
        "peer": peer,
        "tokens_per_second": shape.batch * shape.length / statistics.median(step_seconds),
        "step_seconds": step_seconds,
        "peak_bytes": peak_bytes,
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "tunables": os.environ.get("GLIBC_TUNABLES", ""),
        "shape": dataclasses.asdict(shape),
    }


def cpu_seconds_elsewhere() -> float:
    """CPU seconds that this machine has given to other processes than this one, since it started."""
    import psutil

    machine, own = psutil.cpu_times(), psutil.Process().cpu_times()
    return sum(machine) - machine.idle - getattr(machine, "iowait", 0.0) - own.user - own.system


def train(peer: str, shape: Shape, steps: int, seconds: float, dtype: str) -> dict:
    """Trains in this process and returns the result that `measure` describes."""
    import torch

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, loss_of = BUILDERS[peer](shape)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    # Zipf's law, as text has it: the loss starts at log(vocab) and must fall towards the entropy of this.
    frequency_V = 1.0 / torch.arange(1, shape.vocab + 1)

    def step() -> tuple[float, float]:
        tokens_BT = torch.multinomial(frequency_V, shape.batch * shape.length, replacement=True).view(shape.batch, -1)
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = loss_of(tokens_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start, loss.item()

    for _ in range(WARMUP_STEPS):
        step()
    timed: list[tuple[float, float]] = []
    start, elsewhere = time.perf_counter(), cpu_seconds_elsewhere()
    end = start + seconds
    while len(timed) < min(steps, FEWEST_STEPS) or (len(timed) < steps and time.perf_counter() < end):
        timed.append(step())
    cores_elsewhere = (cpu_seconds_elsewhere() - elsewhere) / (time.perf_counter() - start)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    if "transformers" in sys.modules:
        versions["transformers"] = sys.modules["transformers"].__version__
    return result(peer, shape, timed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) | {
        "cores_elsewhere": round(cores_elsewhere, 2),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "threads": threads,
        "versions": versions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Measure a peer's training speed.")
    parser.add_argument("--peer", required=True, choices=BUILDERS)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of matrix products")
    parser.add_argument("--shape", default="{}", help="JSON object; absent keys keep the defaults of Shape")
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--seconds", type=float, default=60.0, help=f"stop sooner, after {FEWEST_STEPS} steps at least")
    flags = parser.parse_args()
    if flags.steps < 1:
        parser.error(f"--steps must be at least 1, not {flags.steps}")
    try:
        shape = Shape.from_json(flags.shape)
    except ValueError as error:
        parser.error(f"--shape: {error}")
    print(json.dumps(train(flags.peer, shape, flags.steps, flags.seconds, flags.dtype)))


if __name__ == "__main__":
    main()
