"""Configs of tiny models of the transformers library, with every feature of their family on; by name: (class, keys)."""

VOCAB = 96

COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=48,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
PLAIN = {"rope_type": "default", "rope_theta": 500.0}
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
LONG = dict(
    rope_type="longrope",
    original_max_position_embeddings=32,
    short_factor=[1.0, 1.1, 1.3, 1.6],
    long_factor=[1.0, 1.9, 3.0, 4.5],
)
LATENT = dict(
    kv_lora_rank=24,
    qk_rope_head_dim=8,
    qk_nope_head_dim=12,
    v_head_dim=10,
    num_key_value_heads=4,
    num_hidden_layers=3,
    first_k_dense_replace=1,
    n_routed_experts=8,
    num_experts_per_tok=3,
    moe_intermediate_size=20,
    n_group=4,
    topk_group=2,
    routed_scaling_factor=1.7,
    rms_norm_eps=1e-3,
)

# With few heads many scores are exactly 0, and torch.topk does not say which of equal ones it takes.
INDEXER = dict(index_topk=12, index_n_heads=11, index_head_dim=16)
NEXT_EXPERTS = dict(
    num_experts=6,
    num_experts_per_tok=3,
    moe_intermediate_size=20,
    shared_expert_intermediate_size=12,
    norm_topk_prob=True,
    rms_norm_eps=1e-2,  # a delta net may read almost nothing at a token, and its norm enlarges that
)
FACTORS = dict(embedding_multiplier=3.0, attention_multiplier=0.5, residual_multiplier=0.4, logits_scaling=0.3)

# By name: the class of the config, and what it differs by from COMMON.

