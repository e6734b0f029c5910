"""llama.cpp as an oracle, in a process of its own: python -m tests.lm.convert.llama_cpp FILE < REQUESTS > ANSWERS

REQUESTS and ANSWERS are JSON. A request holds the keys of llama.cpp's own API; its answer is
{"text": the greedy continuation, "logprobs": {id: log-probability} of the first new token, before biases}.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
VOCAB = 300  # tokens whose log-probabilities are returned


def answers(file: Path, requests: list[dict]) -> list[dict]:
    command = [sys.executable, "-m", "tests.lm.convert.llama_cpp", str(file)]
    done = subprocess.run(command, cwd=REPOSITORY, input=json.dumps(requests), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    import xllamacpp
    from xllamacpp import ggml_type, llama_flash_attn_type

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.cpuparams.n_threads, params.warmup = sys.argv[1], 512, 1, False
    # By default llama.cpp keeps keys and values as float16.
    params.cache_type_k = params.cache_type_v = ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    stdout = os.dup(1)
    os.dup2(2, 1)  # llama.cpp's own lines
    server, found = xllamacpp.Server(params), []
    for request in json.load(sys.stdin):
        options = {"temperature": 0, "top_k": 0, "logprobs": VOCAB, "n_probs": VOCAB, "cache_prompt": False}
        choice = server.handle_completions({**options, **request})["choices"][0]
        first = (choice["logprobs"] or {"content": [{"top_logprobs": []}]})["content"][0]["top_logprobs"]
        found.append({"text": choice["text"], "logprobs": {entry["id"]: entry["logprob"] for entry in first}})
    os.write(stdout, f"\n{json.dumps(found)}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    main()
