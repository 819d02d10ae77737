import json
import math
from dataclasses import replace

import pytest
import torch
from builders.parity_table import FULL
from safetensors.torch import load_file
from torch.testing import assert_close

from adaptok_hf.losses import DiscriminatorConfig, VideoDiscriminator, convert_discriminator_weights, r1_penalty

TINY = DiscriminatorConfig(
    image_size=16, num_frames=8, patch_size=8, hidden_size=32, num_attention_heads=2, num_hidden_layers=2
)
needs_full = pytest.mark.skipif(FULL is None, reason="ADAPTOK_PARITY_DIR does not name the folder with all golden tensors")


@pytest.fixture
def discriminator() -> VideoDiscriminator:
    torch.manual_seed(0)
    discriminator = VideoDiscriminator(TINY)
    with torch.no_grad():  # biases and norms too must matter
        for parameter in discriminator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return discriminator


@pytest.fixture
def video() -> torch.Tensor:
    """(3, 8, 3, 16, 16) in [0, 1]."""
    return torch.rand(3, 8, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def golden() -> tuple[VideoDiscriminator, dict[str, torch.Tensor]]:
    """The original's discriminator, converted, and its numbers; videos are (batch, frames, channels, height, width)."""
    folder = FULL / "discriminator_tiny"
    original = json.loads((folder / "config.json").read_text())
    config = DiscriminatorConfig(
        image_size=original["input_size"],
        num_frames=original["frame_num"],
        tubelet_size=original["temporal_patch_size"],
        patch_size=original["patch_size"],
        hidden_size=original["hidden_size"],
        num_attention_heads=original["n_heads"],
        num_hidden_layers=original["n_layers"],
    )
    discriminator = VideoDiscriminator(config)
    weights = load_file(folder / "discriminator.safetensors")
    discriminator.load_state_dict(convert_discriminator_weights(weights))
    assert_close(discriminator.positions(), weights["encoder_pos_embed"], atol=1e-6, rtol=0)
    tensors = load_file(folder / "io.safetensors")
    return discriminator, {k: v.transpose(1, 2) if v.ndim == 5 else v for k, v in tensors.items()}


@needs_full
def test_equals_the_original(golden):
    discriminator, tensors = golden
    real = tensors["real"].requires_grad_()
    logits = discriminator(real)
    assert_close(logits, tensors["logits_real"][:, 0], atol=1e-5, rtol=0)
    assert_close(discriminator(tensors["fake"]), tensors["logits_fake"][:, 0], atol=1e-5, rtol=0)
    (gradient,) = torch.autograd.grad(logits.sum(), real)
    assert_close(gradient, tensors["input_grad_of_logit_sum"], atol=1e-5, rtol=0)
    penalty = r1_penalty(discriminator, real)
    assert_close(penalty, tensors["r1_cost1"][0], atol=1e-5, rtol=0)
    assert_close(10 * penalty, tensors["r1_cost10"][0], atol=1e-4, rtol=0)


def plain_discriminator(state: dict[str, torch.Tensor], video: torch.Tensor) -> torch.Tensor:
    """The discriminator written out, one clip, patch and head at a time, in float64."""
    state = {name: weight.double() for name, weight in state.items()}

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)

    def norm(x, name, eps):
        centered = x - x.mean(-1, keepdim=True)
        scaled = centered / (centered.square().mean(-1, keepdim=True) + eps).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def waves(position, width):
        angles = [position * 10000 ** (-k / (width / 2)) for k in range(width // 2)]
        return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64)

    logits = []
    for clip in video.double():
        tokens = [state["class_token"][0, 0]]
        for time in range(2):
            for row in range(2):
                for column in range(2):
                    patch = clip[4 * time : 4 * time + 4, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
                    position = torch.cat([waves(column, 16), waves(row, 16)]) + waves(time, 32)
                    tokens.append(linear(patch.transpose(0, 1).flatten(), "patch_embedding.projection") + position)
        x = torch.stack(tokens)
        for layer in ("layers.0", "layers.1"):
            query, key, value = linear(norm(x, f"{layer}.norm1", 1e-5), f"{layer}.attention.qkv").chunk(3, dim=-1)
            heads = []
            for head in (slice(0, 16), slice(16, 32)):
                heads.append((query[:, head] @ key[:, head].T / 4).softmax(-1) @ value[:, head])
            x = x + linear(torch.cat(heads, dim=-1), f"{layer}.attention.proj")
            y = linear(norm(x, f"{layer}.norm2", 1e-5), f"{layer}.mlp.fc1")
            x = x + linear(y * 0.5 * (1 + torch.erf(y / math.sqrt(2))), f"{layer}.mlp.fc2")
        logits.append(linear(norm(x[0], "norm", 1e-6), "head"))
    return torch.cat(logits).float()


def test_plain_formula(discriminator, video):
    expected = plain_discriminator(discriminator.state_dict(), video)
    assert_close(discriminator(video), expected, atol=1e-5, rtol=0)
    assert expected.std() > 1e-3


def test_the_papers_size():
    with torch.device("meta"):
        discriminator = VideoDiscriminator(DiscriminatorConfig())
    width, patch = 512, 3 * 4 * 8 * 8
    layer = 3 * width**2 + (width**2 + width) + 4 * width + (4 * width**2 + 4 * width) + (4 * width**2 + width)
    expected = 12 * layer + (patch + 1) * width + width + 2 * width + width + 1
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == expected == 38_205_953


def test_starts_undecided_and_trains_everywhere(video):
    torch.manual_seed(0)
    discriminator = VideoDiscriminator(TINY)
    logits = discriminator(video)
    assert logits.shape == (3,) and logits.abs().max() < 5
    logits.sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in discriminator.parameters())


def test_clips_are_judged_apart_and_order_matters(discriminator, video):
    with torch.no_grad():
        logits = discriminator(video)
        assert_close(torch.cat([discriminator(clip[None]) for clip in video]), logits, atol=1e-6, rtol=0)
        assert (discriminator(video[:, [4, 5, 6, 7, 0, 1, 2, 3]]) - logits).abs().min() > 1e-4
        assert (discriminator(video.roll(8, dims=-1)) - logits).abs().min() > 1e-4


def test_shorter_clips(discriminator, video):
    """A clip of one block is judged as by a discriminator made for one block."""
    short = VideoDiscriminator(replace(TINY, num_frames=4))
    short.load_state_dict(discriminator.state_dict())
    assert torch.equal(discriminator(video[:, :4]), short(video[:, :4]))


def test_half_precision(discriminator, video):
    full = discriminator(video)
    with torch.autocast("cpu", torch.bfloat16):
        automatic = discriminator(video)
    whole = discriminator.bfloat16()(video)
    for logits in (automatic, whole):
        assert logits.dtype == torch.float32
        assert_close(logits, full, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("shape", [(3, 8, 16, 16), (3, 8, 1, 16, 16), (3, 8, 3, 16, 32)])
def test_refuses_other_videos(discriminator, shape):
    with pytest.raises(ValueError, match=r"\(3, 16, 16\)") as error:
        discriminator(torch.zeros(shape))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize("frames", [0, 6, 12])
def test_refuses_other_lengths(discriminator, frames):
    with pytest.raises(ValueError, match=f"{frames} frames.* 4 .* 8"):
        discriminator(torch.zeros(1, frames, 3, 16, 16))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"image_size": 20}, "image_size=20 must be a multiple of patch_size=8"),
        ({"num_frames": 6}, "num_frames=6 must be a multiple of tubelet_size=4"),
        ({"hidden_size": 30, "num_attention_heads": 4}, "hidden_size=30 must be a multiple of num_attention_heads=4"),
        ({"hidden_size": 30, "num_attention_heads": 2}, "hidden_size=30 must be a multiple of .*2 and of 4"),
    ],
)
def test_config_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        DiscriminatorConfig(**settings)


def test_conversion_names_what_it_does_not_know():
    with pytest.raises(ValueError, match="blocks.0.extra.weight"):
        convert_discriminator_weights(
            {"transformer_encoder.blocks.0.extra.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}
        )
