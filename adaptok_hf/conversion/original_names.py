"""The names of the original AdapTok code and ours, for `conversion`."""

from functools import partial

import torch

# Arguments of the original. Paths go into nested objects; `...` stands for "has no default".
NONE = (None, "none", "no", "null", "")
# path, our name, default
ARGUMENTS = (
    ("input_size", "image_size", 128),
    ("in_channels", "num_channels", 3),
    ("frame_num", "num_frames", 16),
    ("patch_size", "patch_size", 8),
    ("temporal_patch_size", "tubelet_size", 4),
    ("encoder_hidden_size", "hidden_size", 768),
    ("encoder_num_heads", "num_attention_heads", 12),
    ("encoder_depth", "num_encoder_layers", 6),
    ("decoder_depth", "num_decoder_layers", 6),
    ("bottleneck.args.bottleneck_dim", "codebook_dim", ...),
    ("bottleneck.args.regularizer.args.codebook_size", "codebook_size", ...),
    ("bottleneck.args.regularizer.args.stochastic", "stochastic_quantizer", ...),
    ("bottleneck.args.regularizer.args.stochastic_temperature", "quantizer_temperature", ...),
    ("learned_encoder_patch_pe", "learned_encoder_patch_positions", False),
    ("learned_encoder_latent_query_embed", "learned_encoder_latent_queries", True),
    ("learned_decoder_latent_pe", "learned_decoder_latent_positions", False),
    ("learned_decoder_patch_query_embed", "learned_decoder_patch_queries", False),
    ("use_encoder_patch_token_type_embed", "encoder_patch_type_embedding", False),
    ("use_encoder_latent_query_token_type_embed", "encoder_latent_type_embedding", False),
    ("use_decoder_latent_token_type_embed", "decoder_latent_type_embedding", False),
    ("use_decoder_patch_query_token_type_embed", "decoder_patch_type_embedding", False),
    ("latent_pe_scale_factor", "latent_position_base", 10000),
    ("query_init_std", "initializer_range", 0.02),
)
SCORER_ARGUMENTS = (
    ("scorer_step", "score_step", ...),
    ("scorer_hidden_size", "hidden_size", ...),
    ("scorer_num_heads", "num_attention_heads", ...),
    ("scorer_depth", "num_hidden_layers", ...),
)
# path, the values that we support, default
SUPPORTED = (
    ("transformer_name", ("transformer_encoder_parallel",), "transformer_encoder_parallel"),
    ("encoder_name", (*NONE, "transformer_encoder_parallel"), None),
    ("decoder_name", (*NONE, "transformer_encoder_parallel"), None),
    ("scorer_name", (*NONE, "transformer_scorer"), None),
    ("bottleneck.name", ("bottleneck",), ...),
    ("bottleneck.args.norm", NONE, None),
    ("bottleneck.args.regularizer.name", ("vq",), ...),
    ("bottleneck.args.regularizer.args.l2_normalized", (True,), ...),
    ("prior_model.args.l2_normalized", (True,), True),
)
GENERATOR_ARGUMENTS = (
    ("vocab_size", "codebook_size", ...),
    ("dim", "hidden_size", ...),
    ("n_layer", "num_hidden_layers", ...),
    ("n_head", "num_attention_heads", ...),
    ("norm_eps", "rms_norm_eps", 1e-5),
    ("initializer_range", "initializer_range", 0.02),
    ("token_dropout_p", "embedding_dropout", 0.1),
    ("attn_dropout_p", "attention_dropout", 0.0),
    ("resid_dropout_p", "residual_dropout", 0.1),
    ("ffn_dropout_p", "mlp_dropout", 0.1),
)
GENERATOR_SUPPORTED = (
    ("model_type", ("class_cond",), "class_cond"),
    ("with_block_sep", (False, True), False),
    ("frame_prediction", (False, True), False),
    ("n_kv_head", NONE, None),
    ("ffn_dim_multiplier", NONE, None),
    ("drop_path_rate", (0,), 0.0),
)
# path, the path whose value it must have, default of both
EQUAL = (
    ("decoder_hidden_size", "encoder_hidden_size", 768),
    ("decoder_num_heads", "encoder_num_heads", 12),
    ("decoder_patch_size", "patch_size", 8),
    ("decoder_temporal_patch_size", "temporal_patch_size", 4),
)
ATTENTION_TYPES = {
    "full_causal_type1": "block_causal",
    "full_causal_type2": "decoder",
    "full_causal_type3": "block_diagonal",
    "full_bi_attn": "full",
    **dict.fromkeys(NONE, "full"),
}
# Priors: name -> layers, heads, width.
PRIORS = {
    "gptc-L": (24, 16, 1024),
    "gptc-B": (12, 12, 768),
    "gptc-M": (12, 8, 512),
    "gptc-S": (12, 6, 384),
    "gptc-XS": (6, 6, 384),
    "gptc-XXS": (6, 4, 256),
}
# Generators: name -> layers, heads, width. A name stands for these three arguments.
GENERATORS = {
    "llama-abs-tiny": (2, 4, 64),
    "llama-abs-S": (12, 6, 384),
    "llama-abs-B": (12, 12, 768),
    "llama-abs-L": (24, 16, 1024),
    "llama-abs-LP": (30, 20, 1280),
    "llama-abs-XL": (36, 20, 1280),
    "llama-abs-XXL": (48, 24, 1536),
    "llama-abs-XXXL": (48, 40, 2560),
}


