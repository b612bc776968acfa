"""Auxiliary losses of the pretraining: labels of every patch, and attention of two heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmole.demo.world.world import LATTICE, Thing
from recipes.tiny.architecture import HEAD_WIDTH, PATCHES
from recipes.tiny.worlds import World

GROUND_WEIGHT = 0.15
HIDDEN_SCORE = -1e9


class DenseHeads(nn.Module):
    """Predict color, class and edges from projected patches; not part of the shipped model.

    The word embeddings of the language model score colors and classes, so that the projected
    patches align with these embeddings.

    Args:
        tokenizer: The tokenizer of the model.
        world: Holds the names of colors and classes.
        width: Width of the language model.
        pad: Token whose embedding stands for the ground.

    Raises:
        ValueError: If a name is more than one token.
    """

    def __init__(self, tokenizer: Any, world: World, width: int, pad: int = 0) -> None:
        super().__init__()
        ids = tokenizer.convert_tokens_to_ids
        words = [ids(tokenizer.tokenize(name)) for name in world.colors + world.classes]
        if any(len(word) != 1 for word in words):
            raise ValueError("the tokenizer splits a color or class name into several tokens")
        tokens = [word[0] for word in words]
        colors = len(world.colors)
        self.color_ids: Tensor
        self.class_ids: Tensor
        self.register_buffer("color_ids", torch.tensor([pad, *tokens[:colors]]))
        self.register_buffer("class_ids", torch.tensor([pad, *tokens[colors:]]))
        self.edges = nn.Linear(width, 4 * (LATTICE + 1))
        self.scales = nn.Parameter(torch.tensor([4.0, 4.0]))

    def forward(self, patches: Tensor, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return color, class and edge logits of patches ``(images, 64, width)``."""
        return (
            patches @ words[self.color_ids].T * self.scales[0],
            patches @ words[self.class_ids].T * self.scales[1],
            self.edges(patches).unflatten(-1, (4, LATTICE + 1)),
        )


@dataclass(frozen=True)
class DenseResult:
    """Loss and accuracies (foreground patches) of the dense heads."""

    loss: Tensor
    color: float
    label: float
    edge: float


def dense_loss(heads: DenseHeads, patches: Tensor, words: Tensor, labels: Tensor) -> DenseResult:
    """Return the cross-entropy of the patch labels ``(images, 6, 64)``; ground has a low weight."""
    colors, classes, edges = heads(patches, words)
    shown = labels[:, 0] > 0
    weight = torch.where(shown, 1.0, GROUND_WEIGHT).flatten()
    edge_labels = labels[:, 2:].permute(0, 2, 1)[shown]
    edge_logits = edges[shown]
    loss = functional.cross_entropy(edge_logits.flatten(0, 1), edge_labels.flatten())
    for logits, target in ((colors, labels[:, 0]), (classes, labels[:, 1])):
        each = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
        loss = loss + (each * weight).sum() / weight.sum()
    with torch.no_grad():
        color = (colors.argmax(-1) == labels[:, 0])[shown].float().mean().item()
        label = (classes.argmax(-1) == labels[:, 1])[shown].float().mean().item()
        edge = (edge_logits.argmax(-1) == edge_labels).float().mean().item()
    return DenseResult(loss, color, label, edge)


@dataclass(frozen=True)
class Gaze:
    """An attention target: at `token` of row `row`, head `head` must attend to `thing`."""

    row: int
    token: int
    head: int
    thing: Thing


class GazeSupervision:
    """Train two heads of one language block to attend to the thing that a question names.

    Look-up by shape does not emerge within minutes from answers alone. The weights are ordinary
    attention weights, so inference is unchanged. The block is that in the middle.
    """

    def __init__(self, model: Any) -> None:
        layers = model.model.language_model.layers
        self.attention = layers[len(layers) // 2].self_attn
        self.attention.register_forward_pre_hook(self._keep_inputs, with_kwargs=True)

    def _keep_inputs(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.hidden: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        self.cosine, self.sine = kwargs["position_embeddings"]

    def loss(self, gazes: Sequence[Gaze]) -> Tensor:
        """Return the mean -log attention mass on the target patches in the last forward pass."""
        rows = torch.tensor([gaze.row for gaze in gazes])
        tokens = torch.tensor([gaze.token for gaze in gazes])
        heads = torch.tensor([gaze.head for gaze in gazes])
        count = int(heads.max()) + 1
        width = count * HEAD_WIDTH
        weights = self.attention
        queries = (self.hidden[rows, tokens] @ weights.q_proj.weight[:width].T).view(
            -1, count, 1, HEAD_WIDTH
        )
        image = self.hidden[:, 1 : PATCHES + 1]
        keys = (image @ weights.k_proj.weight[:width].T).unflatten(-1, (count, HEAD_WIDTH))
        cosine = self.cosine.expand(len(self.hidden), -1, -1)
        sine = self.sine.expand(len(self.hidden), -1, -1)
        queries = _rotate(
            queries, cosine[rows, tokens][:, None, None], sine[rows, tokens][:, None, None]
        )
        keys = _rotate(keys, cosine[:, 1 : PATCHES + 1, None], sine[:, 1 : PATCHES + 1, None])
        chosen = torch.arange(len(gazes))
        query = queries[chosen, heads, 0]  # (gazes, head width)
        scores = torch.einsum("gd,gpd->gp", query, keys[rows, :, heads]) * HEAD_WIDTH**-0.5
        seen = torch.stack([_covered_patches(gaze.thing) for gaze in gazes])
        inside = scores.masked_fill(~seen, HIDDEN_SCORE).logsumexp(-1)
        loss: Tensor = (scores.logsumexp(-1) - inside).mean()
        return loss


def _rotate(vectors: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Apply the rotary position encoding of the Llama attention."""
    first, second = vectors.chunk(2, -1)
    return vectors * cosine + torch.cat([-second, first], -1) * sine


def _covered_patches(thing: Thing) -> Tensor:
    left, top, right, bottom = thing.box
    side = int(PATCHES**0.5)
    cells = LATTICE // side
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[top // cells : -(-bottom // cells), left // cells : -(-right // cells)] = True
    return mask.flatten()
