"""A training loop in plain PyTorch, one process, that shares no line with the step, and a comparison of the two."""

from __future__ import annotations

import copy
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import Tensor, nn
from torch.optim import lr_scheduler

from stoker.dataset import Batch
from stoker.dataset.order import key_of, micro_batches_of
from stoker.recipe import Recipe, parse_recipe
from stoker.training.step.class_weights import balanced_weights
from stoker.training.step.stepper import Stepper

__all__ = [
    "CASES",
    "EXACT",
    "Trained",
    "alone",
    "assert_same_to_rounding",
    "initial_model",
    "recipe_of",
    "step_batches",
    "train_by_stepper",
    "train_on_two",
    "train_plainly",
]

STEPS_PER_EPOCH = 3
_CLASSES, _SIDE, _EPOCHS = 4, 8, 2
_SAMPLES_BY_CLASS = (31, 2, 9, 6)
"""of the training split that class weights are of"""
_LAST = 5
"""samples of an epoch's last step: of three micro-batches of four, one is whole, one is padded, and one is padding"""


RECIPE = """
name: law
storage: /tmp/none
data: {url: /tmp/none, image_size: 8, last_batch: pad}
model: {name: digitsnet}
batch: {total: 12, micro: 4}
optimizer: {lr: 0.1, eps: 0.001, betas: [0.8, 0.95], weight_decay: 0.05}
schedule: {epochs: 2, warmup_epochs: 0.6666666666666666, final_lr_ratio: 0.1}
loss: {label_smoothing: 0.1, auxiliary_weight: 0.3}
ema: {decay: 0.3}
workers: {max: 2, gpus: 0, cpus: 1}
"""
CLIPPED, MIXED = "gradient_clip=0.2", "augmentation.mixup=0.8"
WEIGHTED = "loss.class_weights=balanced"
ADAMW, LAMB = "optimizer.name=adamw", "optimizer.name=lamb"
HALF = [
    "data.mean=[0.5019607843, 0.5019607843, 0.5019607843]",
    "data.std=[1.003921569, 1.003921569, 1.003921569]",
    "channels_last=false",
]
"""pixels become whole multiples of 1/256 and both use the same kernels, so that 16 bits round the same"""
CASES = {
    "sgd": [],
    "sgd-clipped": [CLIPPED],
    "sgd-mixup": [MIXED, "schedule.warmup_epochs=0"],
    "sgd-weighted": [WEIGHTED],
    "sgd-weighted-plain": [WEIGHTED, "loss.label_smoothing=0"],
    "adamw-weighted-mixup": [WEIGHTED, ADAMW, "optimizer.lr=0.02", MIXED],
    "sgd-plain": ["optimizer.nesterov=false", "loss.label_smoothing=0", "ema=null", "optimizer.weight_decay=0"],
    "sgd-no-momentum": ["optimizer.momentum=0", "optimizer.decay_norm_and_bias=true", "channels_last=false"],
    "adamw": [ADAMW, "optimizer.lr=0.02", MIXED],
    "adamw-clipped": [ADAMW, "optimizer.lr=0.02", CLIPPED],
    "lamb": [LAMB, "optimizer.lr=0.02"],
    "lamb-clipped-mixup": [LAMB, "optimizer.lr=0.02", CLIPPED, MIXED, "optimizer.weight_decay=0"],
    "float16": ["precision=float16", *HALF, MIXED],
    "float16-clipped": ["precision=float16", *HALF, CLIPPED],
    "float16-adamw": ["precision=float16", *HALF, ADAMW, "optimizer.lr=0.02", CLIPPED],
    "float16-lamb": ["precision=float16", *HALF, LAMB, "optimizer.lr=0.02"],
    "bfloat16": ["precision=bfloat16", *HALF, CLIPPED],
}
EXACT = {"floats": "reproducible=false", "exact": "reproducible=true"}


def recipe_of(case: str, exact: str) -> Recipe:
    return parse_recipe(RECIPE, "law.yaml", [*CASES[case], EXACT[exact]])


@dataclass(frozen=True)
class Trained:
    """Weights and buffers, those of the moving average, (loss, correct, samples) and the loss scale after training."""

    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    sums: list[float]
    loss_scale: float


class _Small(nn.Module):
    """Two convolutions with batch norms, dropout, and an auxiliary head; nothing in it has a gradient of zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8, momentum=0.3), nn.SiLU())
        self.dropout = nn.Dropout(0.2)
        self.auxiliary = nn.Linear(8, _CLASSES)
        self.head = nn.Linear(8, _CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        early = self.first(images)
        late = self.second(early)
        return self.head(self.dropout(late.mean(dim=(2, 3)))), self.auxiliary(early.mean(dim=(2, 3)))


class _PlainLamb(torch.optim.Optimizer):
    """Algorithm 2 of the paper, a parameter at a time; vectors take Adam's step."""

    def __init__(self, groups: list[dict[str, Any]], **defaults: object) -> None:
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            (b1, b2), eps = group["betas"], group["eps"]
            for x in group["params"]:
                s = self.state[x]
                t = s["t"] = s.get("t", 0) + 1
                m = s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * x.grad
                v = s["v"] = b2 * s.get("v", 0.0) + (1 - b2) * x.grad**2
                u = m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + eps) + group["weight_decay"] * x
                x.sub_(group["lr"] * (x.norm() / u.norm() if x.ndim > 1 else 1.0) * u)


