import numpy as np
import pytest
import torch

from adaptok_hf.metrics import CodebookUsage, TokenRate
from adaptok_hf.video.tokenized_video import TokenizedVideo


def test_usage_and_perplexity_of_known_frequencies():
    metric = CodebookUsage(8)
    metric.update(torch.arange(4).repeat(3).view(1, 3, 4))
    result = metric.compute()
    assert float(result["usage"]) == 0.5 and int(result["tokens"]) == 12
    assert float(result["perplexity"]) == pytest.approx(4)
    metric.update(torch.zeros(1, 3, 4, dtype=torch.long))  # code 0: 15 of 24, the others 3 of 24 each
    frequencies = np.array([15, 3, 3, 3]) / 24
    assert float(metric.compute()["perplexity"]) == pytest.approx(np.exp(-(frequencies * np.log(frequencies)).sum()))


def test_dropped_codes_do_not_count():
    codes = torch.tensor([[[1, 2, -1], [1, 99, 99]]])
    metric = CodebookUsage(4)
    metric.update(codes, torch.tensor([[2, 1]]))
    assert metric.histogram.tolist() == [0, 2, 1, 0]
    with pytest.raises(ValueError, match="-1 to 99"):
        metric.update(codes)
    with pytest.raises(ValueError, match="2 to 4"):
        metric.update(codes, torch.tensor([[2, 4]]))
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        metric.update(codes, torch.ones(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="float32"):
        metric.update(codes.float())
    with pytest.raises(ValueError, match="no codes"):
        CodebookUsage(4).compute()


def test_rate_is_that_of_a_tokens_file():
    counts = torch.tensor([[3, 2], [4, 0]])
    tokens = TokenizedVideo(
        codes=torch.zeros(2, 2, 4, dtype=torch.long),
        token_counts=counts,
        codebook_size=50,
        num_frames=12,
        fps=24.0,
        timestamps=np.arange(12) / 24,
        source_size=(16, 16),
        resize_mode="crop",
        model_hash="",
    )
    metric = TokenRate(50, 4)
    metric.update(counts[:1], 0.25)
    metric.update(counts[1:], 0.25)
    result = metric.compute()
    assert float(result["tokens_per_second"]) == pytest.approx(tokens.tokens_per_second)
    assert float(result["tokens_per_block"]) == pytest.approx(9 / 4)
    padding = int(result["bits_per_second"] * 0.5 - tokens.num_bits > 1)  # a file does not store blocks that are padding
    assert float(result["bits_per_second"]) * 0.5 == pytest.approx(tokens.num_bits + padding * np.log2(5))


def test_bad_rates():
    metric = TokenRate(50, 4)
    with pytest.raises(ValueError, match="1 to 5"):
        metric.update(torch.tensor([[1, 5]]), 1.0)
    with pytest.raises(ValueError, match="float32"):
        metric.update(torch.ones(1, 2), 1.0)
    with pytest.raises(ValueError, match="seconds.*0"):
        metric.update(torch.tensor([[1, 4]]), 0)
    with pytest.raises(ValueError, match="no tokens"):
        metric.compute()
