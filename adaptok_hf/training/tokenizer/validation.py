"""How well a tokenizer in training reconstructs: PSNR at several budgets, and pictures."""

import numpy as np
import torch
from accelerate import Accelerator

from ...data import VideoFolderClips
from ...models.modeling_adaptok import AdapTokModel
from ...models.modeling_evatok import EVATokModel
from .assignments import Assignments

BATCH_SIZE = 8
PICTURE_CLIPS, PICTURE_FRAMES = 2, 8


class Reconstructor:
    """Reconstructs clips at several budgets, whatever stage the training is in.

    Args:
        num_blocks: how many leading blocks of a clip are used.
        quantize: `False` while the training still leaves the quantizer out.
        assignments: if they are a router's, its counts are one more budget, "router".
    """

    def __init__(
        self,
        model: AdapTokModel | EVATokModel,
        num_blocks: int,
        quantize: bool,
        assignments: Assignments | None = None,
    ):
        self.model, self.num_blocks, self.quantize = model, num_blocks, quantize
        config, m = model.config, model.config.latents_per_block
        # a tokenizer that is not adaptive (CausalTok) always keeps all tokens
        self.budgets: dict[str, int | None] = {"full": m}
        if isinstance(model, EVATokModel):
            self.budgets = {str(level): level for level in config.levels}
        elif config.adaptive:
            self.budgets = {"1/16": max(1, m // 16), "1/4": max(1, m // 4), "full": m}
        self.assignments = assignments
        if assignments is not None and assignments.router is not None:
            self.budgets["router"] = None

    @torch.no_grad()
    def __call__(self, video: torch.Tensor) -> dict[str, torch.Tensor]:
        """(batch, frames, 3, height, width) in [0, 1] -> its reconstruction at each budget, float32, clamped."""
        model = self.model
        model.eval()
        quantized = None
        if isinstance(model, EVATokModel):
            pass  # what is encoded depends on the counts
        elif self.quantize:
            quantized = model.encode(video).quantized
        else:
            projected = model.quantizer.project(model.encoder(video))
            quantized = model.quantizer.project_out(projected).unflatten(1, (-1, model.config.latents_per_block))
        videos = {}
        for name, count in self.budgets.items():
            counts = None
            if count is None:
                counts = self.assignments.of_clips((video * 255).round())
            elif model.config.adaptive or isinstance(model, EVATokModel):
                counts = torch.full((len(video), self.num_blocks), count, device=video.device)
            if isinstance(model, EVATokModel):
                decoded = model.decode(model.encode(video, counts).codes, counts).pixel_values_videos
            else:
                decoded = model.decode(quantized=quantized, token_counts=counts).pixel_values_videos
            videos[name] = decoded.float().clamp(0, 1)
        model.train()
        return videos

    def prepare(self, clips: VideoFolderClips, indices: range, device: torch.device) -> torch.Tensor:
        """Return clips of a data set as float (batch, frames, 3, height, width) in [0, 1], as many frames as are used."""
        frames = self.num_blocks * self.model.config.tubelet_size
        video = torch.stack([clips[index]["pixel_values_videos"][:frames] for index in indices])
        return video.to(device).float() / 255


def measure_psnr(reconstruct: Reconstructor, clips: VideoFolderClips, accelerator: Accelerator) -> dict[str, float]:
    """Return the mean PSNR in dB at each budget (per clip over all its pixels, then the mean).

    Every process must call this, and measures its share.
    """
    share = range(accelerator.process_index, len(clips), accelerator.num_processes)
    totals = torch.zeros(len(reconstruct.budgets), device=accelerator.device)
    for start in range(0, len(share), BATCH_SIZE):
        video = reconstruct.prepare(clips, share[start : start + BATCH_SIZE], accelerator.device)
        for index, decoded in enumerate(reconstruct(video).values()):
            mse = (decoded - video).square().flatten(1).mean(1)
            totals[index] += (-10 * mse.clamp(min=1e-10).log10()).sum()
    means = accelerator.reduce(totals, "sum") / len(clips)
    return {f"psnr_{name}": value for name, value in zip(reconstruct.budgets, means.tolist(), strict=True)}


def draw_reconstructions(reconstruct: Reconstructor, clips: VideoFolderClips, device: torch.device) -> np.ndarray:
    """Return a picture, uint8 (height, width, 3): of each clip a row of original frames, then one for each budget."""
    video = reconstruct.prepare(clips, range(min(PICTURE_CLIPS, len(clips))), device)
    columns = torch.linspace(0, video.shape[1] - 1, min(PICTURE_FRAMES, video.shape[1])).round().long()
    rows = torch.stack([video, *reconstruct(video).values()], dim=1)[:, :, columns.to(device)]
    picture = rows.permute(0, 1, 4, 2, 5, 3).flatten(3, 4).flatten(0, 2)  # clips, rows, height, frames, width, channels
    return (picture * 255).round().byte().cpu().numpy()
