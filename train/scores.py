"""A reward model's forward: the score of a conversation with its answer, read at the answer's last token.

Rows are padded on the right, which a causal model does not see from the left, and the score is taken at each row's own
last token: transformers looks for the first padding token instead, which fails where the padding token is the end token
that an answer ends with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from train.conversations import plain


class ScoreForward:
    """Scores of a sequence-classification model with one label, adapter or not."""

    name = "scores"

    def __init__(self, model: nn.Module) -> None:
        unwrap = getattr(model, "get_base_model", None)
        self._model: Any = unwrap() if unwrap is not None else model

    def scores(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
        """(prompt, answer) token ids -> (rows,) float32."""
        lines = [[*prompt, *plain(answer)] for prompt, answer in rows]
        device = next(self._model.parameters()).device
        width = max(map(len, lines))
        ids = torch.tensor([line + [0] * (width - len(line)) for line in lines], device=device)
        last = torch.tensor([len(line) - 1 for line in lines], device=device)
        seen = torch.arange(width, device=device)[None, :] <= last[:, None]
        hidden = self._model.base_model(input_ids=ids, attention_mask=seen.long(), use_cache=False).last_hidden_state
        ends = hidden[torch.arange(len(lines), device=device), last]
        score: Tensor = self._model.score(ends).float()[:, 0]
        return score