def initial_model() -> nn.Module:
    torch.manual_seed(5)
    return _Small()


def step_batches(step: int) -> tuple[list[Batch], int]:
    """(the micro-batches of the run's step ``step``, padding and all; its samples)."""
    epoch, within = divmod(step, STEPS_PER_EPOCH)
    samples = _LAST if within == STEPS_PER_EPOCH - 1 else 12
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (12, 3, _SIDE, _SIDE), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, _CLASSES, (12,), generator=generator)
    images += (25 * labels)[:, None, None, None].to(torch.uint8)
    numbers = torch.arange(12) + 12 * within
    images[samples:], labels[samples:], numbers[samples:] = 0, -1, -1
    parts = zip(images.split(4), labels.split(4), numbers.split(4), strict=True)
    return [Batch(*part, epoch, within, i) for i, part in enumerate(parts)], samples


# -- the step under test -----------------------------------------------------------------------------------------------


@contextmanager
def alone() -> Iterator[None]:
    """This process as the only rank; afterwards as it was."""
    before = torch.are_deterministic_algorithms_enabled()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
        torch.use_deterministic_algorithms(before)


@contextmanager
def _one_thread() -> Iterator[None]:
    """A model this small only waits for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@_one_thread()
def train_by_stepper(recipe: Recipe, loss_scale: float | None = None) -> Trained:
    """Train as a rank of this process's group; ``sums`` are those of all ranks."""
    weights = balanced_weights(torch.tensor(_SAMPLES_BY_CLASS)) if recipe.loss.class_weights == "balanced" else None
    stepper = Stepper(recipe, initial_model(), torch.device("cpu"), STEPS_PER_EPOCH, class_weights=weights)
    if loss_scale is not None:
        state = stepper.state_tensors()
        stepper.load_state_tensors(state | {"loss_scale/scale": torch.tensor(loss_scale)})
    for step in range(_EPOCHS * STEPS_PER_EPOCH):
        batches, samples = step_batches(step)
        mine = micro_batches_of(dist.get_rank(), dist.get_world_size(), len(batches))
        stepper.run([batches[i] for i in mine], step, samples)
    dist.all_reduce(stepper.totals)
    scale = float(stepper.state_tensors().get("loss_scale/scale", 1.0))
    average = stepper.evaluated_model.state_dict() if recipe.ema else {}
    return Trained(stepper.model.state_dict(), average, stepper.totals.tolist(), scale)


