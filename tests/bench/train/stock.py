"""The same training as a stock Ray Train script: python stock.py '{"name": …, …}'; settings are Ray's defaults.

ResNet-18 from a WebDataset in S3 under TorchTrainer, after Ray's own guides: ``prepare_model``, reports with a
checkpoint every so many steps, ``get_checkpoint`` at the start, a run name that continues. Torchvision is imported
by the workers only, as a careful user would.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode, urlsplit

import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def train_loop(config: dict[str, Any]) -> None:
    """What each worker runs."""
    import fsspec
    from torchvision.io import decode_image
    from torchvision.models import resnet18
    from torchvision.transforms import v2

    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    model = ray.train.torch.prepare_model(resnet18(num_classes=config["classes"]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    os.makedirs(config["trace_dir"], exist_ok=True)
    trace = open(f"{config['trace_dir']}/{time.time_ns()}-{os.getpid()}-rank{rank}.jsonl", "a")  # noqa: SIM115
    step = 0
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            state = torch.load(f"{folder}/state.pt", weights_only=True)
        model.module.load_state_dict(state["model"]) if world_size > 1 else model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]

    shape = v2.Compose([v2.RandomResizedCrop(config["side"], antialias=True), v2.RandomHorizontalFlip()])
    to_float = v2.Compose(
        [v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    )

    def samples() -> Iterator[tuple[torch.Tensor, int]]:
        store = fsspec.filesystem("s3")
        shards = sorted(store.glob(f"{config['data']}/train/*.tar"))
        while True:
            for shard in shards:
                with tarfile.open(fileobj=io.BytesIO(store.cat_file(shard))) as tar:
                    members = [member for member in tar if member.name.endswith(".jpg")]
                    for member in members[rank::world_size]:
                        label = int(tar.extractfile(f"{member.name[:-4]}.cls").read())
                        pixels = torch.frombuffer(bytearray(tar.extractfile(member).read()), dtype=torch.uint8)
                        yield shape(decode_image(pixels, "RGB")), label

    stream = samples()
    while step < config["steps"]:
        batch = [next(stream) for _ in range(config["batch"] // world_size)]
        images, labels = to_float(torch.stack([image for image, _ in batch])), torch.tensor([n for _, n in batch])
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        trace.write(json.dumps({"step": step}) + "\n")
        trace.flush()
        if step % config["checkpoint_every"] == 0:
            with tempfile.TemporaryDirectory() as folder:
                if rank == 0:
                    module = model.module if world_size > 1 else model
                    state = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                    torch.save(state, f"{folder}/state.pt")
                made = ray.train.Checkpoint.from_directory(folder) if rank == 0 else None
                ray.train.report({"loss": loss.item()}, checkpoint=made)


def main(config: dict[str, Any]) -> None:
    endpoint = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    where = urlencode(
        {"endpoint_override": endpoint.netloc, "scheme": endpoint.scheme, "region": "us-east-1"}, safe=":"
    )
    TorchTrainer(
        train_loop,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=tuple(config["workers"]) if config["elastic"] else 2),
        run_config=RunConfig(
            name=config["name"],
            storage_path=f"{config['storage']}?{where}",
            failure_config=FailureConfig(max_failures=3),
        ),
    ).fit()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
