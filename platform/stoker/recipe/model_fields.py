"""The fields of a recipe that say what is trained, and how it learns."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, model_validator

from stoker.recipe.section import Fraction, Positive, Section

__all__ = ["OPTIMIZER_NAMES", "Augmentation", "Loss", "Model", "Optimizer", "Source"]

OptimizerName = Literal["sgd", "adamw", "lamb"]
OPTIMIZER_NAMES: tuple[str, ...] = get_args(OptimizerName)
"""as in stoker.training.optim.optimizers.OPTIMIZERS, which a recipe does not import: it brings torch"""


class Source(Section):
    """Where ``model.weights`` were found; ``jobs/train.py`` fills it in for a reference to the registry."""

    url: str
    sha256: str | None = None
    reference: str | None = Field(None, description="the model version, as digits@3")
    classes: tuple[str, ...] | None = Field(None, description="what its outputs stand for")


class Model(Section):
    name: str = Field(description="a torchvision classification model, or digitsnet for 32 pixel inputs")
    classes: Positive | None = Field(None, description="outputs; default, and only possible value: the data set's")
    drop_rate: Fraction | None = Field(None, description="dropout, for models that take one")
    stochastic_depth: Fraction | None = Field(None, description="drop probability of the last block, for such models")
    blur_pool: bool = Field(False, description="blur before strided convolutions (Zhang, 2019)")
    weights: str | None = Field(
        None,
        description="what to begin with: a model version (digits@3, digits@production), or the URL of a safetensors "
        "file or of a state dict by torch.save",
    )
    source: Source | None = Field(None, description="where weights were found; filled in, and kept with the run")
    head: Literal["auto", "new"] = Field(
        "auto", description="auto keeps the weights' head where its classes are the data set's; new never does"
    )
    frozen: Literal["backbone"] | tuple[str, ...] = Field(
        (), description="what is not trained: names, beginnings or patterns of them, or backbone for a linear probe"
    )

    @model_validator(mode="after")
    def _source_is_of_weights(self) -> Model:
        if self.source is not None and self.weights is None:
            raise ValueError("source belongs to weights; give weights, or leave it out")
        return self

    @property
    def names_version(self) -> bool:
        """Whether ``weights`` are a model version and no file: a name, @, and a number or an alias."""
        return self.weights is not None and "@" in self.weights and "/" not in self.weights

    @property
    def asks_more_than_a_name(self) -> bool:
        """Whether there is more to check about the model than its name."""
        return self != Model(name=self.name, classes=self.classes)

    @property
    def parent(self) -> str | None:
        """What the model begins with, for the record: a version's reference, or a URL."""
        return (self.source.reference or self.source.url) if self.source else self.weights


class Optimizer(Section):
    name: OptimizerName = "sgd"
    lr: float = Field(gt=0, description="peak learning rate, for the whole global batch")
    momentum: Fraction = 0.9
    nesterov: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0, description="of adamw and lamb")
    weight_decay: float = Field(5e-5, ge=0)
    decay_norm_and_bias: bool = Field(False, description="whether weight decay acts on norms and biases too")
    decay_embeddings: bool = Field(True, description="whether it acts on class tokens and position embeddings")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="each layer's rate as a share of that of the layer above it; the head has lr"
    )


class Loss(Section):
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    auxiliary_weight: float | None = Field(
        None, ge=0, description="of each auxiliary head's loss; default 0.3 (GoogLeNet), 0.4 (Inception v3)"
    )


class Augmentation(Section):
    """What the device does to images that are decoded, beside ``data.augment``, which chooses what is decoded."""

    policy: Literal["none", "rand_augment", "trivial_augment_wide"] = "none"
    operations: Positive = Field(2, description="with rand_augment: operations an image")
    magnitude: int = Field(9, ge=0, le=30, description="with rand_augment: their strength, 0 to 30")
    erase: Fraction = Field(0.0, description="probability that a rectangle of an image is erased")
    mixup: float = Field(0.0, ge=0, description="alpha of mixup's Beta distribution; 0 is off")
    cutmix: float = Field(
        0.0,
        ge=0,
        description="alpha of cutmix's Beta distribution; 0 is off; with mixup each takes half of the batches",
    )
