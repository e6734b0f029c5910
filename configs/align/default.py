"""All keys of an alignment run. The other files of this folder set `method` and its keys."""

import ml_collections
from ml_collections.config_dict import placeholder

from configs.train import default as training


def get_config() -> ml_collections.ConfigDict:
    config = training.get_config()
    training.adamw(config)
    del config.dial, config.batch_warmup, config.objective  # for pretraining
    config.accumulate = 1  # slices of a batch, processed one after another: less memory, same result
    config.method = "sft"  # sft, preference, reward, rl, distill, best_of, safety
    # init_from, a workdir, Hugging Face folder or GGUF file, gives the architecture, the weights and the tokenizer. Only these
    # model keys are read from this config: adapter (LoRA), quantization, quantized_training, scan_layers, remat, offload,
    # context_attention, pipeline.
    # None: chosen from the data (lm/align/length.py), three epochs in batches of which an epoch has 16 at least; runs on tasks
    # have 200 steps of 32 rollouts.
    config.steps = placeholder(int)  # updates in the whole run
    config.batch_size = placeholder(int)  # sequences, pairs or rollouts per step, over all devices
    config.sequence_length = 512  # tokens; longer examples are cut, or dropped if no trained token is left
    config.chat_template = placeholder(str)  # Jinja file; default: the tokenizer's own

    config.data = ml_collections.ConfigDict()
    config.data.input = placeholder(str)  # files of JSONL, JSON, Parquet; a TFDS name; or builtin:TASK?option=value
    config.data.valid_fraction = 0.05  # fraction of prompts held out
    config.data.max_examples = placeholder(int)  # examples or tasks that are read; none: all, 20 000 of an endless task
    config.data.max_valid_examples = 1000  # of those held out; the rest is trained on
    config.data.log_ids = False  # write ids.jsonl: the row ids of each step's batch

    config.optimizer.turns = 1
    config.optimizer.warmup = placeholder(int)  # steps; none: a tenth of the run, 10 at most
    config.optimizer.weight_decay = 0.0  # per step, times the learning rate
    config.optimizer.z_loss = 0.0

    config.sft = ml_collections.ConfigDict()
    config.sft.loss = "nll"  # or dft: each token's nll multiplied by its probability
    config.sft.neftune_alpha = 0.0  # noise on embeddings; 5 is usual
    config.sft.thoughts = True  # train on `<think>…</think>` before an answer, too; False: on what follows it (docs/serve.md)

    config.preference = ml_collections.ConfigDict()
    config.preference.loss = "dpo"  # dpo, robust, hinge, ipo, apo_zero, apo_down, orpo, simpo (pairs); kto (labelled answers)
    config.preference.beta = 0.1  # a larger value keeps the policy closer to the reference
    config.preference.label_smoothing = 0.0  # assumed share of wrong labels: dpo (cDPO) and robust
    config.preference.gamma = 0.5  # simpo: target margin
    config.preference.nll_weight = 0.0  # weight of the chosen answer's nll (RPO)
    config.preference.share_prompts = True  # computes a pair's prompt once, if that is less work
    config.preference.desirable_weight = 1.0  # kto: weight of desirable answers
    config.preference.undesirable_weight = 1.0  # kto: weight of undesirable answers

    config.reward = ml_collections.ConfigDict()
    config.reward.kind = "outcome"  # trains on pairs; process: on labelled steps
    config.reward.centering = 0.0  # weight of (sum of a pair's scores)²

    config.rl = ml_collections.ConfigDict()
    config.rl.algorithm = "grpo"  # grpo, rloo, ppo
    config.rl.loss = "dapo"  # how token losses are averaged: grpo, bnpo, dr_grpo, dapo, gspo
    config.rl.group_size = 8  # rollouts per prompt
    config.rl.share_prompts = True  # the update computes a prompt once per group, if that is less work
    config.rl.scale = "group"  # standard deviation that divides advantages: group, batch, none
    config.rl.beta = 0.0  # weight of the KL to the reference; 0: no reference. ppo: 0.05 is usual
    config.rl.kl = "k3"  # KL estimate: k1, k2, k3
    config.rl.clip_low = 0.2  # importance ratios below 1 − clip_low are clipped
    config.rl.clip_high = 0.2  # those above 1 + clip_high are clipped; 0.28 is DAPO's
    config.rl.epochs = 1  # passes over the rollouts of a step
    config.rl.minibatches = 1  # updates per pass
    config.rl.correction = "none"  # importance weights for sampler-trainer mismatch: none, token, sequence
    config.rl.correction_cap = 2.0  # largest importance weight
    config.rl.require_equal = False  # sampler and trainer compute the same log-probabilities, to the bit, or the run ends
    # By how many steps the policy that samples is older than the one that is trained. Rollouts are sampled ahead, while other
    # steps train. It needs rl.correction; 1 is usually enough (docs/align.md). 0: sampling and training take turns.
    config.rl.max_lag = 0
    config.rl.sampling_devices = 0  # so many devices of each process only sample, with max_lag; needed where there are several
    config.rl.sampling_tensor = 1  # of these, how many share a copy of the weights
    config.rl.mask_truncated = False  # exclude truncated rollouts from the loss
    config.rl.gamma = 1.0  # ppo: discount of later rewards
    config.rl.lam = 0.95  # ppo: λ of generalised advantage estimation
    config.rl.value_coef = 0.1  # ppo: weight of the value loss
    config.rl.value_clip = 0.2  # ppo: largest change of a value from its estimate at sampling time
    config.rewards = ""  # functions and weights: "answer=1,format=0.2,my_rewards.py:brevity=0.1"; see docs/align.md

    config.rollout = ml_collections.ConfigDict()
    config.rollout.max_new_tokens = 128  # per turn
    # Of these, most of the thought `<think>…</think>` before the answer, which is then closed by force; none: no limit.
    config.rollout.thought_budget = placeholder(int)
    config.rollout.max_prompt_tokens = 384  # longer prompts are dropped
    config.rollout.temperature = 1.0  # 0: greedy
    config.rollout.top_p = 1.0  # nucleus: least probability that the sampled tokens add up to; 1: all tokens
    config.rollout.top_k = 0  # sample from the k most likely tokens; 0: from all
    config.rollout.tools = ()  # any of calculator, python
    config.rollout.environment = ""  # stockroom, service or path/file.py:Class; its reward is rewards=environment
    config.rollout.max_turns = 1  # turns of the policy; tools or the environment answer between them

    config.distill = ml_collections.ConfigDict()
    config.distill.teacher = placeholder(str)  # workdir or Hugging Face folder; with another tokenizer, see `across`
    config.distill.kind = "logits"  # on given conversations; on_policy: on the student's own rollouts
    config.distill.divergence = "forward"  # forward: KL(teacher, student); reverse: KL(student, teacher); jsd: between them
    config.distill.mix = 1.0  # weight of the divergence; the nll of the conversations has weight 1 − mix
    config.distill.beta = 0.5  # jsd: weight of the teacher in the mixture
    config.distill.temperature = 1.0  # of both distributions in the divergence
    # For a teacher with another tokenizer. gold: the divergence over the tokens that both have, and the distance of sorted
    # probabilities (ULD) over the others; uld: this distance over all tokens. The same tokenizer needs neither.
    config.distill.across = "gold"
    config.distill.unshared = 1.0  # gold: weight of the tokens that only one of both has

    config.best_of = ml_collections.ConfigDict()
    config.best_of.n = 8  # answers per prompt
    config.best_of.rows = 256  # answers sampled at a time (about)
    config.best_of.keep = "best"  # the best answer to each prompt; all: all different answers
    config.best_of.threshold = 1.0  # least reward of a kept answer and of a pass; -inf: no threshold

    config.valid_first = True
    config.valid_batches = 4
    config.valid_every = 50
    config.checkpoint_every = 50
    config.samples_every = 50  # steps between sample answers; 0: none
    config.num_samples = 4  # held-out tasks to answer
    config.samples = ()
    return config
