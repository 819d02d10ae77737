"""The plan of the start of `transform_codec.py`: places of latents, roles of channels."""

import torch
from torch import nn

from adaptok_hf import AdapTokConfig


class TransformCodecLayout:
    """Which latent is where and carries what, and which channels do what.

    Args:
        config: the tokenizer's.

    Attributes:
        place, time, groups, kind, code, zero, content (slice): the channels of each role; the one of `zero` is always 0, so
            that behind a layer norm it tells what the norm has subtracted.
        num_groups (int): groups of latents; one group has a latent at every patch.
        group, cell (torch.Tensor): (latents_per_block,) long, each latent's group, and the patch at which it is.
        parts (list[slice]): the principal components that each group carries.
        neighbours (list[slice]): the channels of `content` for the first components of the patches above, below, left
            and right, if there is room for them; empty if not.
        previous (dict[int, slice]): by group, the channels of `content` for the group's components one block before.

    Raises:
        ValueError: if the latents need more heads or channels than there are.
    """

    def __init__(self, config: AdapTokConfig):
        self.config = config
        width, m, g, heads = config.hidden_size, config.latents_per_block, config.grid_size, config.num_attention_heads
        self.num_groups = -(-m // g**2)
        self.head_dim = width // heads
        n_time = 2 * min(config.num_blocks, 3)
        n_place = 4 * max(1, min(g, 8, (self.head_dim - n_time - 1) // 4))  # sines and cosines of rows and columns
        starts = [0]
        for size in (n_place, n_time, self.num_groups, 1, config.codebook_dim - 1, 1):
            starts.append(starts[-1] + size)
        self.place, self.time, self.groups, self.kind, self.code, self.zero = map(slice, starts[:-1], starts[1:])
        self.content = slice(starts[-1], width)
        # Sizes by trial with 1, 2, 4 and 8 groups on wild/val: later components vary less, so that more of them share a
        # code, and with few groups the first must do more.
        self.parts, start = [], 0
        for group in range(self.num_groups):
            size = min(int((6 + 4 * group) / self.num_groups**0.5), config.codebook_dim - 1)
            self.parts.append(slice(start, start + size))
            start += size
        slots = heads * min(config.num_encoder_layers, config.num_decoder_layers)
        if self.num_groups > slots or self.content.start + start > width or starts[2] + 1 > self.head_dim:
            raise ValueError(
                f"{m} latents for {g**2} patches need {self.num_groups} heads of at least {starts[2] + 1} channels and a "
                f"hidden_size of at least {self.content.start + start}, got {slots} heads (those of encoder or decoder) "
                f"of {self.head_dim} channels and a hidden_size of {width}"
            )
        index = torch.arange(m)
        self.neighbours, self.previous = self._context(start)
        self.group, self.cell = index // g**2, scattered_order(g)[index % g**2]

    def _context(self, start: int) -> tuple[list[slice], dict[int, slice]]:
        """What the last decoder layer and the spare heads before it add, in the channels of content from `start` on."""
        heads, layers = self.config.num_attention_heads, self.config.num_decoder_layers
        room = self.config.hidden_size - self.content.start - start
        size = self.parts[min(4, self.num_groups - 1)].stop
        neighbours, previous = [], {}
        if heads < 4 or self.num_groups > heads * (layers - 1) or 4 * size > room:
            return neighbours, previous
        for _ in range(4):
            neighbours.append(slice(start, start + size))
            start += size
        if self.config.num_blocks > 1:
            for group in range(min(self.num_groups, heads * (layers - 1) - self.num_groups)):
                stop = start + self.parts[group].stop - self.parts[group].start
                if self.content.start + stop > self.config.hidden_size:
                    break
                previous[group] = slice(start, stop)
                start = stop
        return neighbours, previous

    def shift(self, rows: int, columns: int, blocks: int) -> torch.Tensor:
        """The matrix that turns the place and time channels of a position into those of another one, so far away."""
        g, num_blocks = self.config.grid_size, self.config.num_blocks
        matrices = []
        for distance, period, channels in (
            (rows, g, (self.place.stop - self.place.start) // 2),
            (columns, g, (self.place.stop - self.place.start) // 2),
            (blocks, num_blocks, self.time.stop - self.time.start),
        ):
            angles = distance * torch.linspace(torch.pi / period, torch.pi, channels // 2)
            sine, cosine = angles.sin().diag(), angles.cos().diag()
            matrices.append(torch.cat([torch.cat([cosine, sine], 1), torch.cat([-sine, cosine], 1)]))
        return torch.block_diag(*matrices)

    def slot(self, layers: nn.ModuleList, group: int) -> tuple[nn.Module, slice]:
        """The layer and the channels of the head that copies a group."""
        heads = self.config.num_attention_heads
        head = group % heads
        return layers[group // heads], slice(head * self.head_dim, (head + 1) * self.head_dim)

    def position_tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of patches and of latents, (blocks * patches, width) and (blocks * latents, width)."""
        config = self.config
        g, blocks = config.grid_size, config.num_blocks

        def waves(index, period, count):
            angles = index[:, None] * torch.linspace(torch.pi / period, torch.pi, count)
            return torch.cat([angles.sin(), angles.cos()], -1)

        def table(cell, group, kind):
            rows = torch.zeros(blocks, len(cell), config.hidden_size)
            size = (self.place.stop - self.place.start) // 4
            rows[..., self.place] = torch.cat([waves(cell // g, g, size), waves(cell % g, g, size)], -1)
            rows[..., self.time] = waves(torch.arange(blocks), blocks, (self.time.stop - self.time.start) // 2)[:, None]
            rows[..., self.kind] = kind
            if group is not None:
                rows[..., self.groups] = nn.functional.one_hot(group, self.num_groups).float()
            return rows.flatten(0, 1)

        return table(torch.arange(g**2), None, 1.0), table(self.cell, self.group, -1.0)


def scattered_order(grid_size: int) -> torch.Tensor:
    """The cells of a grid in an order in which each is as far as possible from all before it (cyclic distance)."""
    index = torch.arange(grid_size**2)
    points = torch.stack([index // grid_size, index % grid_size], -1)
    apart = (points[:, None] - points).abs()
    distance = torch.minimum(apart, grid_size - apart).square().sum(-1).float()
    order, nearest = [0], distance[0].clone()
    for _ in range(1, len(index)):
        order.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, distance[order[-1]])
    return torch.tensor(order)
