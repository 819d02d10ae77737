import pytest

from adaptok_hf.evaluation import open_videos, sample_videos
from adaptok_hf.evaluation.clip_chunks import ClipChunks
from adaptok_hf.metrics import Protocol


def test_sample_videos(videos):
    source = open_videos(videos)
    assert [item.key for item in sample_videos(source, 2, 0).items] == ["v0.mp4", "v1.mp4"]
    more = [item.key for item in sample_videos(source, 12, 0).items]
    assert len(more) == 12 and {more.count(key) for key in set(more)} == {2, 3}
    assert len(sample_videos(source, None, 0).items) == 5
    # a video that stands there twice gives two different random windows
    protocol = Protocol("own", "test", "random", 12, 16, "reconstruction")
    chunks = ClipChunks(sample_videos(source, 10, 0), protocol, 10)
    starts = chunks.read(0).starts
    assert starts[:5] != starts[5:] and starts == chunks.read(0).starts
    with pytest.raises(ValueError, match="at least 1"):
        sample_videos(source, 0, 0)
    with pytest.raises(FileNotFoundError):
        open_videos(videos / "none")
    (videos.parent / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="expected a folder"):
        open_videos(videos.parent / "notes.txt")


def test_videos_of_official_lists(videos, tmp_path):
    (tmp_path / "classInd.txt").write_text("1 Archery\n")
    (tmp_path / "trainlist01.txt").write_text("Archery/v1.mp4 1\n")
    (tmp_path / "ucf101" / "Archery").mkdir(parents=True)
    for index in range(2):
        target = tmp_path / "ucf101" / "Archery" / f"v{index}.mp4"
        target.write_bytes((videos / f"v{index}.mp4").read_bytes())
    assert [item.key for item in open_videos(tmp_path / "ucf101", ucf101_splits=tmp_path).items] == ["Archery/v1.mp4"]
    (tmp_path / "list.csv").write_text("label,youtube_id,time_start,time_end\narchery,v0,0,1\n")
    source = open_videos(tmp_path / "ucf101", kinetics_csv=tmp_path / "list.csv")
    assert [item.key for item in source.items] == ["Archery/v0.mp4"] and source.class_names == ["archery"]
    with pytest.raises(ValueError, match="list.csv"):
        open_videos(tmp_path / "ucf101", tmp_path, tmp_path / "list.csv")
