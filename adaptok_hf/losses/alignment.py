"""The alignment of a tokenizer's decoder with a frozen video encoder (EVATok, after GigaTok)."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool3d, cosine_similarity

from .frozen_backbones import HoldsBackbone, backbone_pixels


class AlignmentLoss(HoldsBackbone):
    """Minus the mean cosine between a decoder's patches, projected by an MLP, and those of a frozen teacher.

    The teacher's patches are averaged over the time steps of a block, and averaged or repeated in space, so that there is
    one for each of the decoder's.

    Args:
        teacher: a `transformers.VJEPA2Model`. It is neither trained nor part of the state dictionary.
        student_size: width of the decoder.
        image_size: pixels of the teacher's input; default: its configuration's.
        hidden_size: of the MLP; default: four times the student's.

    Raises:
        ValueError: if the teacher's patches do not fill its input.
    """

    def __init__(
        self, teacher: nn.Module, student_size: int, image_size: int | None = None, hidden_size: int | None = None
    ):
        super().__init__(teacher)
        config, hidden = teacher.config, hidden_size or 4 * student_size
        self.image_size = image_size or config.crop_size
        if self.image_size % config.patch_size:
            raise ValueError(
                f"the teacher's input of {self.image_size} pixels must be a multiple of its patches of {config.patch_size}"
            )
        self.projection: Callable[[torch.Tensor], torch.Tensor] = nn.Sequential(
            nn.Linear(student_size, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, config.hidden_size),
        )  # fmt: skip

    @torch.no_grad()
    def teacher_features(self, video: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        """Return the teacher's patches on the student's grid, (batch, blocks, rows, columns, width).

        Args:
            video: (batch, frames, 3, height, width) in [0, 1].
            grid: blocks, rows and columns of the student's patches.
        """
        pixels = backbone_pixels(video, (self.image_size, self.image_size))
        patches = self.backbone(pixels, skip_predictor=True).last_hidden_state
        side = self.image_size // self.backbone.config.patch_size
        patches = patches.transpose(1, 2).unflatten(2, (-1, side, side))
        return adaptive_avg_pool3d(patches.float(), grid).movedim(1, -1)

    def forward(self, features: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
        """Return the scalar loss; its gradient reaches `features` and the MLP.

        Args:
            features: (batch, blocks, rows, columns, student_size), a decoder layer's patches.
            video: the original, (batch, frames, 3, height, width) in [0, 1].
        """
        target = self.teacher_features(video, features.shape[1:4])
        return -cosine_similarity(self.projection(features).float(), target, dim=-1).mean()
