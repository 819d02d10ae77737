"""Clips from video files, folders, lists, tar shards and Hub data sets; batches of tokens."""

from .clip_stream import ClipStream, TooManySkippedVideos
from .folder_clips import VideoFolderClips
from .hub_datasets import HubVideos, hub_videos
from .sources import VideoFiles, kinetics, manifest, ucf101, video_folder
from .tar_shards import TarShards
from .token_collator import TokenCollator
from .video_item import VideoItem
from .windows import all_windows, first_window, random_window

__all__ = [
    "ClipStream",
    "HubVideos",
    "TarShards",
    "TokenCollator",
    "TooManySkippedVideos",
    "VideoFiles",
    "VideoFolderClips",
    "VideoItem",
    "all_windows",
    "first_window",
    "hub_videos",
    "kinetics",
    "manifest",
    "random_window",
    "ucf101",
    "video_folder",
]
