"""A small data set of videos, tiny pipelines of random weights, and the tokens of the first by one of the second."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from builders.script_runs import run_script
from builders.video_files import make_frames, write_mp4

from adaptok_hf import (
    AdapTokARForCausalLM,
    AdapTokConfig,
    AdapTokModel,
    AdapTokPipeline,
    AdapTokScorerConfig,
    AdapTokScorerModel,
    AdapTokVideoProcessor,
)


@dataclass
class TokenData:
    videos: Path
    pipeline: Path
    tokens: Path

    @property
    def options(self) -> list:
        """Of `tokenize_dataset.py`, without `--videos` and `--output_dir`."""
        options = ["--model", self.pipeline, "--labels", "folder", "--window_step", 4, "--budget", 8]
        return [*options, "--num_condition_frames", 5, "--videos_per_shard", 2, "--batch_size", 3]


def write_videos(folder: Path) -> None:
    """Two classes of two videos, of 1 and 3 windows of 16 frames with a step of 4."""
    for index, name in enumerate(("a_jump", "b_run")):
        (folder / name).mkdir(parents=True)
        for i in range(2):
            frames = np.roll(make_frames(16 + 8 * i, 32, 32), 7 * i + 3 * index, axis=2)
            write_mp4(folder / name / f"{i}.mp4", frames=frames)


def make_pipeline(
    seed: int = 0,
    image_size: int = 16,
    num_frames: int = 12,
    latents_per_block: int = 6,
    score_step: int = 2,
    codebook_size: int = 50,
    ar_model: AdapTokARForCausalLM | None = None,
    fp_model: AdapTokARForCausalLM | None = None,
) -> AdapTokPipeline:
    """Of random weights, for blocks of 4 frames; generators are put into it as they are."""
    torch.manual_seed(seed)
    layers = {"hidden_size": 32, "num_attention_heads": 2}
    tokenizer = AdapTokModel(
        AdapTokConfig(
            image_size=image_size,
            num_frames=num_frames,
            num_encoder_layers=1,
            num_decoder_layers=1,
            latents_per_block=latents_per_block,
            codebook_size=codebook_size,
            codebook_dim=8,
            **layers,
        )
    )
    with torch.no_grad():  # Xavier weights alone leave the latents of different videos almost equal
        tokenizer.encoder.patch_embedding.projection.weight.mul_(8)
    scorer = AdapTokScorerModel(
        AdapTokScorerConfig(
            latent_size=32,
            num_blocks=num_frames // 4,
            latents_per_block=latents_per_block,
            score_step=score_step,
            num_hidden_layers=1,
            **layers,
        )
    )
    processor = AdapTokVideoProcessor(image_size, num_frames, tubelet_size=4)
    return AdapTokPipeline(processor, tokenizer.eval(), scorer.eval(), ar_model, fp_model)


def make_token_data(folder: Path) -> TokenData:
    """With one file among the videos that is none."""
    made = TokenData(folder / "videos", folder / "pipeline", folder / "tokens")
    write_videos(made.videos)
    (made.videos / "b_run" / "broken.mp4").write_bytes(b"not a video")
    sizes = {"image_size": 32, "num_frames": 16, "latents_per_block": 16, "score_step": 4, "codebook_size": 40}
    make_pipeline(seed=1, **sizes).save_pretrained(made.pipeline)  # a seed whose scores differ between windows
    run_script("tokenize_dataset.py", "--videos", made.videos, *made.options, "--output_dir", made.tokens)
    return made
