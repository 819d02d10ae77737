"""Clips from video files, folders, lists, tar shards and Hub data sets."""

from .clip_stream import ClipStream, TooManySkippedVideos
from .hub_videos import HubVideos, hub_videos
from .sources import VideoFiles, kinetics, manifest, ucf101, video_folder
from .splits import check_no_leakage, kinetics_group, read_split, split_by_group, ucf101_group, write_split
from .tar_shards import TarShards
from .video_folder import VideoFolderClips
from .video_item import VideoItem
from .windows import all_windows, first_window, random_window

__all__ = [
    "ClipStream",
    "HubVideos",
    "TarShards",
    "TooManySkippedVideos",
    "VideoFiles",
    "VideoFolderClips",
    "VideoItem",
    "all_windows",
    "check_no_leakage",
    "first_window",
    "hub_videos",
    "kinetics",
    "kinetics_group",
    "manifest",
    "random_window",
    "read_split",
    "split_by_group",
    "ucf101",
    "ucf101_group",
    "video_folder",
    "write_split",
]
