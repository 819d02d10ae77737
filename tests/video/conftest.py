"""What tests of videos share."""

import pytest

from adaptok_hf.video.video_processing_adaptok import AdapTokVideoProcessor


@pytest.fixture
def processor():
    return AdapTokVideoProcessor(image_size=32, num_frames=8, tubelet_size=4)
