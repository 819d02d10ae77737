"""The plan of `transform_codec.py`: places of latents, roles of channels."""

import torch
from torch import nn

from ...models.configuration_adaptok import AdapTokConfig


class TransformCodecLayout:
    """Which latent is where and carries what, and which channels do what.

    Args:
        config: the tokenizer's.
        coarse: whether there is a coarse group, of a latent for every 2 x 2 patches, before the others.

    Attributes:
        place, time, groups, kind, code, zero, content (slice): the channels of each role; the one of `zero` is always 0, so
            that after a layer norm it holds what the norm has subtracted.
        num_groups (int): groups of latents; one group has a latent at every patch, a coarse one at every 2 x 2 patches.
        coarse (bool): whether the first group is a coarse one.
        group, place_of (torch.Tensor): (latents_per_block,) long, each latent's group, and (latents_per_block, 2), the row
            and column at which it is, in patches; between patches for coarse ones.
        components (list[slice]): the principal components that each group carries. A coarse group carries the means of the
            first ones, which its patches fall back on where later groups' latents were dropped.
        slots (list[int]): by group, which head it has, counted over all layers. Where patches fall back on what the coarse
            group carries, that has been copied in the first layer.
        fallback (slice): channels of patches for what the coarse group carries; empty without one.
        writes (list[slice]): the channels of patches for what each group carries, in `fallback` or in `content`.
        neighbors (list[slice]): the channels of `content` for the first components of the patches above, below, left
            and right, if there is room for them; empty if not.
        previous (dict[int, slice]): by group, the channels of `content` for the group's components one block before.

    Raises:
        ValueError: if the latents need more heads or channels than there are.
    """

    def __init__(self, config: AdapTokConfig, coarse: bool = False):
        self.config, self.coarse = config, coarse
        width, m, g, heads = config.hidden_size, config.latents_per_block, config.grid_size, config.num_attention_heads
        count = (g // 2) ** 2 if coarse else 0
        if coarse and (g % 2 or m <= count):
            raise ValueError(
                f"coarse latents need a grid of patches that halves, and more than {count} latents; got {g} x {g} patches "
                f"and {m} latents"
            )
        fine = -(-(m - count) // g**2)
        self.num_groups = fine + coarse
        self.head_dim = width // heads
        n_time = 2 * min(config.num_blocks, 3)
        n_place = 4 * max(1, min(g, 8, (self.head_dim - n_time - 1) // 4))  # sines and cosines of rows and columns
        starts = [0]
        for size in (n_place, n_time, self.num_groups, 1, config.codebook_dim - 1, 1):
            starts.append(starts[-1] + size)
        self.place, self.time, self.groups, self.kind, self.code, self.zero = map(slice, starts[:-1], starts[1:])
        self.content = slice(starts[-1], width)
        # Sizes by trial with 1, 2, 4 and 8 groups on wild/val: later components vary less, so that more of them share a
        # code, and with few groups the first must do more. A first group below 3 costs much at small budgets.
        self.components, start = [], 0
        for group in range(fine):
            size = min(max(3, int((6 + 4 * group) / fine**0.5)), config.codebook_dim - 1)
            self.components.append(slice(start, start + size))
            start += size
        size = min(start, config.codebook_dim - 1) if self.coarse else 0
        self.fallback = slice(self.content.start + start, self.content.start + start + size)
        self.writes = [
            slice(self.content.start + chunk.start, self.content.start + chunk.stop) for chunk in self.components
        ]
        if self.coarse:
            self.components.insert(0, slice(0, size))
            self.writes.insert(0, self.fallback)
            start += size
        slots = range(heads * min(config.num_encoder_layers, config.num_decoder_layers))
        self.slots = self._assign(slots, size)
        channels = starts[2] + 1 + self.coarse * self.num_groups  # of a query
        if self.slots is None or self.content.start + start > width or channels > self.head_dim:
            raise ValueError(
                f"{m} latents for {g**2} patches need {self.num_groups} heads of at least {channels} channels and a "
                f"hidden_size of at least {self.content.start + start}, got {len(slots)} heads (those of encoder or "
                f"decoder) of {self.head_dim} channels and a hidden_size of {width}"
            )
        self.neighbors, self.previous = self._context(start)
        cells, index = scattered_order(g), torch.arange(m - count)
        self.group, self.place_of = index // g**2, torch.stack([cells // g, cells % g], 1).float()[index % g**2]
        if coarse:
            regions = scattered_order(g // 2)
            places = torch.stack([regions // (g // 2), regions % (g // 2)], 1) * 2 + 0.5
            self.group = torch.cat([torch.zeros(count, dtype=torch.long), self.group + 1])
            self.place_of = torch.cat([places, self.place_of])

    def _assign(self, slots: range, fallback: int) -> list[int] | None:
        """Return a slot for each group, the first for the first; `None` if they do not suffice."""
        heads = self.config.num_attention_heads
        taken, free = [0], [slot for slot in slots if slot]
        for chunk in self.components[1:]:
            later = [slot for slot in free if slot >= heads] if chunk.start < fallback else free
            if not later:
                return None
            taken.append(later[0])
            free.remove(later[0])
        return taken

    def _context(self, start: int) -> tuple[list[slice], dict[int, slice]]:
        """Return `neighbors` and `previous`, in the channels of content from `start` on."""
        heads, layers = self.config.num_attention_heads, self.config.num_decoder_layers
        room = self.config.hidden_size - self.content.start - start
        size = self.components[min(4 + self.coarse, self.num_groups - 1)].stop
        neighbors, previous = [], {}
        self.spare_slots = [slot for slot in range(heads * (layers - 1)) if slot not in self.slots]
        if heads < 4 or max(self.slots) >= heads * (layers - 1) or 4 * size > room:
            return neighbors, previous
        for _ in range(4):
            neighbors.append(slice(start, start + size))
            start += size
        if self.config.num_blocks > 1:
            for group in range(self.coarse, min(self.num_groups, self.coarse + len(self.spare_slots))):
                stop = start + self.components[group].stop - self.components[group].start
                if self.content.start + stop > self.config.hidden_size:
                    break
                previous[group] = slice(start, stop)
                start = stop
        return neighbors, previous

    def shift(self, rows: int, columns: int, blocks: int) -> torch.Tensor:
        """Return the matrix that turns the place and time channels of a position into those of another one, so far away."""
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

    def head(self, layers: nn.ModuleList, slot: int) -> tuple[nn.Module, slice]:
        """Return the layer and the channels of a head, counted over all layers."""
        heads = self.config.num_attention_heads
        head = slot % heads
        return layers[slot // heads], slice(head * self.head_dim, (head + 1) * self.head_dim)

    def position_tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows of patches and of latents, (blocks * patches, width) and (blocks * latents, width)."""
        config = self.config
        g, blocks = config.grid_size, config.num_blocks

        def waves(index, period, count):
            angles = index[:, None] * torch.linspace(torch.pi / period, torch.pi, count)
            return torch.cat([angles.sin(), angles.cos()], -1)

        def table(places, group, kind):
            rows = torch.zeros(blocks, len(places), config.hidden_size)
            size = (self.place.stop - self.place.start) // 4
            rows[..., self.place] = torch.cat([waves(places[:, 0], g, size), waves(places[:, 1], g, size)], -1)
            rows[..., self.time] = waves(torch.arange(blocks), blocks, (self.time.stop - self.time.start) // 2)[:, None]
            rows[..., self.kind] = kind
            if group is not None:
                rows[..., self.groups] = nn.functional.one_hot(group, self.num_groups).float()
            return rows.flatten(0, 1)

        patches = torch.arange(g**2)
        return (
            table(torch.stack([patches // g, patches % g], 1), None, 1.0),
            table(self.place_of, self.group, -1.0),
        )


def scattered_order(grid_size: int) -> torch.Tensor:
    """Return the cells of a grid in an order in which each is as far as possible from all before it (cyclic distance)."""
    index = torch.arange(grid_size**2)
    points = torch.stack([index // grid_size, index % grid_size], -1)
    apart = (points[:, None] - points).abs()
    distance = torch.minimum(apart, grid_size - apart).square().sum(-1).float()
    order, nearest = [0], distance[0].clone()
    for _ in range(1, len(index)):
        order.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, distance[order[-1]])
    return torch.tensor(order)
