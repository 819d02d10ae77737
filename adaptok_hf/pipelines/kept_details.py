"""Details that a tokenizer loses of given frames, kept in the frames that are predicted from them."""

import torch
import torch.nn.functional as F

SAME_WITHIN = 0.08 * 255  # a mean change of this much leaves a detail 1/e of its strength; chosen on training videos


def with_details(decoded: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Return predicted clips that begin with the given frames, and look like the last of them where nothing changes.

    Decoding loses details. What it lost of the last given frame is known, and belongs in every later frame too, except
    where the decoded picture has changed since.

    Args:
        decoded: uint8 (clips, frames, 3, height, width), the given frames as they are decoded, then the predicted ones.
        given: uint8 (clips, given frames, 3, height, width), the same frames before they were tokenized.

    Returns:
        uint8, the shape of `decoded`.
    """
    count, height = given.shape[1], decoded.shape[-2]
    frames = decoded.float()
    last = frames[:, count - 1 : count]
    lost = given[:, -1:].float() - last
    window = height // 16 | 1  # half a patch of a 128x128 picture
    change = F.avg_pool2d((frames - last).abs().mean(2), window, 1, window // 2, count_include_pad=False)
    kept = torch.exp(-((change / SAME_WITHIN) ** 2)).unsqueeze(2)
    return torch.cat([given, (frames + kept * lost)[:, count:].clamp(0, 255).round().to(torch.uint8)], dim=1)
