"""Load a server of OpenAI's API: latencies and throughput, or a soak.

python -m benchmarks.serve --url=http://127.0.0.1:8000 [--rate=2 | --concurrency=8] [--seconds=60 --chat --shared=0.5]
python -m benchmarks.serve --start=CHECKPOINT [--flags="--config.quantize=int8"] ...
python -m benchmarks.serve --start=CHECKPOINT --soak=30

The server may be lmcraft's, vLLM's or llama.cpp's. --start starts serve.py with a checkpoint on a free port. Requests arrive as
a Poisson process (--rate, a second), or a fixed number is kept going (--concurrency). Prompts are pieces of Python's
documentation of different lengths; a share of them begins with a common prefix. All answers are streams. Prints a table of the
times to the first token, between tokens and of whole requests, then one JSON object.

--soak=MINUTES sends a mix of good, bad and rude requests (benchmarks/serving/soak.py says what) at twice the capacity, which it
measures first. It compares the server's /metrics with its own counts, and ends with code 1 if anything was wrong.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.serving import load
from benchmarks.serving.client import Client, at_times, in_turns
from benchmarks.serving.server import started
from benchmarks.serving.soak import FLAGS, Target, soak

USERS = ("ann", "ben", "cyd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="of a server that runs")
    where.add_argument("--start", metavar="CHECKPOINT", help="start serve.py on it; 'default': SmolLM2")
    parser.add_argument("--flags", default="", help="more flags of serve.py, separated by spaces")
    parser.add_argument("--pid", type=int, default=0, help="process of the server of --url, whose memory a soak watches")
    parser.add_argument("--key", default="", help="API key")
    parser.add_argument("--model", default="", help="default: the first of /v1/models")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second that arrive, independently of each other")
    parser.add_argument("--concurrency", type=int, default=8, help="requests that are kept going, without --rate")
    parser.add_argument("--seconds", type=float, default=60.0, help="in which requests are sent")
    parser.add_argument("--warm", type=int, default=2, help="requests before, that are not measured")
    parser.add_argument("--chat", action="store_true", help="/v1/chat/completions instead of /v1/completions")
    parser.add_argument("--words", default="10-200", help="of a prompt")
    parser.add_argument("--tokens", default="16-128", help="of an answer")
    parser.add_argument("--natural", action="store_true", help="let answers end by themselves (without ignore_eos)")
    parser.add_argument("--shared", type=float, default=0.0, help="share of prompts with a common prefix")
    parser.add_argument("--prefixes", type=int, default=4, help="number of common prefixes")
    parser.add_argument("--prefix", type=int, default=200, help="words of a common prefix")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--soak", type=float, default=0.0, metavar="MINUTES")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        headers, flags = ((("authorization", f"Bearer {options.key}"),) if options.key else ()), options.flags.split()
        url, pid, keys = options.url, options.pid, (headers,) if headers else ()
        if options.start:
            if options.soak:
                keys, file = made_keys(Path(stack.enter_context(tempfile.TemporaryDirectory())))
                flags = [*FLAGS, f"--config.auth.key_file={file}", *flags]
                headers = keys[0]
            flags += [] if options.start == "default" else [f"--config.checkpoint={options.start}"]
            url, pid = stack.enter_context(started(flags))
        found = asyncio.run(run(url, pid, keys, headers, options))
    from lm.runs.provenance import machine

    print(
        json.dumps(
            found | {"options": {k: v for k, v in vars(options).items() if k != "key"}, "machine": machine(devices=False)}
        )
    )
    sys.exit(1 if found.get("failures") else 0)


async def run(url: str, pid: int, keys: tuple, headers: tuple, options) -> dict:
    async with Client(url) as client:
        answer = await client.http.get("/v1/models", headers=list(headers))
        answer.raise_for_status()
        first = answer.json()["data"][0]
        model = options.model or first["id"]
        if options.soak:
            ours, positions = first.get("owned_by") == "lmcraft", first.get("max_model_len") or 8192
            target = Target(model, keys, positions, ours)
            found = await soak(url, pid, target, options.soak, options.seed)
            print("\n".join([load.table(found["summary"]), *found.pop("shown"), *found["wrong"][:20]]))
            print(f"{found['failures']} failures")
            return found
        pairs = load.prompts(
            options.seed,
            length=span(options.words),
            answer=span(options.tokens),
            shared=options.shared,
            prefixes=options.prefixes,
            prefix=options.prefix,
        )
        extra = {"temperature": 0} | ({} if options.natural else {"ignore_eos": True})
        asks = load.asks(pairs, model=model, chat=options.chat, headers=headers, extra=extra)
        await in_turns(client, asks, 2, count=options.warm)
        if options.rate:
            times = load.arrivals(options.rate, options.seconds, options.seed)
            outcomes = [one async for one in at_times(client, zip(times, asks))]
        else:
            outcomes = await in_turns(client, asks, options.concurrency, seconds=options.seconds)
        found = load.summary(outcomes)
        print(load.table(found))
        return found


def span(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    return int(low), int(high or low)


def made_keys(folder: Path) -> tuple[tuple[tuple, ...], Path]:
    """Return a header for each user, and the file of their keys for serve.py."""
    file, keys = folder / "keys", [f"key-of-{user}" for user in USERS]
    digests = (hashlib.sha256(key.encode()).hexdigest() for key in keys)
    file.write_text("".join(f"{user} {digest}\n" for user, digest in zip(USERS, digests)))
    return tuple(((("authorization", f"Bearer {key}"),)) for key in keys), file


if __name__ == "__main__":
    main()
