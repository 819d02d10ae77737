"""Videos of a `datasets` data set, streamed."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .video_item import NO_LABEL, VideoItem

if TYPE_CHECKING:
    import datasets


# Columns that hold videos, where the data set does not say so: by these names, paths, bytes, or records of both.
VIDEO_COLUMNS = ("video", "mp4", "webm", "avi", "mov", "mkv", "clip", "file")


class HubVideos:
    """A data set with a column of videos. The shards (files) of a streaming one are the shards here: they are read one
    after the other, each in its order, and shared out as wholes as long as there are as many of them as readers.

    Args:
        dataset: a `datasets.IterableDataset` that was not shuffled by a buffer, not split by node and not formatted
            (`ClipStream` does all that itself); or a `datasets.Dataset`, which is one shard.
        label_column: a column of class labels or integers; by default the only one of class labels.
            `json.label` is the entry `label` of the column `json`: how tar shards of `write_shards.py` stream.
        key_column: names a video in messages, such as `json.key`; by default shard and position.
        video_column: of videos, paths or the bytes of files; by default the only one of videos, or a name of
            `VIDEO_COLUMNS`.

    Raises:
        ValueError: if the data set has no column of videos or more than one, or not the named columns.
    """

    def __init__(
        self,
        dataset: "datasets.IterableDataset | datasets.Dataset",
        label_column: str | None = None,
        key_column: str | None = None,
        video_column: str | None = None,
    ):
        import datasets

        if isinstance(dataset, dict):
            raise ValueError(
                f"expected one split, got a data set of {sorted(dataset)}: give dataset[{next(iter(dataset))!r}]"
            )
        if isinstance(dataset, datasets.Dataset):
            dataset = dataset.to_iterable_dataset()
        features = dataset.features or {}
        for column in (label_column, key_column, video_column):
            if column is not None and column.split(".")[0] not in features:
                raise ValueError(f"the data set has no column {column!r}; there are {sorted(features)}")
        videos = [name for name, feature in features.items() if isinstance(feature, datasets.Video)]
        videos = [video_column] if video_column else videos or [name for name in VIDEO_COLUMNS if name in features]
        if len(videos) != 1:
            raise ValueError(f"expected a data set with one column of videos; {videos} of {sorted(features)} are")
        if label_column is None:
            labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
            label_column = labels[0] if len(labels) == 1 else None
        # `decode=False` gives the file instead of a decoder, and needs no torchcodec
        self.dataset = dataset.cast_column(videos[0], datasets.Video(decode=False))
        self.video_column, self.label_column, self.key_column = videos[0], label_column, key_column
        self.class_names = list(getattr(features.get(label_column), "names", None) or ())

    @property
    def num_shards(self) -> int:
        return self.dataset.num_shards

    def read_shard(self, shard: int) -> Iterator[VideoItem]:
        # Inside a worker of a DataLoader, iterating over the data set itself would split it a second time: `iter` does not.
        rows = self.dataset.shard(self.num_shards, shard).iter(batch_size=1)
        for index, row in enumerate(rows):
            video = row[self.video_column][0] or {}
            key = f"shard {shard}, video {index}" if self.key_column is None else str(_entry(row, self.key_column))
            label = None if self.label_column is None else _entry(row, self.label_column)
            try:
                label = NO_LABEL if label is None else int(label)
            except ValueError as error:
                raise ValueError(
                    f"{self.label_column}={label!r} is no integer: class_encode_column makes classes of names"
                ) from error
            yield VideoItem(key, _content(video), label)


def hub_videos(
    path: str,
    split: str,
    *,
    label_column: str | None = None,
    key_column: str | None = None,
    video_column: str | None = None,
    **load_options: Any,
) -> HubVideos:
    """Return the videos of a data set on the Hub, or of files.

    Files: `hub_videos("webdataset", "train", data_files="*.tar")`.

    Args:
        path, split, load_options: as `datasets.load_dataset`.
        label_column, key_column, video_column: see `HubVideos`.
    """
    import datasets

    dataset = datasets.load_dataset(path, split=split, streaming=True, **load_options)
    return HubVideos(dataset, label_column, key_column, video_column)


def _entry(row: dict[str, list], column: str) -> Any:
    name, *inner = column.split(".")
    value = row[name][0]
    for name in inner:
        value = value[name]
    return value


def _content(video: dict[str, Any]) -> str | bytes:
    """Return the bytes of a video, or the path of a local file; empty where the row has neither."""
    path, content = video.get("path"), video.get("bytes")
    if content is None and path and "://" in path:
        import fsspec

        with fsspec.open(path, "rb") as file:
            content = file.read()
    return path if content is None and path else content or b""