PEERS = {
    "llama": ("Llama", dict(attention_bias=True, mlp_bias=True, head_dim=16, rope_parameters={**LLAMA3, "rope_theta": 1e4})),
    "llama-tied": ("Llama", dict(tie_word_embeddings=True, hidden_act="gelu_pytorch_tanh", rope_parameters=PLAIN)),
    "llama-linear": ("Llama", dict(rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 1e3})),
    "llama-dynamic": ("Llama", dict(
        rope_parameters={"rope_type": "dynamic", "factor": 3.0, "rope_theta": 1e3}, max_position_embeddings=20,
    )),
    "llama-yarn": ("Llama", dict(rope_parameters={**YARN, "truncate": False, "beta_fast": 4.0, "rope_theta": 1e3})),
    "llama-longrope": ("Llama", dict(head_dim=8, rope_parameters={**LONG, "factor": 6.0, "rope_theta": 1e3})),
    "mistral": ("Mistral", dict(sliding_window=12, rope_parameters=PLAIN)),
    "mixtral": ("Mixtral", dict(sliding_window=20, num_local_experts=6, num_experts_per_tok=3, rope_parameters=PLAIN)),
    "phi3": ("Phi3", dict(
        hidden_size=64, sliding_window=20, original_max_position_embeddings=32, resid_pdrop=0.1,
        rope_parameters={**LONG, "partial_rotary_factor": 0.5, "rope_theta": 1e3},
    )),
    "qwen2": ("Qwen2", dict(
        num_hidden_layers=5, use_sliding_window=True, sliding_window=12, max_window_layers=2, tie_word_embeddings=True,
        rope_parameters={**YARN, "rope_theta": 1e3},
    )),
    "qwen3": ("Qwen3", dict(
        num_hidden_layers=3, head_dim=16, attention_bias=True, use_sliding_window=True, sliding_window=12, max_window_layers=1,
        rope_parameters=PLAIN,
    )),
    "qwen3-moe": ("Qwen3Moe", dict(
        num_hidden_layers=4, head_dim=16, attention_bias=True, use_sliding_window=True, sliding_window=12, mlp_only_layers=[3],
        num_experts=6, num_experts_per_tok=3, moe_intermediate_size=20, norm_topk_prob=True, rope_parameters=PLAIN,
    )),
    "qwen3-moe-sparse": ("Qwen3Moe", dict(
        num_hidden_layers=4, head_dim=16, decoder_sparse_step=2, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=20,
        rope_parameters=PLAIN,
    )),
    "gemma2": ("Gemma2", dict(
        num_hidden_layers=4, head_dim=16, attention_bias=True, sliding_window=12, query_pre_attn_scalar=24,
        attn_logit_softcapping=2.0, final_logit_softcapping=4.0, rope_parameters=PLAIN,
    )),
    "gemma3": ("Gemma3Text", dict(
        num_hidden_layers=4, head_dim=16, sliding_window=12, sliding_window_pattern=3, query_pre_attn_scalar=24,
        final_logit_softcapping=4.0,
        rope_parameters={"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}},
    )),
    "olmo2": ("Olmo2", dict(attention_bias=True, rope_parameters=PLAIN)),
    "olmo3": ("Olmo3", dict(
        num_hidden_layers=4, num_key_value_heads=4, attention_bias=True, sliding_window=12,
        rope_parameters={"full_attention": {**YARN, "rope_theta": 1e3}, "sliding_attention": {"rope_type": "default",
            "rope_theta": 1e3}},
    )),
    "olmo3-plain": ("Olmo3", dict(num_hidden_layers=1, head_dim=20, layer_types=["full_attention"], tie_word_embeddings=True)),
    "smollm3": ("SmolLM3", dict(
        num_hidden_layers=4, no_rope_layer_interval=2, use_sliding_window=True, sliding_window=12, rope_parameters=PLAIN,
    )),
    "smollm3-mixed": ("SmolLM3", dict(
        num_hidden_layers=3, head_dim=20, num_key_value_heads=1, attention_bias=True, mlp_bias=True, tie_word_embeddings=False,
        no_rope_layers=[0, 1, 1], rope_parameters={**YARN, "rope_theta": 1e3},
    )),
    "granite": ("Granite", dict(attention_bias=True, mlp_bias=True, **FACTORS, rope_parameters=PLAIN)),
    "granite-tied": ("Granite", dict(
        num_hidden_layers=3, num_key_value_heads=1, tie_word_embeddings=True, embedding_multiplier=1.5, residual_multiplier=0.8,
        logits_scaling=0.7, attention_multiplier=0.1,
    )),
    "seed-oss": ("SeedOss", dict(head_dim=20, attention_out_bias=True, mlp_bias=True, rope_parameters=PLAIN)),
    "seed-oss-narrow": ("SeedOss", dict(num_hidden_layers=3, num_key_value_heads=1, head_dim=6, tie_word_embeddings=True)),
    "ernie4-5": ("Ernie4_5", dict(head_dim=20, use_bias=True, tie_word_embeddings=False, rope_parameters=PLAIN)),
    "ernie4-5-tied": ("Ernie4_5", dict(num_hidden_layers=3, num_key_value_heads=1, head_dim=10)),
    "exaone4": ("Exaone4", dict(
        num_hidden_layers=5, sliding_window=12, sliding_window_pattern=3, rope_parameters={**LLAMA3, "rope_theta": 1e4},
    )),
    "exaone4-global": ("Exaone4", dict(
        head_dim=20, num_key_value_heads=1, sliding_window=None, layer_types=["full_attention"] * 2, tie_word_embeddings=True,
    )),
    "cohere": ("Cohere", dict(attention_bias=True, logit_scale=0.6, tie_word_embeddings=False, rope_parameters=PLAIN)),
    "cohere2": ("Cohere2", dict(num_hidden_layers=5, sliding_window=12, logit_scale=2.0, rope_parameters=PLAIN)),
    "cohere2-mixed": ("Cohere2", dict(
        num_hidden_layers=3, hidden_size=40, num_key_value_heads=1, attention_bias=True, sliding_window=20,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"], tie_word_embeddings=False, logit_scale=1.5,
    )),
    "glm": ("Glm", dict(head_dim=24, tie_word_embeddings=True, rope_parameters={**PLAIN, "partial_rotary_factor": 0.25})),
    "glm4": ("Glm4", dict(num_hidden_layers=3, head_dim=16, attention_bias=True, rope_parameters=PLAIN)),
    "glm4-whole": ("Glm4", dict(
        head_dim=20, num_key_value_heads=1, attention_bias=False, rope_parameters={**PLAIN, "partial_rotary_factor": 1.0},
        tie_word_embeddings=True,
    )),
    "hunyuan": ("HunYuanDenseV1", dict(head_dim=16, attention_bias=True, rope_parameters=PLAIN)),
    "hunyuan-alpha": ("HunYuanDenseV1", dict(
        num_hidden_layers=3, num_key_value_heads=1, head_dim=12, tie_word_embeddings=True,
        rope_parameters={"rope_type": "dynamic", "alpha": 50.0, "factor": 1.0, "rope_theta": 500.0},
    )),
    "nemotron": ("Nemotron", dict(
        num_hidden_layers=3, attention_bias=True, mlp_bias=True, rope_parameters={**PLAIN, "partial_rotary_factor": 0.5},
    )),
    "nemotron-tied": ("Nemotron", dict(
        head_dim=20, num_key_value_heads=1, norm_eps=1e-3, tie_word_embeddings=True,
        rope_parameters={**PLAIN, "partial_rotary_factor": 0.2},
    )),
    "gpt-oss": ("GptOss", dict(
        num_hidden_layers=2, head_dim=16, sliding_window=12, num_local_experts=6, num_experts_per_tok=3, swiglu_limit=1.5,
        rope_parameters={**YARN, "truncate": False, "rope_theta": 1e3},
    )),
    "gpt-oss-odd": ("GptOss", dict(
        head_dim=10, num_key_value_heads=1, attention_bias=False, intermediate_size=28, num_local_experts=4,
        num_experts_per_tok=1, sliding_window=20, layer_types=["full_attention", "sliding_attention"], tie_word_embeddings=True,
    )),
    "ministral": ("Ministral", dict(head_dim=16, sliding_window=12, layer_types=["full_attention", "sliding_attention"])),
    "ministral3": ("Ministral3", dict(
        head_dim=16,
        rope_parameters={**YARN, "rope_theta": 1e3, "original_max_position_embeddings": 8, "mscale": 1.0,
            "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.6},
    )),
    "ministral3-window": ("Ministral3", dict(
        num_hidden_layers=3, head_dim=10, num_key_value_heads=1, sliding_window=20, tie_word_embeddings=True,
        rope_parameters={**PLAIN, "original_max_position_embeddings": 5, "llama_4_scaling_beta": 0.2},
    )),
    "glm4-moe": ("Glm4Moe", dict(
        num_hidden_layers=3, head_dim=16, attention_bias=True, use_qk_norm=True, n_routed_experts=8, num_experts_per_tok=3,
        moe_intermediate_size=20, n_group=4, topk_group=2, routed_scaling_factor=1.7,
        rope_parameters={**PLAIN, "partial_rotary_factor": 0.5},
    )),
    "glm4-moe-plain": ("Glm4Moe", dict(
        head_dim=20, num_key_value_heads=1, first_k_dense_replace=0, n_routed_experts=5, num_experts_per_tok=2,
        moe_intermediate_size=12, n_shared_experts=2, norm_topk_prob=False, tie_word_embeddings=True,
        rope_parameters={**PLAIN, "partial_rotary_factor": 1.0},
    )),
    "granite-moe": ("GraniteMoe", dict(
        attention_bias=True, **FACTORS, num_local_experts=6, num_experts_per_tok=3, rope_parameters=PLAIN,
    )),
    "granite-moe-tied": ("GraniteMoe", dict(
        num_hidden_layers=3, num_key_value_heads=1, attention_multiplier=0.2, num_local_experts=3, tie_word_embeddings=True,
    )),
    "ernie4-5-moe": ("Ernie4_5_Moe", dict(
        num_hidden_layers=4, moe_num_experts=6, moe_k=3, moe_intermediate_size=20, moe_num_shared_experts=2,
        moe_layer_interval=2, tie_word_embeddings=False, rope_parameters=PLAIN,
    )),
    "ernie4-5-moe-tied": ("Ernie4_5_Moe", dict(
        num_hidden_layers=3, num_key_value_heads=1, moe_num_experts=5, moe_k=2, moe_intermediate_size=12,
        moe_num_shared_experts=0,
    )),
    "hunyuan-moe": ("HunYuanMoEV1", dict(head_dim=16, attention_bias=True, num_experts=6, moe_topk=3, rope_parameters=PLAIN)),
    "hunyuan-moe-lists": ("HunYuanMoEV1", dict(
        num_hidden_layers=3, num_key_value_heads=1, head_dim=10, num_experts=4, moe_topk=[2, 2, 2], tie_word_embeddings=True,
    )),
    "deepseek-v2": ("DeepseekV2", dict(
        **LATENT, q_lora_rank=None, topk_method="group_limited_greedy", n_shared_experts=2,
        rope_parameters={**YARN, "mscale": 0.7, "mscale_all_dim": 0.9, "rope_theta": 1e3},
    )),
    "deepseek-v2-greedy": ("DeepseekV2", dict(
        {**LATENT, "num_hidden_layers": 1, "first_k_dense_replace": 0},
        q_lora_rank=16, n_shared_experts=1, rope_parameters=PLAIN,
    )),
    "deepseek-v3": ("DeepseekV3", dict(
        **LATENT, q_lora_rank=16, n_shared_experts=1, norm_topk_prob=True,
        rope_parameters={**YARN, "mscale": 1.0, "mscale_all_dim": 0.8, "rope_theta": 1e3},
    )),
    "deepseek-v3-halves": ("DeepseekV3", dict(
        {**LATENT, "num_hidden_layers": 1, "first_k_dense_replace": 0},
        q_lora_rank=None, n_shared_experts=2, norm_topk_prob=False, rope_interleave=False, rope_parameters=PLAIN,
    )),
    "deepseek-v32": ("DeepseekV32", dict(
        **LATENT, **INDEXER, q_lora_rank=16, n_shared_experts=1, norm_topk_prob=True,
        rope_parameters={**YARN, "mscale": 1.0, "mscale_all_dim": 0.8, "rope_theta": 1e3},
    )),
    "deepseek-v32-odd": ("DeepseekV32", dict(
        {**LATENT, **INDEXER}, num_attention_heads=3, num_key_value_heads=3, hidden_size=40, num_hidden_layers=4, index_topk=7,
        index_n_heads=13, index_head_dim=22, mlp_layer_types=["sparse", "dense", "dense", "sparse"], q_lora_rank=20,
        n_shared_experts=2, norm_topk_prob=False, rope_parameters=PLAIN,
    )),
    "glm-dsa": ("GlmMoeDsa", dict(
        {**LATENT, **INDEXER}, n_group=1, topk_group=1, index_head_dim=8, q_lora_rank=16, n_shared_experts=1,
        rope_parameters=PLAIN,
    )),
    "lfm2": ("Lfm2", dict(
        num_hidden_layers=5, layer_types=["conv", "conv", "full_attention", "conv", "full_attention"],
        block_auto_adjust_ff_dim=False, rope_parameters=PLAIN,
    )),
    "lfm2-biases": ("Lfm2", dict(
        hidden_size=40, layer_types=["full_attention", "conv"], conv_bias=True, conv_L_cache=5, block_multiple_of=8,
        tie_word_embeddings=False, rope_parameters=PLAIN,
    )),
    "qwen3-next": ("Qwen3Next", dict(
        num_hidden_layers=4, head_dim=16,
        layer_types=["linear_attention", "linear_attention", "full_attention", "linear_attention"], linear_num_key_heads=2,
        linear_num_value_heads=6, linear_key_head_dim=12, linear_value_head_dim=10, mlp_only_layers=[1], **NEXT_EXPERTS,
        rope_parameters={**PLAIN, "partial_rotary_factor": 0.25},
    )),
    "qwen3-next-biases": ("Qwen3Next", dict(
        head_dim=8, attention_bias=True, layer_types=["full_attention", "linear_attention"], linear_num_key_heads=3,
        linear_num_value_heads=3, linear_key_head_dim=16, linear_value_head_dim=24, linear_conv_kernel_dim=2,
        tie_word_embeddings=True, mlp_only_layers=[0, 1], **NEXT_EXPERTS,
        rope_parameters={**YARN, "partial_rotary_factor": 0.5, "rope_theta": 1e3},
    )),
    "qwen3-5": ("Qwen3_5Text", dict(
        num_hidden_layers=4, head_dim=16,
        layer_types=["linear_attention", "linear_attention", "full_attention", "linear_attention"], linear_num_key_heads=2,
        linear_num_value_heads=6, linear_key_head_dim=12, linear_value_head_dim=10, rms_norm_eps=1e-2,
        rope_parameters={**PLAIN, "partial_rotary_factor": 0.25},
    )),
    "qwen3-5-biases": ("Qwen3_5Text", dict(
        hidden_size=40, head_dim=8, num_key_value_heads=1, attention_bias=True, linear_num_key_heads=3,
        layer_types=["full_attention", "linear_attention"], linear_num_value_heads=3, linear_key_head_dim=16,
        linear_value_head_dim=24, linear_conv_kernel_dim=2, rms_norm_eps=1e-2,
        rope_parameters={**PLAIN, "partial_rotary_factor": 0.5},
    )),
    "qwen3-5-moe": ("Qwen3_5MoeText", dict(
        num_hidden_layers=3, head_dim=16, layer_types=["linear_attention", "full_attention", "linear_attention"],
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=10, linear_value_head_dim=12,
        **{key: value for key, value in NEXT_EXPERTS.items() if key != "norm_topk_prob"},
        rope_parameters={**PLAIN, "partial_rotary_factor": 0.5},
    )),
    "qwen3-5-moe-odd": ("Qwen3_5MoeText", dict(
        hidden_size=40, head_dim=12, num_key_value_heads=1, attention_bias=True, linear_num_key_heads=1,
        layer_types=["full_attention", "linear_attention"], linear_num_value_heads=3, linear_key_head_dim=14,
        linear_value_head_dim=6, linear_conv_kernel_dim=3, num_experts=4, num_experts_per_tok=1, moe_intermediate_size=28,
        shared_expert_intermediate_size=20, tie_word_embeddings=True, rms_norm_eps=1e-2,
        rope_parameters={**PLAIN, "partial_rotary_factor": 1.0},
    )),
    "bamba": ("Bamba", dict(
        num_hidden_layers=4, attn_layer_indices=[2], mamba_n_heads=8, mamba_n_groups=2, mamba_d_state=10, mamba_chunk_size=16,
        attention_bias=True, rms_norm_eps=1e-2, rope_parameters=PLAIN,
    )),
    "bamba-one-group": ("Bamba", dict(
        hidden_size=40, attn_layer_indices=[0], mamba_n_heads=5, mamba_n_groups=1, mamba_d_state=24, mamba_d_conv=2,
        mamba_expand=3, mamba_chunk_size=8, mamba_conv_bias=False, tie_word_embeddings=True, mlp_bias=True, head_dim=12,
        rms_norm_eps=1e-2, rope_parameters=PLAIN,
    )),
    "granite4": ("GraniteMoeHybrid", dict(
        num_hidden_layers=4, layer_types=["linear_attention", "linear_attention", "full_attention", "linear_attention"],
        mamba_n_heads=8, mamba_n_groups=2, mamba_d_state=10, mamba_chunk_size=16, num_local_experts=6, num_experts_per_tok=3,
        shared_intermediate_size=20, position_embedding_type="nope", rms_norm_eps=1e-2, **FACTORS,
    )),
    "granite4-one-group": ("GraniteMoeHybrid", dict(
        hidden_size=40, layer_types=["full_attention", "linear_attention"], num_key_value_heads=1, head_dim=12,
        attention_bias=True, mamba_n_heads=5, mamba_n_groups=1, mamba_d_state=24, mamba_d_conv=2, mamba_expand=3,
        mamba_chunk_size=8, mamba_conv_bias=False, num_local_experts=0, shared_intermediate_size=28,
        position_embedding_type="rope", tie_word_embeddings=True, rms_norm_eps=1e-2, **{**FACTORS, "logits_scaling": 0.7},
        rope_parameters=PLAIN,
    )),
    "granite4-dense": ("GraniteMoeHybrid", dict(
        layer_types=["full_attention"] * 2, mamba_n_heads=6, num_local_experts=0, shared_intermediate_size=56,
        position_embedding_type="rope", **FACTORS, rope_parameters=PLAIN,
    )),
    "nemotron-h": ("NemotronH", dict(
        layers_block_type=["linear_attention", "moe", "mlp", "full_attention", "linear_attention", "moe"], head_dim=10,
        ssm_state_size=10, mamba_num_heads=6, mamba_head_dim=14, n_groups=2, chunk_size=16, n_routed_experts=8,
        num_experts_per_tok=3, moe_intermediate_size=20, moe_shared_expert_intermediate_size=24, routed_scaling_factor=1.7,
        n_group=4, topk_group=2, time_step_min=1e-9, layer_norm_epsilon=1e-2,
    )),
    "nemotron-h-dense": ("NemotronH", dict(
        hidden_size=40, layers_block_type=["mlp", "full_attention", "mlp", "mlp", "linear_attention"], num_key_value_heads=1,
        head_dim=12, mlp_bias=True, ssm_state_size=24, mamba_num_heads=5, mamba_head_dim=8, n_groups=1, conv_kernel=2,
        use_conv_bias=False, chunk_size=8, time_step_min=0.3, time_step_max=0.4, layer_norm_epsilon=1e-2,
    )),
    "llama4": ("Llama4Text", dict(
        num_hidden_layers=4, head_dim=12, intermediate_size=20, intermediate_size_mlp=44, interleave_moe_layer_step=2,
        no_rope_layer_interval=3, attention_chunk_size=10, floor_scale=4, attn_scale=0.6, attention_bias=True,
        num_local_experts=6, num_experts_per_tok=3, rope_parameters={**LLAMA3, "rope_theta": 1e4},
    )),
    "llama4-odd": ("Llama4Text", dict(
        num_hidden_layers=5, hidden_size=40, head_dim=10, num_key_value_heads=1, intermediate_size=28, intermediate_size_mlp=36,
        moe_layers=[1, 2], no_rope_layers=[1, 0, 1, 1, 0], attention_chunk_size=16, attn_temperature_tuning=False,
        layer_types=["full_attention", "chunked_attention", "chunked_attention", "chunked_attention", "full_attention"],
        use_qk_norm=False, num_local_experts=4, num_experts_per_tok=1, tie_word_embeddings=True, rope_parameters=PLAIN,
    )),
    "gemma3n": ("Gemma3nText", dict(
        num_hidden_layers=7, head_dim=16, attention_bias=True, sliding_window=12,
        intermediate_size=[40, 40, 24, 40, 32, 40, 40],
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention", *["sliding_attention"] * 2,
            "full_attention"],
        final_logit_softcapping=4.0, vocab_size_per_layer_input=80, hidden_size_per_layer_input=12, altup_num_inputs=3,
        num_kv_shared_layers=3, laurel_rank=6, activation_sparsity_pattern=[0.9, 0.6, *[0.0] * 4, 0.3],
        rope_parameters={"full_attention": PLAIN, "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}},
    )),
    "gemma3n-odd": ("Gemma3nText", dict(
        num_hidden_layers=3, hidden_size=40, head_dim=10, num_key_value_heads=1, sliding_window=20, intermediate_size=28,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"], tie_word_embeddings=False,
        final_logit_softcapping=50.0, vocab_size_per_layer_input=96, hidden_size_per_layer_input=8, altup_num_inputs=2,
        num_kv_shared_layers=1, laurel_rank=5, activation_sparsity_pattern=[0.0, 0.8, 0.0], rms_norm_eps=1e-3,
    )),
    "gpt2": ("GPT2", dict(n_inner=None)),
    "gpt2-exact": ("GPT2", dict(n_inner=40, activation_function="gelu", tie_word_embeddings=False)),
}  # fmt: skip
