"""A video encoded and scored once, to be decoded at many budgets."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from adaptok_hf import AdapTokPipeline, Video, allocate
from adaptok_hf.video.tokenized_video import TokenizedVideo

# Clips that go through the model together.
_BATCH = 4


@dataclass
class EncodedVideo:
    """
    Args:
        video: what was encoded, at the model's size.
        tokens: all its tokens.
        scores: (clips, blocks, levels) float64, the scorer's prediction; zeros without a scorer.
        valid: (clips, blocks) bool, blocks with a real frame.
        step: tokens between two levels.
    """

    video: Video
    tokens: TokenizedVideo
    scores: np.ndarray
    valid: np.ndarray
    step: int

    @property
    def budgets(self) -> list[int]:
        """Tokens per block of each level."""
        return [self.step * (level + 1) for level in range(self.scores.shape[2])]

    @property
    def num_blocks(self) -> int:
        return int(self.valid.sum())

    def counts(self, tokens: TokenizedVideo) -> list[int]:
        """Tokens of each block of the video, in the order of time."""
        return tokens.token_counts[torch.from_numpy(self.valid)].tolist()

    def allocated(self, strategy: str, budget: float) -> TokenizedVideo:
        """The tokens that `fixed` or `joint` keep, as `pipeline.tokenize` would.

        Raises:
            ValueError: if the budget cannot be met.
        """
        counts = allocate(self.scores, strategy=strategy, step=self.step, budget=budget, valid=self.valid)
        return replace(self.tokens, token_counts=torch.from_numpy(counts), allocation={"strategy": strategy})


@torch.no_grad()
def encode_video(pipeline: AdapTokPipeline, video: Video) -> EncodedVideo:
    """Encodes and, where there is a scorer, scores every clip."""
    tokenizer, scorer = pipeline.tokenizer, pipeline.scorer
    clips = pipeline.video_processor.clips(video)
    codes, scores = [], []
    for frames in clips.frames.split(_BATCH):
        encoded = tokenizer.encode((frames.to(pipeline.device) / 255).to(tokenizer.dtype))
        codes.append(encoded.codes.cpu())
        if scorer is not None:
            scores.append(scorer(encoded.latents, encoded.quantized).scores.double().cpu())
    step = score_step(pipeline)
    codes = torch.cat(codes)
    per_block = codes.shape[2]
    return EncodedVideo(
        video=video,
        tokens=TokenizedVideo(
            codes=codes,
            token_counts=clips.valid_blocks.long() * per_block,
            codebook_size=tokenizer.config.codebook_size,
            num_frames=clips.num_frames,
            fps=clips.fps,
            timestamps=clips.timestamps,
            source_size=tuple(clips.source_size),
            resize_mode=pipeline.video_processor.resize_mode,
            model_hash=pipeline.model_hash,
        ),
        scores=torch.cat(scores).numpy() if scores else np.zeros((*codes.shape[:2], per_block // step)),
        valid=clips.valid_blocks.numpy(),
        step=step,
    )


def score_step(pipeline: AdapTokPipeline) -> int:
    """Tokens between two budgets that every strategy can meet."""
    return pipeline.scorer.config.score_step if pipeline.scorer is not None else 1


def default_budget(pipeline: AdapTokPipeline) -> int:
    """A quarter of all tokens, on the grid of the scorer's levels."""
    step, most = score_step(pipeline), pipeline.tokenizer.config.latents_per_block
    return max(step, most // 4 // step * step)


def spread(values: list[int], count: int) -> list[int]:
    """At most `count` of the rising values, the first and the last among them, evenly spaced in ratio."""
    index = np.geomspace(1, len(values), min(count, len(values))).round().astype(int) - 1
    return [values[i] for i in sorted(set(index.tolist()))]


def psnr(reconstruction: np.ndarray, original: np.ndarray) -> float:
    """dB, over all pixels of uint8 frames; 100 for identical ones."""
    error = np.mean(np.square(reconstruction.astype(np.float32) - original), dtype=np.float64)
    return 100.0 if error == 0 else min(100.0, 10 * math.log10(255**2 / error))
