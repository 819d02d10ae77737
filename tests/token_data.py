"""A small data set of videos, a pipeline of random weights, and the tokens of the first by the second."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from script_runs import run_script
from video_files import make_frames, write_mp4

from adaptok_hf import (
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


def write_pipeline(folder: Path) -> None:
    torch.manual_seed(0)
    config = AdapTokConfig(
        image_size=32,
        hidden_size=32,
        num_attention_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        latents_per_block=16,
        codebook_size=40,
        codebook_dim=4,
    )
    scorer = AdapTokScorerConfig(
        latent_size=32, latents_per_block=16, score_step=4, hidden_size=16, num_attention_heads=2, num_hidden_layers=1
    )
    processor = AdapTokVideoProcessor(image_size=32, num_frames=16, tubelet_size=4)
    AdapTokPipeline(processor, AdapTokModel(config), AdapTokScorerModel(scorer)).save_pretrained(folder)


def make_token_data(folder: Path) -> TokenData:
    """With one file among the videos that is none."""
    made = TokenData(folder / "videos", folder / "pipeline", folder / "tokens")
    write_videos(made.videos)
    (made.videos / "b_run" / "broken.mp4").write_bytes(b"not a video")
    write_pipeline(made.pipeline)
    run_script("tokenize_dataset.py", "--videos", made.videos, *made.options, "--output_dir", made.tokens)
    return made
