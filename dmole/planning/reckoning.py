"""Memory of each phase of a run on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from dmole.planning import activations, memory
from dmole.planning.experts import PlannedExperts, plan_experts, scored_by_gradients
from dmole.planning.images import ImageTokens, image_tokens
from dmole.planning.memory import FP32, ExpertSize, Load
from dmole.planning.setup import Lengths, Setup
from dmole.planning.shape import ModelShape
from dmole.planning.terms import check_terms, kept_bytes, losses_together

GIB = 2**30
TRAINING = "training step"
SCORING = "scoring step"


@dataclass(frozen=True)
class Phase:
    """Memory of a phase at its peak.

    Args:
        name: Name of the phase.
        parts: Bytes by what they are for.
    """

    name: str
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        return sum(self.parts.values())


class Reckoning:
    """What a run needs.

    Args:
        shape: Shape of the base model.
        setup: Settings of the run.
        lengths: Lengths of its samples.
        image: The most tokens of an image; by default those of the family.

    Raises:
        ValueError: If a part of the run cannot be reckoned.
    """

    def __init__(
        self, shape: ModelShape, setup: Setup, lengths: Lengths, image: ImageTokens | None = None
    ) -> None:
        if setup.sharded and setup.quantization:
            raise ValueError(f"a base model in {setup.quantization} cannot be split over GPUs")
        check_terms(setup)
        self.shape = shape
        self.setup = setup
        self.lengths = lengths
        self.image = image or image_tokens(shape.config, setup.image_settings)
        self.experts: PlannedExperts = plan_experts(shape, setup)

    @property
    def element(self) -> int:
        """Bytes of an activation."""
        return 2 if self.setup.mixed else memory.DTYPE_BYTES[self.setup.dtype]

    @property
    def tokens(self) -> int:
        """Tokens of a sample in the language model, at most ``max_length``."""
        tokens = self.lengths.images * self.image.tokens + self.lengths.text
        return min(tokens, self.setup.max_length or tokens)

    def load(self, samples: int, *, extra: int = 0) -> Load:
        """Return a batch of so many samples.

        Args:
            samples: Number of samples.
            extra: Tokens after those of a sample.
        """
        return Load(
            samples=samples,
            patches=self.lengths.images * self.image.patches,
            tiles=self.lengths.images * self.image.tiles,
            tokens=self.tokens + extra,
            answer_tokens=self.lengths.answer,
            element=self.element,
        )

    @property
    def batch(self) -> int:
        """Samples of a training batch."""
        budget = self.setup.max_tokens_per_batch
        return self.setup.batch_size if budget is None else max(1, budget // self.tokens)

    def eval_batch(self, new_tokens: int) -> int:
        """Return the samples of a batch in generation."""
        budget = self.setup.eval_tokens_per_batch
        if budget is None:
            return self.setup.eval_batch_size
        return max(1, budget // (self.tokens + new_tokens))

    # -- memory of a GPU -------------------------------------------------------------------

    @cached_property
    def whole_base(self) -> float:
        """Bytes of the whole base model."""
        return memory.base_bytes(self.shape, self.setup.dtype, self.setup.quantization)

    def base(self, *, evaluating: bool = False, repeated: bool = True) -> dict[str, float]:
        """Return the bytes of the base model on a GPU, with those gathered for a while."""
        setup, whole = self.setup, evaluating and self.setup.gathers
        if not setup.sharded or setup.ranks == 1:
            return {"base model": self.whole_base}
        shard, gathered = memory.sharded_bytes(
            self.shape, setup.dtype, setup.ranks, whole=whole, repeated=repeated
        )
        return {"base model": shard, "gathered": gathered}

    def phases(self) -> list[Phase]:
        """Return the phases of a stage, at the last one."""
        found = []
        if self.setup.stages:
            found += self._measuring()
            found.append(self._training())
        found.append(self._evaluation())
        if self.setup.router.needs_embeddings:
            found += [self._embedding(), self._router()]
        return found

    def _past(self, used: int) -> float:
        """Return the bytes of past experts on a GPU if a batch uses so many others of them."""
        limit, experts = self.setup.past_experts_on_device, self.experts
        kept = experts.past
        if limit is not None:
            kept = min(kept, (limit + used) * experts.largest)
        return FP32 * kept

    def _measuring(self) -> list[Phase]:
        """Return the passes that measure gradients or inputs before or after a stage."""
        setup, allocator, found = self.setup, self.setup.allocator, []
        if scored_by_gradients(allocator):
            # the norm of a batch in parts is that of the sum over its parts
            summed = allocator.reduction in ("sum", "mean") or setup.accumulate_grad_batches > 1
            kept = memory.proxy_gradient_bytes(
                self.shape, summed=summed, passes=self.proxy_passes, ranks=setup.ranks
            )
            found.append(self._proxy("proxy pass", kept))
        if self.experts.scored is not None:
            load = self.load(setup.batch_size)
            found.append(self._step(SCORING, load, self.experts.scored, self._past(0)))
        starts = allocator.initializer
        sources = () if starts is None else (starts.source, starts.kept_source)
        passes = 1 if starts is None else starts.proxy_passes
        if "gradients" in sources:
            kept = memory.proxy_gradient_bytes(self.shape, passes=passes, ranks=setup.ranks)
            found.append(self._proxy("initializer, gradients", kept))
        if "inputs" in sources:  # without gradients; an upper bound
            kept = memory.moment_bytes(self.shape, passes=passes)
            found.append(self._proxy("initializer, inputs", kept))
        return found

    def _proxy(self, name: str, kept: float) -> Phase:
        setup = self.setup
        load = self.load(setup.batch_size)
        # one that arrives, and its copy for the sum over ranks
        arriving = memory.largest_gradient_bytes(self.shape) * (1 + (setup.ranks > 1))
        recompute = setup.activation_checkpointing
        running = activations.proxy_activation_bytes(self.shape, load, recompute=recompute)
        return Phase(
            name,
            {
                **self.base(),
                "experts": self._past(0),
                "activations": running + self._cast_weights,
                "loss": memory.loss_bytes(self.shape, load),
                "gradients": kept + arriving,
            },
        )

    @property
    def proxy_passes(self) -> int:
        """Groups of layers that are scored one after the other."""
        return self.setup.allocator.proxy_passes

    @property
    def _cast_weights(self) -> float:
        """Bytes of the half-precision copies of float32 weights that autograd keeps."""
        if not self.setup.mixed or self.setup.dtype != "float32":
            return 0
        return 2 * sum(map(memory.scored_parameters, self.shape.stacks))

    def _training(self) -> Phase:
        past, losses = self._past(self.experts.in_step), losses_together(self.setup)
        step = self._step(TRAINING, self.load(self.batch), self.experts.size, past, losses)
        more = kept_bytes(self.setup, self.experts.size, self.shape)
        return Phase(step.name, {**step.parts, **more})

    def _step(self, name: str, load: Load, size: ExpertSize, past: float, losses: int = 1) -> Phase:
        """Return the phase of optimizer steps that train experts of some size."""
        setup = self.setup
        recompute = setup.activation_checkpointing
        kept = activations.training_activation_bytes(self.shape, load, size, recompute=recompute)
        state = memory.training_state_bytes(size.parameters, setup.moments)
        state += FP32 * size.parameters * (setup.ranks > 1)  # buckets of the all-reduce
        state += 2 * size.parameters * setup.mixed  # copies that autocast keeps
        return Phase(
            name,
            {
                **self.base(repeated=losses > 1),
                "experts": past,
                "expert in training": state,
                "activations": kept + self._cast_weights,
                "loss": memory.loss_bytes(self.shape, load) * losses,
            },
        )

    def _evaluation(self) -> Phase:
        setup, shape = self.setup, self.shape
        new = max((t.new_tokens for t in setup.tasks), key=self._cache, default=1)
        samples = self.eval_batch(new)
        load = self.load(samples)
        trained = FP32 * self.experts.size.parameters
        return Phase(
            "evaluation",
            {
                **self.base(evaluating=True),
                "experts": trained + self._past(self.experts.in_answer),
                "joined experts": FP32 * self.experts.largest * self.experts.in_answer,
                "cache": self._cache(new),
                "activations": activations.forward_bytes(shape, load),
                "loss": samples * setup.beams * shape.vocabulary * (FP32 + self.element),
            },
        )

    def _cache(self, new_tokens: int) -> float:
        """Return the bytes of keys and values; one block's are copied when a token is added."""
        language, samples = self.shape.language, self.eval_batch(new_tokens)
        sequences, tokens = samples * self.setup.beams, self.tokens + new_tokens
        size = memory.cache_bytes(language, sequences, tokens, self.element)
        return size * (1 + 1 / language.blocks)

    def _embedding(self) -> Phase:
        load = self.load(self.setup.eval_batch_size)
        return Phase(
            "embedding",
            {
                **self.base(evaluating=True),
                "experts": FP32 * self.experts.size.parameters + self._past(0),
                "activations": activations.forward_bytes(self.shape, load),
            },
        )

    def _router(self) -> Phase:
        width, rows = self.shape.embedding_width, self.setup.embedding_samples
        return Phase(
            "router fit",
            {
                "base model": self.base()["base model"],
                "experts": FP32 * self.experts.size.parameters + self._past(0),
                "embeddings": 2 * rows * width * 8,  # and a standardized copy, in float64
                "router": self.experts.count * self.autoencoder(8),
            },
        )

    def autoencoder(self, entry: int) -> int:
        """Return the bytes of the router's part for one expert, of numbers of so many bytes."""
        router = getattr(self.setup.router, "router", self.setup.router)
        components = int(getattr(router, "components", 128))
        return memory.autoencoder_bytes(self.shape, components, entry)
