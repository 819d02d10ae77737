"""The start that learns at once, and the coordinates of training."""

import copy

import pytest
import torch
from torch import nn

from adaptok_hf import AdapTokConfig, AdapTokModel
from adaptok_hf.training.tokenizer.pyramid_start import cells, start_as_pyramid
from adaptok_hf.training.tokenizer.training_coordinates import ComponentHead, fold, unfold

SIZES = {"image_size": 64, "patch_size": 16, "hidden_size": 96, "num_attention_heads": 2, "codebook_size": 64}
KINDS = ("encoder_patch_positions", "encoder_latent_queries", "decoder_latent_positions", "decoder_patch_queries")
LEARNED = {f"learned_{kind}": True for kind in KINDS}
CONFIG = AdapTokConfig(
    **SIZES, **LEARNED, num_encoder_layers=2, num_decoder_layers=2, latents_per_block=21, codebook_dim=8,
    encoder_attention_type="block_diagonal", stochastic_quantizer=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def video():
    """Moving gradients, so that components differ in size."""
    torch.manual_seed(0)
    time, row, column = torch.meshgrid(torch.arange(16), torch.arange(64), torch.arange(64), indexing="ij")
    phase = torch.rand(6, 3, 1, 1, 1) * 6 + torch.rand(6, 3, 1, 1, 1) * row / 9 + torch.rand(6, 3, 1, 1, 1) * column / 9
    return (0.5 + 0.4 * (phase + time / 5).sin()).transpose(1, 2)


@pytest.fixture(scope="module")
def started(video):
    torch.manual_seed(1)
    model = AdapTokModel(CONFIG).eval()
    start_as_pyramid(model, video, 40)
    return model


def test_cells_are_coarse_to_fine_and_scattered():
    latents = cells(30, 4)
    assert [side for _, side, *_ in latents] == [1] + 4 * [2] + 16 * [4] + 9 * [4]
    assert [index for index, *_ in latents] == [0] + 4 * [1] + 16 * [2] + 9 * [3]
    assert {(row, column) for _, _, row, column in latents[5:21]} == {(r, c) for r in range(4) for c in range(4)}
    # neighbors in the order are far apart: the first four of sixteen cells are no neighbors
    first = [(row, column) for _, _, row, column in latents[5:9]]
    assert all(abs(a[0] - b[0]) + abs(a[1] - b[1]) > 1 for a in first for b in first if a != b)


def test_patches_begin_by_looking_at_the_latents_that_cover_them(started):
    """A changed latent changes most the part of the picture that its cell covers."""
    torch.manual_seed(2)
    base = torch.randn(1, 1, 21, 96)
    for latent, (_, side, row, column) in list(enumerate(cells(21, 4)))[1:5]:
        changed = base.clone()
        changed[:, :, latent] += torch.randn(96)
        with torch.no_grad():
            difference = (started.decoder(changed) - started.decoder(base)).square().mean((0, 1, 2))
        energy = difference.unflatten(0, (side, -1)).unflatten(-1, (side, -1)).mean((1, 3))
        assert energy.argmax() == row * side + column


def test_folded_weights_compute_the_same(started, video):
    folded = fold(started)
    assert isinstance(folded.decoder.head.projection, nn.Linear) and folded is not started
    assert {name for name, _ in folded.named_parameters()} == {name for name, _ in AdapTokModel(CONFIG).named_parameters()}
    assert isinstance(started.decoder.head.projection, ComponentHead)  # the original trains on
    with torch.no_grad():
        for model in (started, folded):
            model.eval()
        torch.testing.assert_close(folded.encoder(video), started.encoder(video), rtol=1e-4, atol=1e-4)
        latents = torch.randn(2, 4, 21, 96)
        torch.testing.assert_close(folded.decoder(latents), started.decoder(latents), rtol=1e-4, atol=1e-5)
    assert fold(folded) is folded


def test_unfolded_weights_compute_the_same(started, video):
    folded = fold(started)
    unfolded = copy.deepcopy(folded)
    unfold(unfolded, video.roll(3, 1), 40)  # another sample has other components of the same span
    assert isinstance(unfolded.decoder.head.projection, ComponentHead)
    again = fold(unfolded)
    for name, weight in folded.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight, rtol=1e-3, atol=1e-4)


def test_a_few_steps_bring_down_the_error(started, video):
    """From a usual start these steps leave the latents without influence."""
    model = copy.deepcopy(started).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def reconstruct(clips):
        projected = model.quantizer.project(model.encoder(clips))
        return model.decoder(model.quantizer.project_out(projected).unflatten(1, (-1, 21)))

    for _ in range(20):
        loss = ((reconstruct(video) - video).square().mean((1, 2, 3, 4)) + 1e-4).log().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        own, others = (((reconstruct(clips) - video) ** 2).mean() for clips in (video, video.roll(1, 0)))
    assert own < 0.7 * others  # what is in the latents is used


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learned_decoder_patch_queries": False}, "learned_decoder_patch_queries"),
        ({"hidden_size": 56}, "56"),
        ({"num_frames": 36}, "9"),
    ],
)
def test_what_has_no_pyramid_start(changes, named, video):
    model = AdapTokModel(AdapTokConfig(**CONFIG.to_diff_dict() | changes))
    with pytest.raises(ValueError, match=named):
        start_as_pyramid(model, video, 8)
