import dataclasses

from adaptok_hf.evaluation.summaries import summarize_clips
from adaptok_hf.metrics import PROTOCOLS, Protocol


def test_intervals_know_which_clips_are_of_one_video():
    protocol = Protocol("own", "test", "all", 12, 16, "reconstruction")
    values = [1.0] * 10 + [3.0] * 10
    alone = summarize_clips("m", values, [str(i) for i in range(20)], protocol)
    grouped = summarize_clips("m", values, ["a"] * 10 + ["b"] * 10, protocol)
    assert alone.value == grouped.value == 2 and alone.num_videos == 20
    assert (grouped.low, grouped.high) == (1, 3) and 1.2 < alone.low < alone.high < 2.8
    one = summarize_clips("m", [1.0, 2.0], ["a", "a"], protocol)
    assert one.low is None and "no interval" in one.note


def test_protocol_without_a_batch_keeps_its_hash():
    protocol = PROTOCOLS["adaptok_ucf_rfvd"]
    assert dataclasses.replace(protocol, allocation_batch=64).hash != protocol.hash == "ab88544d3903"
