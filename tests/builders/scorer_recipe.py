"""What the tests of the scorer's training share: a recipe and a tokenizer."""

import torch

from adaptok_hf import AdapTokConfig, AdapTokModel

RECIPE = {
    "train_folders": ["train"],
    "train_weights": [1.0],
    "val_folder": "val",
    "model": {"score_step": 4, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1},
    "target": "rmse",
    "augment": True,
    "levels_per_step": 3,
    "difference_weight": 0.3,
    "steps": 4,
    "batch_size": 4,
    "warmup_steps": 1,
    "ema_decay": 0.5,
    "statistics_batches": 2,
    "validation_steps": 2,
    "checkpointing_steps": 1,
    "logging_steps": 1,
}
REQUIRED = {"data_root": ".", "output_dir": "out", "tokenizer": "tokenizer"}
SCORER_CONFIG = {"latent_size": 24, "num_blocks": 4, "latents_per_block": 16, "score_step": 4}


def make_tokenizer() -> AdapTokModel:
    """4 blocks of 4 frames of 16 x 16 pixels, 16 latents each; of random weights."""
    torch.manual_seed(0)
    config = AdapTokConfig(
        image_size=16,
        patch_size=8,
        hidden_size=24,
        num_attention_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        latents_per_block=16,
        codebook_size=32,
        codebook_dim=4,
    )
    model = AdapTokModel(config).eval()
    with torch.no_grad():  # so that what the tokens say is seen in the pictures
        model.encoder.patch_embedding.projection.weight.mul_(8)
        model.quantizer.project_out.weight.mul_(8)
    return model
