"""What config.json of published models says, by the name of the model."""

import math

from tests.lm.convert import multimodal_configs

OLDER = {
    "Llama-2-7b": {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 4096,
        "rope_scaling": None, "torch_dtype": "float16",
    },
    "Llama-3.1-8B": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072,
        "rope_theta": 500000.0, "torch_dtype": "bfloat16", "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1,
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    },
    "vicuna-16k": {
        "model_type": "llama", "max_position_embeddings": 4096, "rope_scaling": {"factor": 4.0, "type": "linear"},
    },
    "a dynamic one": {
        "model_type": "llama", "rope_scaling": {"factor": 2.0, "type": "dynamic"}, "rope_theta": 1e6,
    },
    "Mistral-7B-v0.1": {
        "model_type": "mistral", "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "sliding_window": 4096, "torch_dtype": "bfloat16",
    },
    "Mistral-7B-v0.3": {
        "model_type": "mistral", "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "vocab_size": 32768,
        "sliding_window": None,
    },
    "Mixtral-8x7B": {
        "model_type": "mixtral", "max_position_embeddings": 32768, "num_experts_per_tok": 2, "num_local_experts": 8,
        "rope_theta": 1e6, "sliding_window": None, "router_aux_loss_coef": 0.02,
    },
    "Phi-3-mini-128k": {
        "model_type": "phi3", "hidden_size": 3072, "max_position_embeddings": 131072, "sliding_window": 262144,
        "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "resid_pdrop": 0.0,
        "rope_scaling": {"type": "longrope", "short_factor": [1 + i / 50 for i in range(48)],
            "long_factor": [1.0 + i for i in range(48)]},
    },
    "Phi-4-mini": {
        "model_type": "phi3", "vocab_size": 200064, "hidden_size": 3072, "num_attention_heads": 24, "num_key_value_heads": 8,
        "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75,
        "tie_word_embeddings": True, "sliding_window": 262144,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.0 + i for i in range(48)]},
    },
    "Qwen2.5-0.5B": {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "max_window_layers": 24, "sliding_window": 32768,
        "use_sliding_window": False, "tie_word_embeddings": True, "rope_theta": 1e6,
    },
    "a windowed Qwen2": {
        "model_type": "qwen2", "num_hidden_layers": 8, "max_window_layers": 5, "sliding_window": 128,
        "use_sliding_window": True, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    },
    "Qwen3-8B": {
        "model_type": "qwen3", "hidden_size": 4096, "head_dim": 128, "num_hidden_layers": 36, "num_key_value_heads": 8,
        "max_position_embeddings": 40960, "rope_theta": 1000000, "sliding_window": None, "max_window_layers": 36,
    },
    "Qwen3-30B-A3B": {
        "model_type": "qwen3_moe", "num_hidden_layers": 48, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": 768, "norm_topk_prob": True, "mlp_only_layers": [], "rope_theta": 1e6, "sliding_window": None,
        "max_window_layers": 48, "decoder_sparse_step": 1,
    },
    "gemma-2-2b": {
        "model_type": "gemma2", "hidden_size": 2304, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "sliding_window": 4096, "rope_theta": 10000.0,
        "torch_dtype": "float32",
    },
    "gemma-3-4b": {
        "model_type": "gemma3", "torch_dtype": "bfloat16", "vision_config": {"model_type": "siglip_vision_model"},
        "text_config": {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
            "sliding_window": 1024, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
    },
    "gemma-3-1b": {
        "model_type": "gemma3_text", "hidden_size": 1152, "num_attention_heads": 4, "num_key_value_heads": 1,
        "sliding_window": 512, "sliding_window_pattern": 6, "rope_local_base_freq": 10000, "rope_theta": 1000000,
    },
    "gemma-3n-E2B": {
        "model_type": "gemma3n", "torch_dtype": "bfloat16", "vision_config": {"model_type": "gemma3n_vision"},
        "audio_config": {"model_type": "gemma3n_audio"},
        "text_config": {"model_type": "gemma3n_text", "num_hidden_layers": 30, "intermediate_size": [8192] * 30,
            "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 20, "num_kv_shared_layers": 10, "rope_scaling": None,
            "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 6, "rope_local_base_freq": 10000.0,
            "rope_theta": 1000000.0, "sliding_window": 512, "altup_lr_multiplier": 1.0},
    },
    "OLMo-2-7B": {
        "model_type": "olmo2", "vocab_size": 100352, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 5e5,
    },
    "OLMo-3-7B": {
        "model_type": "olmo3", "vocab_size": 100278, "max_position_embeddings": 65536, "rope_theta": 500000,
        "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192, "attention_factor": 1.2},
        "sliding_window": 4096,
    },
    "SmolLM3-3B": {
        "model_type": "smollm3", "max_position_embeddings": 65536, "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0] * 9, "rope_theta": 5000000.0, "use_sliding_window": False, "sliding_window": None,
    },
    "granite-3.3-8b": {
        "model_type": "granite", "num_key_value_heads": 8, "attention_multiplier": 0.0078125, "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22, "logits_scaling": 16.0, "rope_theta": 10000000.0, "tie_word_embeddings": True,
    },
    "granite-4.0-h-tiny": {
        "model_type": "granitemoehybrid", "hidden_size": 1536, "intermediate_size": 512, "num_hidden_layers": 12,
        "num_attention_heads": 12, "num_key_value_heads": 4, "layer_types": ["mamba"] * 5 + ["attention"] + ["mamba"] * 6,
        "mamba_n_heads": 48, "mamba_d_head": 64, "mamba_d_state": 128, "num_local_experts": 64, "num_experts_per_tok": 6,
        "shared_intermediate_size": 1024, "position_embedding_type": "nope", "attention_multiplier": 0.0078125,
        "logits_scaling": 6, "tie_word_embeddings": True,
    },
    "granite-4.0-micro": {
        "model_type": "granitemoehybrid", "hidden_size": 2560, "num_hidden_layers": 40, "num_attention_heads": 40,
        "num_key_value_heads": 8, "layer_types": ["attention"] * 40, "num_local_experts": 0, "num_experts_per_tok": 0,
        "shared_intermediate_size": 8192, "position_embedding_type": "rope", "rope_theta": 10000000,
    },
    "Nemotron-H-8B": {
        "model_type": "nemotron_h", "num_hidden_layers": 14, "hybrid_override_pattern": "M-M-M-M*-M---M", "head_dim": 128,
        "time_step_limit": [0.0, math.inf], "time_step_min": 0.001, "residual_in_fp32": False,
    },
    "Nemotron-3-Nano-30B": {
        "model_type": "nemotron_h", "hidden_size": 2688, "num_hidden_layers": 9, "hybrid_override_pattern": "MEMEM*EME",
        "num_key_value_heads": 2, "mamba_num_heads": 64, "n_routed_experts": 128, "moe_intermediate_size": 1856,
        "moe_shared_expert_intermediate_size": 3712, "num_experts_per_tok": 6, "routed_scaling_factor": 2.5,
    },
    "Seed-OSS-36B": {
        "model_type": "seed_oss", "rope_theta": 10000000.0, "rope_scaling": {"rope_type": "default"},
    },
    "ERNIE-4.5-21B": {
        "model_type": "ernie4_5_moe", "moe_num_experts": 64, "moe_k": 6, "moe_layer_end_index": 27, "rope_theta": 500000.0,
    },
    "EXAONE-4.0-32B": {
        "model_type": "exaone4", "num_hidden_layers": 8, "sliding_window_pattern": "LLLG",
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"] + ["sliding_attention"] * 3 + ["full_attention"],
        "rope_scaling": {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0} | {"original_max_position_embeddings": 8192},
        "rope_theta": 1000000,
    },
    "c4ai-command-r7b": {
        "model_type": "cohere2", "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "logit_scale": 0.25,
        "rope_theta": 50000, "sliding_window_pattern": 4,
    },
    "GLM-4-9B-0414": {
        "model_type": "glm4", "num_key_value_heads": 2, "partial_rotary_factor": 0.5, "rope_theta": 10000.0,
    },
    "GLM-4.5-Air": {
        "model_type": "glm4_moe", "head_dim": 128, "attention_bias": True, "partial_rotary_factor": 0.5, "rope_theta": 1000000,
        "num_nextn_predict_layers": 1,
    },
    "Hunyuan-7B": {
        "model_type": "hunyuan_v1_dense", "head_dim": 128, "rope_theta": 10000.0,
        "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0},
    },
    "Nemotron-4": {
        "model_type": "nemotron", "num_key_value_heads": 8, "partial_rotary_factor": 0.5, "norm_eps": 1e-5,
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss", "num_hidden_layers": 24, "num_local_experts": 32, "experts_per_token": 4, "rope_theta": 150000,
        "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
            "original_max_position_embeddings": 4096},
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    },
    "Ministral-3-8B": {
        "model_type": "ministral3",
        "rope_parameters": {"type": "yarn", "rope_theta": 1000000.0, "factor": 16.0, "original_max_position_embeddings": 16384,
            "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
    },
    "Llama-4-Scout": {
        "model_type": "llama4", "tie_word_embeddings": False, "text_config": {"model_type": "llama4_text",
            "attention_chunk_size": 8192, "attn_scale": 0.1, "attn_temperature_tuning": True, "floor_scale": 8192,
            "interleave_moe_layer_step": 1, "max_position_embeddings": 10485760, "no_rope_layers": [], "rope_theta": 500000.0,
            "rope_scaling": {"factor": 16.0, "high_freq_factor": 1.0, "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3"}},
    },
    "Llama-4-Maverick": {
        "model_type": "llama4_text", "interleave_moe_layer_step": 2, "max_position_embeddings": 1048576,
        "num_local_experts": 128, "use_qk_norm": False, "rope_theta": 500000.0, "rope_scaling": None,
    },
    "Qwen3.5-27B": {
        "model_type": "qwen3_5", "tie_word_embeddings": False, "text_config": {"model_type": "qwen3_5_text",
            "hidden_size": 5120, "intermediate_size": 17408, "num_hidden_layers": 64, "full_attention_interval": 4,
            "attn_output_gate": True, "linear_num_value_heads": 48, "num_attention_heads": 24, "rms_norm_eps": 1e-6,
            "rope_parameters": {"mrope_interleaved": True, "mrope_section": [11, 11, 10], "rope_type": "default",
                "rope_theta": 10000000, "partial_rotary_factor": 0.25}},
    },
    "Qwen3.5-35B-A3B": {
        "model_type": "qwen3_5_moe_text", "hidden_size": 2048, "num_experts": 256, "shared_expert_intermediate_size": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25},
    },
    "DeepSeek-V2-Lite": {
        "model_type": "deepseek_v2", "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 16,
        "num_hidden_layers": 27, "q_lora_rank": None, "first_k_dense_replace": 1, "moe_layer_freq": 1, "n_group": 1,
        "topk_group": 1, "num_experts_per_tok": 6, "norm_topk_prob": False, "scoring_func": "softmax", "topk_method": "greedy",
        "max_position_embeddings": 163840, "rope_theta": 10000,
        "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 0.707,
            "mscale_all_dim": 0.707, "original_max_position_embeddings": 4096},
    },
    "DeepSeek-V3": {
        "model_type": "deepseek_v3", "max_position_embeddings": 163840, "num_nextn_predict_layers": 1, "moe_layer_freq": 1,
        "scoring_func": "sigmoid", "topk_method": "noaux_tc", "rope_theta": 10000,
        "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096},
    },
    "DeepSeek-V3.2": {
        "model_type": "deepseek_v32", "max_position_embeddings": 163840, "num_nextn_predict_layers": 1, "moe_layer_freq": 1,
        "scoring_func": "sigmoid", "topk_method": "noaux_tc", "rope_theta": 10000, "index_head_dim": 128, "index_n_heads": 64,
        "index_topk": 2048, "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
            "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096},
    },
    "GLM-5": {
        "model_type": "glm_moe_dsa", "num_nextn_predict_layers": 1, "moe_layer_freq": 1, "scoring_func": "sigmoid",
        "topk_method": "noaux_tc", "index_head_dim": 128, "index_n_heads": 32, "index_topk": 2048, "rope_interleave": True,
        "indexer_rope_interleave": True, "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
    },
    "gpt2": {
        "model_type": "gpt2", "activation_function": "gelu_new", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12,
        "n_positions": 1024, "resid_pdrop": 0.1, "attn_pdrop": 0.1,
    },
    **multimodal_configs.OLDER,
}  # fmt: skip