def flatten_kernel(kernel: torch.Tensor) -> torch.Tensor:
    """Convolution kernel (width, channels, [time,] rows, columns) -> linear map (width, product of the others)."""
    return kernel.flatten(1)


def add_batch_axis(table: torch.Tensor) -> torch.Tensor:
    """(sequence, width) -> (1, sequence, width)."""
    return table[None]


def sum_axes(time: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """Tables (1, t, 1, 1, width), (1, 1, h, 1, width), (1, 1, 1, w, width) -> (1, t * h * w, width)."""
    return (time + row + column).flatten(1, 3)


def third(fused: torch.Tensor, index: int) -> torch.Tensor:
    """Query, key and value projections on top of each other, (3 * width, width) -> one of them."""
    return fused.chunk(3)[index].clone()


def stack_rows(tokens: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Embeddings of codes and `<EOB>` (AdapTok), and of the classes and the null class -> one table."""
    return torch.cat([tokens, classes])


def add_class_rows(output: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Output layer of codes and `<EOB>` (AdapTok) -> with rows of zeros for conditioning ids, which have no logit there."""
    return torch.nn.functional.pad(output, (0, 0, 0, len(classes)))


def add_separator_row(output: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """As `add_class_rows`, for the separator after the condition, which has a row in the embeddings only."""
    return torch.nn.functional.pad(output, (0, 0, 0, len(tokens) - len(output)))


# Parameters: original name, our name, and the function that turns one into the other where it is not the same tensor.
# A row is about a tensor, or about a module and its `weight` and `bias`; `*` is the number of a layer.
LAYER = (
    ("blocks.*.norm1", "layers.*.norm1"),
    ("blocks.*.attn.qkv", "layers.*.attention.qkv"),
    ("blocks.*.attn.proj", "layers.*.attention.proj"),
    ("blocks.*.norm2", "layers.*.norm2"),
    ("blocks.*.mlp.fc1", "layers.*.mlp.fc1"),
    ("blocks.*.mlp.fc2", "layers.*.mlp.fc2"),
)
GENERATOR = (
    ("abs_pe", "model.positions.weight"),
    ("layers.*.attention_norm", "model.layers.*.input_layernorm"),
    ("layers.*.attention.wqkv.weight", "model.layers.*.self_attn.q_proj.weight", partial(third, index=0)),
    ("layers.*.attention.wqkv.weight", "model.layers.*.self_attn.k_proj.weight", partial(third, index=1)),
    ("layers.*.attention.wqkv.weight", "model.layers.*.self_attn.v_proj.weight", partial(third, index=2)),
    ("layers.*.attention.wo", "model.layers.*.self_attn.o_proj"),
    ("layers.*.ffn_norm", "model.layers.*.post_attention_layernorm"),
    ("layers.*.feed_forward.w1", "model.layers.*.mlp.gate_proj"),
    ("layers.*.feed_forward.w2", "model.layers.*.mlp.down_proj"),
    ("layers.*.feed_forward.w3", "model.layers.*.mlp.up_proj"),
    ("norm", "model.norm"),
)
CLASS_TABLE = "cls_embedding.embedding_table.weight"
KEYS = {
    "tokenizer": (
        ("x_embedder.proj.weight", "encoder.patch_embedding.projection.weight", flatten_kernel),
        ("x_embedder.proj.bias", "encoder.patch_embedding.projection.bias"),
        (("encoder_t_embed", "encoder_h_embed", "encode_w_embed"), "encoder.patch_positions.weight", sum_axes),
        ("encoder_patch_token_type_embed", "encoder.patch_type.weight"),
        ("encoder_latent_query_embed", "encoder.latent_queries.weight", add_batch_axis),
        ("encoder_latent_query_token_type_embed", "encoder.latent_type.weight"),
        *((f"encoder.{original}", f"encoder.{ours}") for original, ours in LAYER),
        ("bottleneck.in_linear", "quantizer.project_in"),
        ("bottleneck.regularizer.embedding", "quantizer.codebook"),
        ("bottleneck.out_linear", "quantizer.project_out"),
        ("decoder_latent_pe", "decoder.latent_positions.weight"),
        ("decoder_latent_token_type_embed", "decoder.latent_type.weight"),
        (("decoder_t_embed", "decoder_h_embed", "decoder_w_embed"), "decoder.patch_queries.weight", sum_axes),
        ("decoder_patch_query_token_type_embed", "decoder.patch_type.weight"),
        *((f"decoder.{original}", f"decoder.{ours}") for original, ours in LAYER),
        ("final_layer.norm_final", "decoder.head.norm"),
        ("final_layer.linear", "decoder.head.projection"),
    ),
    "scorer": (
        ("scorer.project", "project_in"),
        ("scorer.latent_pe", "positions.weight", add_batch_axis),
        *((f"scorer.{original}", ours) for original, ours in LAYER),
        ("scorer.ln_post", "norm"),
        ("scorer.ffn.0", "head_in"),
        ("scorer.ffn.2", "head_out"),
    ),
    "prior": (
        ("prior_model.input_proj", "project_in"),
        ("prior_model.pos_emb", "positions.weight"),
        ("prior_model.blocks.*.ln1", "layers.*.norm1"),
        ("prior_model.blocks.*.attn.query", "layers.*.attention.query"),
        ("prior_model.blocks.*.attn.key", "layers.*.attention.key"),
        ("prior_model.blocks.*.attn.value", "layers.*.attention.value"),
        ("prior_model.blocks.*.attn.proj", "layers.*.attention.proj"),
        ("prior_model.blocks.*.ln2", "layers.*.norm2"),
        ("prior_model.blocks.*.mlp.0", "layers.*.fc1"),
        ("prior_model.blocks.*.mlp.2", "layers.*.fc2"),
        ("prior_model.ln_f", "norm"),
        ("prior_model.head", "head"),
    ),
    "ar_model": (
        *GENERATOR,
        (("tok_embeddings.weight", CLASS_TABLE), "model.embed_tokens.weight", stack_rows),
        (("output.weight", CLASS_TABLE), "lm_head.weight", add_class_rows),
    ),
    "fp_model": (
        *GENERATOR,
        ("tok_embeddings", "model.embed_tokens"),
        (("output.weight", "tok_embeddings.weight"), "lm_head.weight", add_separator_row),
    ),
}
# Fixed sine-cosine tables, which the original stores and we compute: original name -> our module.
TABLES = {
    "tokenizer": {
        "encoder_patch_pe": "encoder.patch_positions",
        "encoder_latent_query_embed": "encoder.latent_queries",
        "decoder_latent_pe": "decoder.latent_positions",
        "decoder_patch_query_embed": "decoder.patch_queries",
    },
    "scorer": {},
    "prior": {},
    "ar_model": {"abs_pe": "model.positions"},
    "fp_model": {"abs_pe": "model.positions"},
}
