"""Fields of a recipe: the model, its optimiser, loss and augmentation."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, model_validator

from stoker.recipe.section import Fraction, Positive, Section

__all__ = ["OPTIMIZER_NAMES", "Augmentation", "Loss", "Model", "Optimizer", "Source"]

OptimizerName = Literal["sgd", "adamw", "lamb"]
OPTIMIZER_NAMES: tuple[str, ...] = get_args(OptimizerName)
"""as in stoker.training.optim.optimizers.OPTIMIZERS, which a recipe does not import: it brings torch"""


class Source(Section):
    """The file that ``model.weights`` resolves to; ``stoker train`` fills it in for a model version."""

    url: str = Field(description="URL of the weights file")
    sha256: str | None = Field(None, description="SHA-256 of the file, hexadecimal; checked when it is loaded")
    reference: str | None = Field(None, description="the model version, for example digits@3")
    classes: tuple[str, ...] | None = Field(None, description="class of each output, in order")


class Model(Section):
    """Which model is trained, and what it is initialized from."""

    name: str = Field(
        description="a classification model of torchvision; efficientnet_lite0 to 4; digitsnet for images of 32 pixels"
    )
    classes: Positive | None = Field(
        None, description="number of outputs; must be the number of classes of the data set, which is the default"
    )
    drop_rate: Fraction | None = Field(
        None, description="dropout probability, 0 to 1, for models with dropout; default the model's"
    )
    stochastic_depth: Fraction | None = Field(
        None, description="drop probability of the last block, 0 to 1, for models with stochastic depth"
    )
    blur_pool: bool = Field(False, description="blur the input of strided convolutions (Zhang, 2019)")
    weights: str | None = Field(
        None,
        description="what to initialize the model from: a model version (digits@3, digits@production), or the URL of a "
        "safetensors file or of a state dict by torch.save; default fresh weights",
    )
    source: Source | None = Field(
        None, description="the file that weights resolves to; filled in by stoker train and stored with the run"
    )
    head: Literal["auto", "new"] = Field(
        "auto", description="auto keeps the weights' head if its classes are those of the data set; new never does"
    )
    frozen: Literal["backbone"] | tuple[str, ...] = Field(
        (),
        description="parameters that are not trained: names, prefixes or shell patterns of names; backbone: all but "
        "the head, for a linear probe",
    )

    @model_validator(mode="after")
    def _source_is_of_weights(self) -> Model:
        if self.source is not None and self.weights is None:
            raise ValueError("source belongs to weights; give weights, or leave it out")
        return self

    @property
    def names_version(self) -> bool:
        """Whether ``weights`` is a model version (a name, @, and a number or an alias), not a file."""
        return self.weights is not None and "@" in self.weights and "/" not in self.weights

    @property
    def needs_model_check(self) -> bool:
        """Whether the section sets more than the name of the model and its number of classes."""
        return self != Model(name=self.name, classes=self.classes)

    @property
    def parent(self) -> str | None:
        """What the model is initialized from, for the record: a version's reference, or a URL."""
        return (self.source.reference or self.source.url) if self.source else self.weights


class Optimizer(Section):
    """How gradients change the weights."""

    name: OptimizerName = Field("sgd", description="the optimiser; lamb is for large batches (You and others, 2020)")
    lr: float = Field(gt=0, description="peak learning rate for the global batch, above 0")
    momentum: Fraction = Field(0.9, description="with sgd: momentum, 0 to 1")
    nesterov: bool = Field(True, description="with sgd: Nesterov momentum")
    betas: tuple[float, float] = Field(
        (0.9, 0.999), description="with adamw and lamb: decay rates of the gradient's mean and of its square's mean"
    )
    eps: float = Field(1e-8, gt=0, description="with adamw and lamb: added to the denominator, above 0")
    weight_decay: float = Field(5e-5, ge=0, description="weight decay, 0 or above; decoupled in adamw and lamb")
    decay_norm_and_bias: bool = Field(False, description="apply weight decay to norms and biases too")
    decay_embeddings: bool = Field(True, description="apply weight decay to class tokens and position embeddings too")
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="learning rate of a layer as a fraction of the rate of the layer above, above 0 to 1; lr is the "
        "head's",
    )


class Loss(Section):
    """The cross-entropy that is minimised."""

    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="fraction of the target that is spread over all classes, 0 to below 1"
    )
    auxiliary_weight: float | None = Field(
        None,
        ge=0,
        description="weight of each auxiliary head's loss, 0 or above; default 0.3 (GoogLeNet), 0.4 (Inception v3)",
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none",
        description="weights of the classes in the loss; balanced: N / (C n) for a class with n of the N training "
        "samples, C classes have any, so that the mean over the samples is 1",
    )


class Augmentation(Section):
    """Augmentation of decoded images on the device; ``data.augment`` chooses the crop that is decoded."""

    policy: Literal["none", "rand_augment", "trivial_augment_wide"] = Field(
        "none", description="which pixel operations vary a sample: RandAugment, TrivialAugment's wide space, or none"
    )
    operations: Positive = Field(2, description="with rand_augment: operations per image")
    magnitude: int = Field(9, ge=0, le=30, description="with rand_augment: strength of the operations, 0 to 30")
    erase: Fraction = Field(0.0, description="probability that a rectangle of an image is erased, 0 to 1")
    mixup: float = Field(0.0, ge=0, description="alpha of mixup's Beta distribution, 0 or above; 0 is off")
    cutmix: float = Field(
        0.0,
        ge=0,
        description="alpha of cutmix's Beta distribution, 0 or above; 0 is off; with mixup, each gets half of the "
        "micro-batches",
    )
