"""The rows that `tokenize_dataset.py` wrote, and the order in which training reads them.

Rows stay on disk (`datasets` maps its cache into memory); what is held is a number for each row and one for each video.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from datasets import Dataset, Features, Value, concatenate_datasets, load_dataset
from torch.utils.data import DataLoader, Sampler, Subset

from ...models.modeling_adaptok_ar import AdapTokARForCausalLM

# what `dataset.json` says of the tokens, next to their classes
ENTRIES = ("model_hash", "codebook_size", "num_blocks", "latents_per_block")
COLUMNS = ("codes", "token_counts", "label", "condition_codes")


def read_description(folders: Sequence[str], labeled: bool) -> dict:
    """Return what the `dataset.json` of all folders have in common.

    Args:
        labeled: whether the labels count, so that all folders must have the same classes.

    Raises:
        ValueError: for a folder without shards, or folders that cannot be used together.
    """
    descriptions = []
    for folder in map(Path, folders):
        if not (folder / "dataset.json").is_file() or not any(folder.glob("*.parquet")):
            raise ValueError(f"{folder} holds no tokens: no *.parquet and dataset.json of tokenize_dataset.py")
        descriptions.append(json.loads((folder / "dataset.json").read_text()))
        for name in ENTRIES + (("class_names",) if labeled else ()):
            if descriptions[-1][name] != descriptions[0][name]:
                raise ValueError(f"{folder} has another {name} than {folders[0]}; they cannot be used together")
    names = descriptions[0]["class_names"] if labeled else []
    return {name: descriptions[0][name] for name in ENTRIES} | {"class_names": names}


class TokenRows:
    """The rows of some folders.

    Args:
        folders: each with the Parquet shards of a data set.

    Raises:
        ValueError: if there are no rows.
    """

    def __init__(self, folders: Sequence[str]):
        tables, videos = [], []
        self.num_videos = 0
        for folder in map(Path, folders):
            shards = sorted(map(str, folder.glob("*.parquet")))
            # not as classes, which may be other ones in each folder
            features = Features(Features.from_arrow_schema(pq.read_schema(shards[0])) | {"label": Value("int64")})
            table = load_dataset("parquet", data_files=shards, split="train", features=features)
            for chunk in (sources := table.data.column("source").dictionary_encode().unify_dictionaries()).chunks:
                videos.append(chunk.indices.to_numpy().astype(np.int64) + self.num_videos)
            self.num_videos += len(sources.chunk(0).dictionary) if sources.num_chunks else 0
            tables.append(table)
        rows = concatenate_datasets(tables)
        self.video_of_row = np.concatenate(videos)
        if not len(rows):
            raise ValueError(f"{', '.join(folders)}: the shards have no rows")
        self.largest_label = pc.max(rows.data.column("label")).as_py()
        self.has_condition = "condition_codes" in rows.column_names
        self.rows: Dataset = rows.select_columns([name for name in rows.column_names if name in COLUMNS])
        self.rows.set_format("torch")

    def __len__(self) -> int:
        return len(self.rows)

    def check(self, model: AdapTokARForCausalLM) -> None:
        """Raise `ValueError` if the generator cannot learn from the rows."""
        config = model.config
        if config.is_class_conditional and self.largest_label >= config.num_classes:
            raise ValueError(f"num_classes={config.num_classes}, but the labels go up to {self.largest_label}")
        if not config.is_class_conditional and not self.has_condition:
            raise ValueError("frame prediction needs condition_codes; make the tokens with --num_condition_frames")

    def training_batches(
        self, batch_size: int, steps: range, *, seed: int, rank: int, world_size: int, num_workers: int
    ) -> DataLoader:
        """Return a process' share of the batch of each step: columns of `batch_size / world_size` rows."""
        sampler = WindowSampler(self.video_of_row, batch_size, steps, seed=seed, rank=rank, world_size=world_size)
        return DataLoader(self.rows, batch_sampler=sampler, num_workers=num_workers)

    def validation_batches(self, batch_size: int, most: int, *, rank: int, world_size: int) -> DataLoader:
        """Return a process' share of at most `most` rows, evenly spread over all; the same in every run."""
        chosen = np.linspace(0, len(self) - 1, min(most, len(self))).round().astype(int)
        return DataLoader(Subset(self.rows, chosen[rank::world_size].tolist()), batch_size=batch_size)


class WindowSampler(Sampler[list[int]]):
    """In each epoch one random window of each video, in random order; a batch may reach into the next epoch.

    So long videos, which have more windows, do not crowd out short ones. What a step reads depends on seed and step only.

    Args:
        video_of_row: (rows,) number of each row's video, from 0 without gaps.
        batch_size: rows of a step, on all processes together.
        steps: of the run, counted from 0.
        rank, world_size: this process' share.
    """

    def __init__(
        self, video_of_row: np.ndarray, batch_size: int, steps: range, *, seed: int, rank: int = 0, world_size: int = 1
    ):
        self.batch_size, self.steps, self.seed = batch_size, steps, seed
        self.rank, self.world_size = rank, world_size
        self.rows = np.argsort(video_of_row, kind="stable")
        self.ends = np.bincount(video_of_row).cumsum()
        self.starts = np.concatenate([[0], self.ends[:-1]])

    def rows_of_epoch(self, epoch: int) -> np.ndarray:
        """Return a row of each video, (videos,)."""
        rng = np.random.default_rng([self.seed, epoch])
        videos = rng.permutation(len(self.ends))
        return self.rows[rng.integers(self.starts[videos], self.ends[videos])]

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        epoch, rows = -1, self.rows
        for step in self.steps:
            batch = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // len(self.ends) != epoch:
                    epoch = position // len(self.ends)
                    rows = self.rows_of_epoch(epoch)
                batch.append(int(rows[position % len(self.ends)]))
            yield batch[self.rank :: self.world_size]


def model_inputs(model: AdapTokARForCausalLM, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Turn columns of some rows into arguments of the generator."""
    config = model.config
    shape = (-1, config.num_blocks, config.latents_per_block)
    if config.is_class_conditional:
        condition = {"class_labels": batch["label"]}
    else:
        condition = {"condition_codes": batch["condition_codes"].reshape(shape)}
    return model.build_inputs(batch["codes"].reshape(shape), batch["token_counts"], **condition)