def train_on_two(recipes: Sequence[Recipe], folder: Path) -> list[Trained]:
    """What rank 0 of two has after training each of ``recipes``, in two processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes.spawn(_one_of_two, (port, recipes, folder), nprocs=2)
    return [torch.load(folder / f"{n}.pt", weights_only=False) for n in range(len(recipes))]


def _one_of_two(rank: int, port: int, recipes: Sequence[Recipe], folder: Path) -> None:
    store = dist.TCPStore("127.0.0.1", port, 2, rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for n, recipe in enumerate(recipes):
        torch.use_deterministic_algorithms(False)
        trained = train_by_stepper(recipe)
        if rank == 0:
            torch.save(trained, folder / f"{n}.pt")
    dist.barrier()
    dist.destroy_process_group()


# -- the plain loop ----------------------------------------------------------------------------------------------------


@_one_thread()
def train_plainly(recipe: Recipe, loss_scale: float | None = None) -> Trained:
    """Train on all micro-batches, one after the other, in this process."""
    model = initial_model()
    average = copy.deepcopy(model.state_dict())
    optimizer = _plain_optimizer(recipe, model)
    schedule = _plain_schedule(recipe, optimizer)
    scaler = torch.amp.GradScaler("cpu", enabled=recipe.precision == "float16", **_given(init_scale=loss_scale))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    sums = np.zeros(3)
    for step in range(_EPOCHS * STEPS_PER_EPOCH):
        batches, samples = step_batches(step)
        before = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]  # type: ignore[union-attr]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's name for the mean over the batches since the reset
        optimizer.zero_grad()
        for batch in batches:
            if (batch.numbers >= 0).any():
                loss, correct, count = _plain_loss(recipe, model, batch)
                scaler.scale(loss / samples).backward()
                sums += loss.item(), correct, count
        for norm, momentum, (mean, variance) in zip(norms, momenta, before, strict=True):
            norm.running_mean.mul_(momentum).add_((1 - momentum) * mean)  # type: ignore[union-attr]
            norm.running_var.mul_(momentum).add_((1 - momentum) * variance)  # type: ignore[union-attr]
            norm.num_batches_tracked.fill_(step + 1)  # type: ignore[union-attr]
        if recipe.gradient_clip is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clip)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        for name, value in model.state_dict().items():
            decay = min(recipe.ema.decay, (1 + step) / (10 + step)) if recipe.ema else 0.0
            is_float = value.is_floating_point()
            average[name] = decay * average[name] + (1 - decay) * value if is_float else value.clone()
    scale = scaler.get_scale() if scaler.is_enabled() else 1.0
    return Trained(model.state_dict(), average if recipe.ema else {}, sums.tolist(), scale)


def _plain_loss(recipe: Recipe, model: nn.Module, batch: Batch) -> tuple[Tensor, int, int]:
    """(the micro-batch's loss, summed over its samples, its correct predictions, its samples)."""
    count = int((batch.numbers >= 0).sum())
    place = recipe.seed, batch.epoch, batch.step, batch.micro_batch
    mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (recipe.data.mean, recipe.data.std))
    images, labels = (batch.images[:count] - mean) / std, batch.labels[:count]
    targets = torch.eye(_CLASSES)[labels]
    if alpha := recipe.augmentation.mixup:
        draws = np.random.Generator(np.random.Philox(key_of("mix", *place)))
        draws.random(3)
        lam = draws.beta(alpha, alpha)
        images, targets = (lam * these + (1 - lam) * these.roll(1, 0) for these in (images, targets))
    smoothing = recipe.loss.label_smoothing
    targets = (1 - smoothing) * targets + smoothing / _CLASSES
    torch.manual_seed(key_of("micro-batch", *place))  # of dropout
    dtype = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[recipe.precision]
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        outputs = model(images)
    if recipe.loss.class_weights == "balanced":
        targets *= torch.tensor([sum(_SAMPLES_BY_CLASS) / (_CLASSES * samples) for samples in _SAMPLES_BY_CLASS])
    losses = [-(targets * logits.float().log_softmax(dim=1)).sum() for logits in outputs]
    correct = int((outputs[0].argmax(dim=1) == labels).sum())
    return losses[0] + (recipe.loss.auxiliary_weight or 0.0) * losses[1], correct, count


def _plain_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    chosen = recipe.optimizer
    decays = {True: chosen.weight_decay, False: chosen.weight_decay if chosen.decay_norm_and_bias else 0.0}
    groups = [
        {"params": [p for p in model.parameters() if (p.ndim > 1) is is_matrix], "weight_decay": decay}
        for is_matrix, decay in decays.items()
    ]
    match chosen.name:
        case "sgd":
            nesterov = chosen.nesterov and chosen.momentum > 0  # torch refuses it without momentum
            return torch.optim.SGD(groups, lr=chosen.lr, momentum=chosen.momentum, nesterov=nesterov)
        case "adamw":
            return torch.optim.AdamW(groups, lr=chosen.lr, betas=chosen.betas, eps=chosen.eps)
        case "lamb":
            return _PlainLamb(groups, lr=chosen.lr, betas=chosen.betas, eps=chosen.eps)


def _plain_schedule(recipe: Recipe, optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    """A warm-up of whole steps, and half a cosine."""
    warmup = int(recipe.schedule.warmup_epochs * STEPS_PER_EPOCH)
    end = recipe.schedule.final_lr_ratio * recipe.optimizer.lr
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, recipe.schedule.epochs * STEPS_PER_EPOCH - warmup, eta_min=end)
    if not warmup:
        return cosine
    rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return lr_scheduler.SequentialLR(optimizer, [rise, cosine], [warmup])


def _given(**values: object) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


# -- the comparison ---------------------------------------------------------------------------------------------------


def assert_same_to_rounding(ours: Trained, plain: Trained, precision: str) -> None:
    """Each tensor's distance is at most a small fraction of the way that it went from where it began."""
    begin, within = initial_model().state_dict(), 1e-4 if precision == "float32" else 1e-3
    assert ours.weights.keys() == plain.weights.keys() == begin.keys()
    assert ours.average.keys() == plain.average.keys()
    for what, found, expected in (("weights", ours.weights, plain.weights), ("ema", ours.average, plain.average)):
        far = {f"{what} {name}": _distance(found[name], value, begin[name]) for name, value in expected.items()}
        assert max(far.values(), default=0.0) <= within, {
            name: distance for name, distance in far.items() if distance > within
        }
    assert abs(ours.sums[0] - plain.sums[0]) <= within * plain.sums[0], (ours.sums, plain.sums)
    assert (ours.sums[1:], ours.loss_scale) == (plain.sums[1:], plain.loss_scale)


def _distance(ours: Tensor, plain: Tensor, begin: Tensor) -> float:
    ours, plain, begin = ours.double(), plain.double(), begin.double()
    way = (plain - begin).norm()
    assert way > 0
    return float((ours - plain).norm() / way)
