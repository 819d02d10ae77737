import logging
import os
import sys

import pytest
from builders.video_files import write_mp4

from adaptok_hf.data import kinetics, manifest, ucf101, video_folder


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def labelled(files):
    return {item.key: (files.class_names[item.label] if item.label >= 0 else None) for item in files.items}


def test_folders_with_and_without_classes(tmp_path):
    touch(tmp_path / "run" / "b.mp4", tmp_path / "run" / "deep" / "a.AVI", tmp_path / "jump" / "c.webm")
    touch(tmp_path / "loose.gif", tmp_path / "notes.txt", tmp_path / "text only" / "readme.md")
    files = video_folder(tmp_path)
    assert labelled(files) == {"jump/c.webm": "jump", "loose.gif": None, "run/b.mp4": "run", "run/deep/a.AVI": "run"}
    assert [item.key for item in files.items] == sorted(labelled(files)) and files.class_names == ["jump", "run"]
    assert files.num_shards == 4 and files.read_shard(2) == [files.items[2]]
    assert files.items[2].video == str(tmp_path / "run" / "b.mp4")

    given = video_folder(tmp_path, class_names=["walk", "run", "jump"])
    assert labelled(given) == labelled(files) and {item.label for item in given.items} == {-1, 1, 2}
    with pytest.raises(ValueError, match="'run'.* 2 "):
        video_folder(tmp_path, class_names=["walk", "jump"])
    with pytest.raises(ValueError, match="text only"):
        video_folder(tmp_path / "text only")
    with pytest.raises(ValueError, match="missing"):
        video_folder(tmp_path / "missing")


def test_manifests(tmp_path):
    path = tmp_path / "manifest.csv"
    path.write_text("path,set,label\nx/1.mp4,figures,run\nx/2.mp4,figures,jump\ny/3.mp4,wild,\n")
    files = manifest(path)
    assert labelled(files) == {"x/1.mp4": "run", "x/2.mp4": "jump", "y/3.mp4": None}
    assert files.class_names == ["jump", "run"] and files.items[0].video == str(tmp_path / "x" / "1.mp4")
    path.write_text("file,label\nx/1.mp4,run\n")
    with pytest.raises(ValueError, match="'file'"):
        manifest(path)


@pytest.fixture
def ucf(tmp_path):
    """Two classes; the official files list 3 videos for training and 1 for testing."""
    lists, videos = tmp_path / "ucfTrainTestlist", tmp_path / "UCF-101"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Zumba\n2 Archery\n\n")
    train = ["Zumba/v_Zumba_g08_c01.avi", "Archery/v_Archery_g08_c01.avi", "Archery/v_Archery_g09_c01.avi"]
    (lists / "trainlist01.txt").write_text("".join(f"{key} {1 if 'Z' in key else 2}\r\n" for key in train))
    (lists / "testlist01.txt").write_text("Zumba/v_Zumba_g01_c01.avi\n")
    touch(*(videos / key for key in train), videos / "Zumba" / "v_Zumba_g01_c01.avi", videos / "extra" / "x.avi")
    return videos, lists, train


def test_ucf101(ucf):
    videos, lists, train = ucf
    files = ucf101(videos, lists)
    assert [item.key for item in files.items] == train
    assert [item.label for item in files.items] == [0, 1, 1]  # in the order of classInd.txt, from 0
    test = ucf101(videos, lists, "test")
    assert labelled(test) == {"Zumba/v_Zumba_g01_c01.avi": "Zumba"} and test.class_names == files.class_names
    with pytest.raises(FileNotFoundError, match="vallist01"):
        ucf101(videos, lists, "val")
    (videos / train[2]).unlink()
    with pytest.raises(ValueError, match="1 of 3 .*g09_c01"):
        ucf101(videos, lists)
    (lists / "trainlist01.txt").write_text("Yoga/v_Yoga_g08_c01.avi 3\n")
    with pytest.raises(ValueError, match="'Yoga/v_Yoga_g08_c01.avi'"):
        ucf101(videos, lists)
    (lists / "classInd.txt").write_text("Zumba\n")
    with pytest.raises(ValueError, match="classInd"):
        ucf101(videos, lists)


def test_kinetics(tmp_path, caplog):
    path = tmp_path / "train.csv"
    path.write_text(
        "label,youtube_id,time_start,time_end,split\n"
        "zumba,-3B32lodo2M,59,69,train\ntai chi,a_000001_bc,0,10,train\n"
        "zumba,gone0000000,5,15,train\nyoga,abcdefghijk,7,17,train\n"
    )
    videos = tmp_path / "videos"
    touch(videos / "zumba" / "-3B32lodo2M_000059_000069.mp4", videos / "a_000001_bc_000000_000010.mp4")
    touch(videos / "abcdefghijk.mkv", videos / "not_listed.mp4")
    with caplog.at_level(logging.WARNING, "adaptok_hf.data.sources"):
        files = kinetics(path, videos)
    assert labelled(files) == {
        "zumba/-3B32lodo2M_000059_000069.mp4": "zumba",
        "a_000001_bc_000000_000010.mp4": "tai chi",
        "abcdefghijk.mkv": "yoga",
    }
    assert files.class_names == ["tai chi", "yoga", "zumba"]
    assert "1 of 4 listed videos are not in" in caplog.text and "gone0000000_000005_000015" in caplog.text
    names = ["a", *files.class_names]
    assert [item.label for item in kinetics(path, videos, names).items] == [3, 1, 2]
    with pytest.raises(ValueError, match="'yoga'"):
        kinetics(path, videos, ["tai chi", "zumba"])
    touch(tmp_path / "other" / "x.mp4")
    with pytest.raises(ValueError, match="other.* 4 .*-3B32lodo2M_000059_000069.mp4"):
        kinetics(path, tmp_path / "other")
    path.write_text("label,id\nzumba,x\n")
    with pytest.raises(ValueError, match="columns"):
        kinetics(path, videos)


