"""How a clip is cut into blocks and patches, for the configurations of all models that see pixels."""


class BlockGridMixin:
    """Counts of blocks and patches that follow from a configuration's sizes."""

    num_frames: int
    tubelet_size: int
    image_size: int
    patch_size: int

    def check_multiples(self, *pairs: tuple[str, str]) -> None:
        """Raise `ValueError` unless the first entry of each pair is a positive multiple of the second."""
        for whole, part in pairs:
            if getattr(self, part) < 1 or getattr(self, whole) < 1 or getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"{whole}={getattr(self, whole)} must be a positive multiple of {part}={getattr(self, part)}"
                )

    @property
    def num_blocks(self) -> int:
        """K: temporal blocks of a clip."""
        return self.num_frames // self.tubelet_size

    @property
    def grid_size(self) -> int:
        """Patches along one side of a frame."""
        return self.image_size // self.patch_size

    @property
    def patches_per_block(self) -> int:
        return self.grid_size**2
