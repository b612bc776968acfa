"""Discovery of vision encoder, projector, language model, their blocks and linears."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from torch import nn

from dmole.modality import Modality

_VISION = re.compile(r"(^|\.)(vision_tower|vision_model|visual)$")
_LANGUAGE = re.compile(r"(^|\.)(language_model|text_model)$")
_MERGER = re.compile(r"merger")


@dataclass(frozen=True)
class Patterns:
    """Regular expressions that override the discovery for a new model family.

    Each is searched in the full paths of submodules; ``None`` uses the built-in rule.

    Args:
        vision: Path of the vision encoder.
        projector: Paths of the projector's roots.
        language: Path of the language model.
        layers: Paths of the transformer blocks of vision encoder and language model.
        linears: Use only linears with a matching path, for instance ``self_attn``.

    Raises:
        ValueError: If a text is no regular expression.
    """

    vision: str | None = None
    projector: str | None = None
    language: str | None = None
    layers: str | None = None
    linears: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is no regular expression."""
        for name, pattern in vars(self).items():
            try:
                re.compile(pattern or "")
            except (re.error, RecursionError) as error:
                raise ValueError(f"patterns.{name} {pattern!r} is no pattern: {error}") from error


@dataclass(frozen=True)
class Block:
    """One transformer block, or a root of the projector, that may hold experts.

    Args:
        name: Short name of modality and index: ``vision.0``.
        modality: ``vision``, ``projector`` or ``language``.
        path: Full path of the submodule.
        linears: Full paths of the block's linears.
    """

    name: str
    modality: Modality
    path: str
    linears: tuple[str, ...]


@dataclass(frozen=True)
class Parts:
    """Paths of the modalities of a multimodal model, and its blocks.

    Args:
        vision: Path of the vision encoder.
        projector: Paths of the projector's roots (several if it has several mergers).
        language: Path of the language model.
        blocks: All blocks, vision first, then projector, then language.
    """

    vision: str
    projector: tuple[str, ...]
    language: str
    blocks: tuple[Block, ...] = field(default=())

    def modality_of(self, path: str) -> Modality:
        """Return ``vision``, ``projector`` or ``language`` for the path of a submodule.

        Raises:
            ValueError: If the path is in none of the three.
        """
        if any(_inside(path, root) for root in self.projector):
            return "projector"
        if _inside(path, self.vision):
            return "vision"
        if _inside(path, self.language):
            return "language"
        raise ValueError(f"submodule {path!r} is in no part of the model")


def discover(model: nn.Module, patterns: Patterns | None = None) -> Parts:
    """Return the modalities and blocks of a transformers image-text-to-text model.

    Args:
        model: The model.
        patterns: Overrides for families with names that the built-in rules do not match.

    Raises:
        ValueError: If a modality is not found; the message names the override to set.
    """
    patterns = patterns or Patterns()
    vision = _one(model, patterns.vision, _VISION, "vision")
    language = _one(model, patterns.language, _LANGUAGE, "language")
    projector = _projector(model, patterns.projector, vision, language)
    parts = Parts(vision, projector, language)
    blocks = [
        *_transformer_blocks(model, parts, "vision", vision, patterns),
        *_projector_blocks(model, projector, patterns),
        *_transformer_blocks(model, parts, "language", language, patterns),
    ]
    return Parts(vision, projector, language, tuple(blocks))


def _inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root + ".")


def _one(model: nn.Module, override: str | None, rule: re.Pattern[str], part: str) -> str:
    """Return the outermost matching path of a submodule."""
    pattern = re.compile(override) if override else rule
    for path, _ in model.named_modules():  # parents come before children
        if path and pattern.search(path):
            return str(path)
    raise ValueError(
        f"no {part} part found in {type(model).__name__}; set patterns.{part} to a regular "
        f"expression, searched /{pattern.pattern}/"
    )


def _projector(
    model: nn.Module, override: str | None, vision: str, language: str
) -> tuple[str, ...]:
    """Return the siblings of the vision encoder with parameters, else the encoder's mergers."""
    if override:
        pattern = re.compile(override)
        paths = [path for path, _ in model.named_modules() if path and pattern.search(path)]
        return tuple(p for p in paths if not any(_inside(p, q) and p != q for q in paths))
    parent = vision.rpartition(".")[0]
    siblings = [
        f"{parent}.{name}" if parent else name
        for name, child in model.get_submodule(parent).named_children()
        if next(child.parameters(), None) is not None
    ]
    siblings = [
        path
        for path in siblings
        if not _inside(vision, path) and not _inside(language, path) and "lm_head" not in path
    ]
    if siblings:
        return tuple(siblings)
    mergers = model.get_submodule(vision).named_children()
    return tuple(f"{vision}.{name}" for name, _ in mergers if _MERGER.search(name))


def _linears(model: nn.Module, path: str, keep: str | None) -> tuple[str, ...]:
    root = model.get_submodule(path)
    paths = [
        f"{path}.{name}" if name else path
        for name, child in root.named_modules()
        if isinstance(child, nn.Linear)
    ]
    return tuple(p for p in paths if keep is None or re.search(keep, p))


def _transformer_blocks(
    model: nn.Module, parts: Parts, modality: Modality, root: str, patterns: Patterns
) -> list[Block]:
    """Return the blocks below a root: members of the outermost module lists with linears."""
    if patterns.layers:
        pattern = re.compile(patterns.layers)
        paths = [p for p, _ in model.named_modules() if _inside(p, root) and pattern.search(p)]
        paths = [p for p in paths if not any(_inside(p, q) and p != q for q in paths)]
    else:
        paths = _block_paths(model, parts, root)
    blocks: list[Block] = []
    for path in paths:
        linears = _linears(model, path, patterns.linears)
        if linears:
            blocks.append(Block(f"{modality}.{len(blocks)}", modality, path, linears))
    if not blocks:
        raise ValueError(f"no blocks with linears below {root!r}; set patterns.layers")
    return blocks


def _block_paths(model: nn.Module, parts: Parts, root: str) -> list[str]:
    lists: list[str] = []
    for name, child in model.get_submodule(root).named_modules():
        path = f"{root}.{name}"
        if (
            isinstance(child, nn.ModuleList)
            and not any(_inside(path, outer) for outer in lists)
            and not any(_inside(path, merger) for merger in parts.projector)
            and any(isinstance(m, nn.Linear) for m in child.modules())
        ):
            lists.append(path)
    return [f"{path}.{i}" for path in lists for i in range(len(_list(model, path)))]


def _list(model: nn.Module, path: str) -> list[nn.Module]:
    return list(model.get_submodule(path).children())


def _projector_blocks(model: nn.Module, roots: tuple[str, ...], patterns: Patterns) -> list[Block]:
    blocks: list[Block] = []
    for root in roots:
        linears = _linears(model, root, patterns.linears)
        if linears:
            blocks.append(Block(f"projector.{len(blocks)}", "projector", root, linears))
    return blocks
