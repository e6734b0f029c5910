"""Names that other programs have for our keys and flags, for the hint of an error.

The programs are Hugging Face's transformers, TRL and PEFT, nanoGPT, MaxText, axolotl, lm-evaluation-harness and vLLM.
"""

from collections.abc import Collection

# {ours: theirs}. The first of ours that the verb has is meant; "key=value" is the key with this value.
NAMES = {
    "init_from": "model model_name model_name_or_path model_path pretrained base_model load_parameters_path checkpoint ckpt",
    "checkpoint": "model model_name model_name_or_path model_path model_args pretrained base_model init_from ckpt",
    "from": "checkpoint model model_name_or_path model_path init_from input",
    "workdir": "output_dir out_dir output out outdir save_dir log_dir logging_dir run_dir base_output_directory output_path",
    "to": "output_dir out_dir output out outfile save_dir",
    "data.input": "dataset datasets dataset_name dataset_path dataset_dir train_file train_data training_data data_path "
    "data_files data_dir input input_file",
    "input": "data.input dataset dataset_name dataset_path data_path data_files input_file",
    "data_dir": "dataset dataset_path data data_path",
    "data.text_key": "text_column text_field dataset_text_field text_key",
    "data.max_examples": "max_samples max_train_samples",
    "tokenizer": "tokenizer_name tokenizer_path tokenizer_name_or_path",
    "epochs": "num_train_epochs num_epochs n_epochs max_epochs epoch",
    "steps": "epochs num_train_epochs num_epochs n_epochs max_epochs epoch max_steps num_steps max_iters num_iters iters "
    "iterations total_steps train_steps num_train_steps",
    "batch_size": "bs per_device_train_batch_size train_batch_size global_batch_size per_device_batch_size micro_batch_size",
    "batch_tokens": "batch_size bs per_device_eval_batch_size",
    "accumulate": "gradient_accumulation_steps grad_accum gradient_accumulation grad_accum_steps accumulation_steps",
    "sequence_length": "block_size max_seq_length max_seq_len seq_len seq_length max_length context_length context_size n_ctx "
    "max_target_length cutoff_len sequence_len",
    "max_length": "max_seq_length max_seq_len context_length max_model_len",
    "max_prompt_tokens": "max_model_len",
    "seed": "random_seed rng_seed manual_seed data_seed",
    "dtype=bfloat16": "bf16 fp16 float16 bfloat16 half mixed_precision precision amp use_bf16",
    "dtype": "torch_dtype compute_dtype model_dtype",
    "optimizer.name": "optim optimizer_type optimizer_name opt_type",
    "optimizer.state_dtype": "mu_dtype optim_bits moment_dtype",
    "ema": "ema_decay ema_rate use_ema",
    "dial.depth": "depth",
    "optimizer.learning_rate": "lr max_lr peak_lr base_lr learning_rate",
    "optimizer.warmup": "warmup_steps warmup_iters warmup_ratio num_warmup_steps warmup_steps_fraction",
    "optimizer.schedule": "lr_scheduler_type lr_schedule lr_scheduler scheduler decay_lr",
    "optimizer.final": "min_lr",
    "optimizer.weight_decay": "wd",
    "optimizer.b1": "beta1 adam_beta1 adam_b1",
    "optimizer.b2": "beta2 adam_beta2 adam_b2",
    "optimizer.eps": "adam_epsilon adam_eps",
    "optimizer.clip_norm": "max_grad_norm grad_clip clip_grad gradient_clipping gradient_clip_val gradient_clipping_threshold",
    "model.num_layers": "n_layer n_layers num_hidden_layers depth base_num_decoder_layers",
    "model.num_heads": "n_head n_heads num_attention_heads base_num_query_heads",
    "model.num_kv_heads": "n_kv_head n_kv_heads num_key_value_heads base_num_kv_heads",
    "model.embed_dim": "n_embd hidden_size d_model model_dim dim emb_dim base_emb_dim",
    "model.mlp_dim": "intermediate_size d_ff ffn_dim n_inner ffn_hidden_size base_mlp_dim",
    "model.max_positions": "max_position_embeddings n_positions",
    "model.tie_embeddings": "tie_word_embeddings tie_weights",
    "model.norm_eps": "rms_norm_eps layer_norm_eps",
    "model.remat": "gradient_checkpointing activation_checkpointing remat_policy",
    "model.offload": "cpu_offload activation_offloading offload_activations",
    "optimizer.offload": "offload_optimizer optimizer_memory_host_offload cpu_offload_optimizer",
    "model.pipeline.microbatches": "num_pipeline_microbatches num_microbatches pipeline_microbatches",
    "model.pipeline.repeats": "num_pipeline_repeats virtual_pipeline_model_parallel_size",
    "mesh.stage": "pipeline_parallel_size pipeline_model_parallel_size ici_pipeline_parallelism pp_size",
    "model.adapter.rank": "lora_r lora_rank r use_peft use_lora lora",
    "model.adapter.alpha": "lora_alpha",
    "model.adapter.targets": "lora_target_modules target_modules lora_targets",
    "model.quantization.bits": "load_in_8bit load_in_4bit",
    "model.quantized_training": "fp8 use_fp8 float8 enable_fp8 int8_training quantize_training",
    "checkpoint_every": "save_steps save_interval save_freq save_every checkpoint_period",
    "keep_last": "save_total_limit max_to_keep",
    "trackers": "report_to log_with tracker logger",
    "trackers=wandb": "wandb use_wandb wandb_log enable_wandb",
    "trackers=mlflow": "mlflow use_mlflow",
    "trackers=trackio": "trackio",
    "valid_every": "eval_steps eval_interval eval_every eval_freq val_interval",
    "valid_batches": "eval_iters eval_batches",
    "data.valid_fraction": "validation_split val_size test_size validation_split_percentage",
    "preference.loss": "loss_type",
    "preference.beta": "beta dpo_beta",
    "rl.group_size": "num_generations group_size n_generations num_samples_per_prompt",
    "rl.beta": "kl_coef kl_coeff kl_beta",
    "rl.clip_high": "epsilon clip_range cliprange epsilon_high",
    "rl.scale": "scale_rewards",
    "rewards": "reward_funcs reward_functions reward_func reward_fn reward",
    "rollout.max_new_tokens": "max_completion_length response_length max_tokens",
    "rollout.max_prompt_tokens": "max_prompt_length",
    "max_new_tokens": "max_tokens n_predict num_predict max_length max_completion_length",
    "temperature": "temp",
    "distill.teacher": "teacher teacher_model teacher_model_name_or_path",
    "mesh.fsdp": "num_gpus n_gpus gpus world_size nproc_per_node ici_fsdp_parallelism devices num_devices",
    "mesh.context": "context_parallel_size cp cp_size ici_context_parallelism sequence_parallel_size",
    "mesh.tensor": "tensor_parallel_size tp tp_size ici_tensor_parallelism",
    "tasks": "task benchmark benchmarks",
    "num_fewshot": "shots n_shot num_shots fewshot n_shots",
    "limit": "max_samples num_samples max_examples",
    "chat_template": "apply_chat_template template",
    "rows": "max_num_seqs parallel",
    "quantize": "quantization load_in_8bit load_in_4bit",
    "adapters.load": "lora_modules lora adapter",
    "auth.key_file": "api_key api_keys",
}
# What needs no key here.
NEEDLESS = {
    "resume": "the same command with the same --workdir resumes a run",
    "resume_from_checkpoint": "the same command with the same --workdir resumes a run",
    "overwrite_output_dir": "nothing is overwritten: name another --workdir",
    "device": "JAX takes the accelerator that it finds; for the CPU set the variable JAX_PLATFORMS=cpu",
    "no_cuda": "for the CPU set the variable JAX_PLATFORMS=cpu",
    "wandb_project": "trackers=wandb sends metrics there, and the variable WANDB_PROJECT names the project",
    "local_rank": "docs/train.md tells how several hosts take part",
    "do_sample": "temperature=0 is greedy, and a higher temperature samples",
    "trust_remote_code": "no code of a checkpoint is run; leave it out",
    "flash_attention": "attention needs no setting; leave it out",
    "attn_implementation": "attention needs no setting; leave it out",
}


def ours(name: str, known: Collection[str]) -> str | None:
    """Return the name in `known`, or "key=value", that another program calls `name`; None if there is none.

    name: a dotted key; only its last part counts, unless the whole is listed.
    """
    plain = name.lower().replace("-", "_")
    for wanted in dict.fromkeys((plain, plain.rpartition(".")[2])):
        for key, theirs in NAMES.items():
            if key.partition("=")[0] in known and wanted in theirs.split():
                return key
    return None


def needless(name: str) -> str | None:
    """Return what there is instead of a setting of another program that has no key here."""
    return NEEDLESS.get(name.lower().replace("-", "_").rpartition(".")[2])
