import dataclasses
import json
import warnings

import pytest
import torch
from builders.metric_networks import Identity

from adaptok_hf.metrics import (
    PROTOCOLS,
    FrechetVideoDistance,
    MetricResult,
    Protocol,
    real_floor,
    summarize_distance,
)

PROTOCOL = Protocol("test", data="noise", window="first", num_frames=4, image_size=8, task="reconstruction")


def gaussian(n, seed, width=4):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def fvd_of(real, fake):
    metric = FrechetVideoDistance(Identity(real.shape[1]))
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return metric


def test_named_protocols():
    assert set(PROTOCOLS) == {
        "adaptok_ucf_rfvd",
        "adaptok_ucf_gfvd",
        "adaptok_k600_fp64",
        "styleganv_fvd2048_16f",
        "adaptok_wild_val",
        "evatok_webvid_rfvd",
        "evatok_ucf_rfvd",
        "evatok_ucf_gfvd",
    }
    assert all(name == protocol.name for name, protocol in PROTOCOLS.items())
    assert len({protocol.hash for protocol in PROTOCOLS.values()}) == 8
    rfvd, k600 = PROTOCOLS["adaptok_ucf_rfvd"], PROTOCOLS["adaptok_k600_fp64"]
    assert (rfvd.num_real, rfvd.window, rfvd.num_frames, rfvd.feature_size) == (9537, "first", 16, None)
    assert (k600.num_fake, k600.num_condition_frames, k600.feature_size) == (50_000, 5, 64)
    with pytest.raises(dataclasses.FrozenInstanceError):
        rfvd.num_frames = 8


def test_protocol_hash_is_about_what_changes_a_number():
    assert dataclasses.replace(PROTOCOL, name="other", source="someone").hash == PROTOCOL.hash
    for change in ({"num_frames": 5}, {"ddof": 1}, {"feature_size": 64}, {"data": "others"}, {"num_fake": 7}):
        assert dataclasses.replace(PROTOCOL, **change).hash != PROTOCOL.hash
    # saved numbers carry it: it may not change by accident
    assert PROTOCOLS["adaptok_ucf_rfvd"].hash == "ab88544d3903"


def test_result_as_json():
    result = MetricResult("VideoPSNR", torch.inf, 30.0, torch.inf, 2, PROTOCOL)
    saved = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert saved["protocol_hash"] == PROTOCOL.hash and Protocol(**saved["protocol"]) == PROTOCOL
    assert (saved["value"], saved["low"], saved["high"], saved["infinite"]) == (None, 30, None, ["value", "high"])
    assert saved["weights_sha256"] is None and saved["floor"] is None and saved["note"] == ""


def test_results_need_two_videos():
    with pytest.raises(ValueError, match="2 fake .*1"):
        summarize_distance(fvd_of(gaussian(9, 0), gaussian(1, 1)), PROTOCOL)
    with pytest.raises(ValueError, match="9 real and 8 fake"):
        summarize_distance(fvd_of(gaussian(9, 0), gaussian(8, 1)), PROTOCOL, paired=True)


def test_another_number_of_videos_is_noted():
    protocol = dataclasses.replace(PROTOCOL, num_real=30, num_fake=50)
    metric = fvd_of(gaussian(30, 0), gaussian(20, 1))
    with pytest.warns(UserWarning, match="20 fake.*50"):
        assert summarize_distance(metric, protocol, resamples=2).note == "20 fake videos where test has 50"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert summarize_distance(metric, dataclasses.replace(protocol, num_fake=20), resamples=2).note == ""


def test_few_videos_are_noted():
    with pytest.warns(UserWarning, match="6 videos with 8 features"):
        result = summarize_distance(fvd_of(gaussian(6, 0, 8), gaussian(9, 1, 8)), PROTOCOL, resamples=2)
    assert result.note == "6 videos for 8 features: compare only at 6 videos, with the floor"


def test_distance_interval_holds_the_value_and_the_spread_of_new_samples():
    fresh = [float(fvd_of(gaussian(200, 2 * i), gaussian(200, 2 * i + 1) + 0.5).compute()) for i in range(100)]
    result = summarize_distance(fvd_of(gaussian(200, 0), gaussian(200, 1) + 0.5), PROTOCOL, resamples=200)
    assert result.low < result.value < result.high
    spread = torch.tensor(fresh).quantile(torch.tensor([0.025, 0.975]))
    assert result.high - result.low == pytest.approx(float(spread[1] - spread[0]), rel=0.35)


def test_pairs_are_resampled_together():
    real = gaussian(60, 0)
    fake = real + 0.05 * gaussian(60, 1)
    together, apart = (summarize_distance(fvd_of(real, fake), PROTOCOL, paired=paired) for paired in (True, False))
    assert together.value == apart.value and together.high - together.low < 0.2 * (apart.high - apart.low)


def test_floor_is_a_distance_between_real_videos():
    metric = FrechetVideoDistance(Identity(4))
    metric.update(gaussian(50, 0), real=True)
    metric.update(gaussian(40, 1) + 2, real=False)
    result = summarize_distance(metric, PROTOCOL, resamples=2)
    assert result.floor_num_videos == 25 and result.num_videos == 40
    assert 0 < result.floor < 0.3 * result.value and result.weights_sha256 is not None


def test_floor_shrinks_with_the_number_of_videos():
    real = gaussian(4000, 0)
    metric = FrechetVideoDistance(Identity(4))
    floors = [real_floor(metric, real, n)[0] for n in (10, 100, 1000)]
    assert floors[0] > 5 * floors[1] > 25 * floors[2] > 0
    assert real_floor(metric, real[:3], 10) == (None, None)


def test_result_is_named_by_its_network():
    result = summarize_distance(fvd_of(gaussian(30, 0), gaussian(30, 1)), PROTOCOL, resamples=2)
    assert isinstance(result, MetricResult) and result.metric == "FrechetVideoDistance (Identity)"
