"""What a generator reads: a condition, then the codes of a clip."""

from collections.abc import Sequence

import torch
from torch import nn

from .attention_masks import kept_tokens
from .token_layout import pack_clips, pack_with_lengths


class SequenceInputs:
    """Builds the inputs of a generator with its `config`, on its `device`."""

    def build_prompt(
        self,
        class_labels: torch.Tensor | Sequence[int] | None = None,
        condition_codes: torch.Tensor | None = None,
    ) -> torch.LongTensor:
        """What stands in front of a sequence.

        Args:
            class_labels: (batch,) class ids; a negative one means no class.
            condition_codes: (batch, blocks, latents_per_block) long, the codes of the condition clip (the given frames,
                the last of them repeated); the first `num_condition_codes` are used. With `condition_counts`, so many of
                each block are used, and later blocks may be missing.

        Returns:
            (batch, prompt_length) long.

        Raises:
            ValueError: for the wrong kind of condition, a class that does not exist, or codes that do not fit.
        """
        config = self.config
        wanted, other = (class_labels, condition_codes) if config.is_class_conditional else (condition_codes, class_labels)
        if wanted is None or other is not None:
            kind = "class_labels" if config.is_class_conditional else "condition_codes"
            raise ValueError(f"this generator takes {kind}, and nothing else, as its condition")
        if config.is_class_conditional:
            if isinstance(class_labels, str | list | tuple) and any(isinstance(label, str) for label in class_labels):
                raise ValueError(f"class_labels={class_labels!r}, expected ids; the pipeline's generate takes names")
            labels = torch.as_tensor(class_labels, dtype=torch.long, device=self.device).reshape(-1)
            if len(labels) and int(labels.max()) >= config.num_classes:
                raise ValueError(f"class ids must lie in 0..{config.num_classes - 1}, got {int(labels.max())}")
            ids = torch.where(labels < 0, config.null_class_token_id, config.first_class_token_id + labels)
            return ids[:, None]
        return self._condition_prompt(condition_codes.to(self.device))

    def _condition_prompt(self, codes: torch.Tensor) -> torch.LongTensor:
        config, counts = self.config, self.config.condition_counts
        least, most = len(counts or range(config.num_blocks)), config.num_blocks
        if codes.ndim != 3 or not least <= codes.shape[1] <= most or codes.shape[2] != config.latents_per_block:
            blocks = f"{least}..{most}" if counts else most
            raise ValueError(
                f"condition_codes has shape {tuple(codes.shape)}, expected (batch, {blocks}, {config.latents_per_block})"
            )
        if counts:
            counts = torch.tensor(counts, device=codes.device).expand(len(codes), -1)
            kept = kept_tokens(counts, config.latents_per_block)
            codes = codes[:, : counts.shape[1]].where(kept, 0)  # the others may be anything
        if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < config.codebook_size:
            raise ValueError(f"codes must lie in 0..{config.codebook_size - 1}, got {int(codes.min())}..{int(codes.max())}")
        if counts is None:
            ids = codes.flatten(1)[:, : config.num_condition_codes]
        else:
            ids = pack_with_lengths(codes, counts, config.length_tokens, config.codebook_size)[0]
            if not config.condition_length_tokens:
                ids = ids[ids < config.codebook_size].unflatten(0, (len(codes), -1))
        separator = config.condition_separator_token_id
        return ids if separator is None else nn.functional.pad(ids, (0, 1), value=separator)

    def build_inputs(
        self,
        codes: torch.Tensor,
        token_counts: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        condition_codes: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Clips -> what `forward` takes for teacher forcing. Every kept code and every `<EOB>` or length token is a target.

        Args:
            codes: (batch, blocks, latents_per_block) long, of whole clips.
            token_counts: (batch, blocks) long: numbers of `length_tokens` in that layout, and all codes where there are no
                separators. Blocks before `config.start_block` are left out.
            class_labels, condition_codes: as in `build_prompt`.

        Returns:
            `input_ids`, `attention_mask` and `labels`, each (batch, sequence) long, padded on the right.
        """
        config = self.config
        prompt = self.build_prompt(class_labels, condition_codes)
        expected = (len(prompt), config.num_blocks, config.latents_per_block)
        if tuple(codes.shape) != expected:
            raise ValueError(
                f"codes has shape {tuple(codes.shape)}, expected (batch, blocks, latents_per_block) = {expected}"
            )
        start, fixed = config.start_block, config.condition_counts or []
        if (token_counts[:, : len(fixed)].cpu() != torch.tensor(fixed, dtype=torch.long)).any():
            raise ValueError(
                f"token_counts begin with {token_counts[0, : len(fixed)].tolist()}, expected condition_counts={fixed}"
            )
        sequences, mask = pack_clips(config, codes[:, start:].to(self.device), token_counts[:, start:].to(self.device))
        labels = sequences.masked_fill(~mask, -100)
        return {
            "input_ids": torch.cat([prompt, sequences], dim=1),
            "attention_mask": torch.cat([torch.ones_like(prompt), mask.long()], dim=1),
            "labels": torch.cat([torch.full_like(prompt, -100), labels], dim=1),
        }