@pytest.mark.parametrize("suffix", "mp4 M4V mpg mpeg wmv flv MTS m2ts 3gp ogv ts m2t mxf y4m vob 265 gif".split())
def test_suffixes_of_videos(tmp_path, suffix):
    touch(tmp_path / f"a.{suffix}")
    assert [item.key for item in video_folder(tmp_path).items] == [f"a.{suffix}"]


def test_unknown_suffixes_are_known_by_their_first_bytes(tmp_path, caplog):
    video = write_mp4(tmp_path / "a.mp4").read_bytes()
    for name in ("v_001", "b.video", "half.mp4.part"):
        (tmp_path / name).write_bytes(video)
    (tmp_path / "song.m4a").write_bytes(video[:8] + b"M4A " + video[12:])
    assert [item.key for item in video_folder(tmp_path).items] == ["a.mp4", "b.video", "v_001"]
    assert "2 no video (half.mp4.part, song.m4a)" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_utf8_become_escapes(tmp_path):
    folder = tmp_path / os.fsdecode(b"yoga\xff")
    touch(folder / os.fsdecode(b"a\xfe.mp4"))
    files = video_folder(tmp_path)
    assert labelled(files) == {r"yoga\udcff/a\udcfe.mp4": r"yoga\udcff"}
    assert os.path.exists(files.items[0].video)


def test_what_is_left_out_is_named(tmp_path, caplog):
    touch(tmp_path / "a.mp4", tmp_path / "notes.txt", tmp_path / "._a.mp4", tmp_path / ".cache" / "b.mp4")
    (tmp_path / "gone.mp4").symlink_to("nowhere.mp4")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "link.mp4").symlink_to("a.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert [item.key for item in video_folder(tmp_path).items] == ["a.mp4", "link.mp4"]
    for words in ("6 entries", "2 hidden (._a.mp4, .cache)", "broken link (gone.mp4)", "not a file (pipe.mp4)", "notes.txt",
                  "(loop)"):  # fmt: skip
        assert words in caplog.text
    (tmp_path / "none").mkdir()
    touch(tmp_path / "none" / "._x.mp4")
    with pytest.raises(ValueError, match="none: .*hidden.*_x.mp4"):
        video_folder(tmp_path / "none")


def test_byte_order_marks(tmp_path, ucf):
    videos, lists, train = ucf
    for name, read in (
        ("manifest.csv", lambda path: manifest(path).items[0].key),
        ("kinetics.csv", lambda path: kinetics(path, videos).items[0].key),
    ):
        path = tmp_path / name
        path.write_text(f"path,label,youtube_id,time_start,time_end\n{train[0]},x,v_Zumba_g08_c01,0,10\n", "utf-8-sig")
        assert read(path) == train[0]
        path.write_text(path.read_text("utf-8-sig"), "utf-16")
        with pytest.raises(ValueError, match=f"{name}: .*UTF-8.*line 1 "):
            read(path)
    (lists / "classInd.txt").write_text("1 Zumba\n2 Archery\n", "utf-8-sig")
    assert ucf101(videos, lists).class_names == ["Zumba", "Archery"]


def test_empty_and_odd_values_name_their_line(tmp_path):
    touch(tmp_path / "videos" / "a_000001_000011.mp4", tmp_path / "videos" / "b.mp4")
    path, head = tmp_path / "list.csv", "label,youtube_id,time_start,time_end\nrun,a,1,11\n"
    path.write_text(f"{head}run,b,,\nrun,c,,\n")
    assert [item.key for item in kinetics(path, tmp_path / "videos").items] == ["a_000001_000011.mp4", "b.mp4"]
    for row, words in (
        ("run,b,x,2", "'x'"),
        ("run,b,inf,2", "'inf'"),
        ("run,b,1,nan", "'nan'"),
        ("run,,1,2", "youtube_id"),
    ):
        path.write_text(f"{head}{row}\n")
        with pytest.raises(ValueError, match=f"list.csv: line 3.*{words}"):
            kinetics(path, tmp_path / "videos")
    path.write_text("path,label\na.mp4,run\n,jump\n")
    with pytest.raises(ValueError, match="list.csv: line 3"):
        manifest(path)
    path.write_text("path,label\na.mp4\n")  # a short row
    assert labelled(manifest(path)) == {"a.mp4": None}
