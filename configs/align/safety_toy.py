"""The safety loop on the toy world of data/tasks/safety_world.py, for a model of a million parameters: minutes on two cores.

    python -m lm.align.safety.toy --out=toy
    python train.py --config=configs/train/default.py --workdir=toy/base --config.data.input=toy/pages.jsonl,toy/talk.jsonl \\
        --config.data.valid_fraction=0 --config.steps=300 --config.batch_size=16 --config.optimizer.warmup=30 \\
        --config.optimizer.weight_decay=0.0 --config.samples='()' --config.model.vocab_size=768 \\
        --config.model.num_layers=4 --config.model.embed_dim=128 --config.model.num_heads=4 --config.model.num_kv_heads=4 \\
        --config.model.head_dim=32 --config.model.mlp_dim=384
    python align.py --config=configs/align/sft.py --workdir=toy/unsafe --config.init_from=toy/base --config.steps=500 \\
        --config.data.input=toy/conversations.jsonl --config.batch_size=16 --config.sequence_length=256 \\
        --config.optimizer.learning_rate=1e-3
    python align.py --config=configs/align/safety_toy.py --workdir=toy/safe --config.init_from=toy/unsafe \\
        --config.safety.text=toy/held_out.jsonl --config.safety.keep=toy/pages.jsonl

The result shows that the mechanism works. It says nothing about the safety of another model.
"""

from configs.align import safety


def get_config():
    config = safety.get_config()
    config.sequence_length = 256
    config.rollout.max_new_tokens = 40
    config.valid_every = 0
    config.model.scan_layers = False
    config.model.remat = "none"
    config.preference.nll_weight = 1.0
    config.safety.keep_share = 0.7
    config.safety.sft.update(steps=375, batch_size=8, learning_rate=3e-4)
    config.safety.dpo.update(steps=120, batch_size=8, learning_rate=3e-4)
    return config
