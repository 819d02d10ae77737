"""Clips from video files."""

from .video_folder import VideoFolderClips

__all__ = ["VideoFolderClips"]
