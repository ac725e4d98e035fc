"""Make the weights of the digits demo: one base, and four fine-tunes of it that each saw their own share of the digits.

The base never sees a label: it learns to tell by how many quarter turns an image was rotated (Gidaris et al. 2018,
arXiv 1803.07728). Writes examples/digits/teacher-00 to -03.safetensors, zoo.json and base/base.safetensors, in about
ten seconds on two cores.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor

from wfcli.core.architectures import build_model, find_architecture, input_config
from wfcli.core.checkpoint import save_state
from wfcli.core.data import DataSpec, augment, load_images, normalise
from wfcli.core.training import BatchOrder, cosine_rate, make_optimiser, repeatable
from wfcli.engine.provenance import made_by
from wfcli.engine.train_teachers import TrainTeachersConfig, train_teachers

FOLDER = Path(__file__).parent / "digits"
ARCHITECTURE = find_architecture("vgg11_bn_cifar", {"width": 0.125})
DIGITS = DataSpec("digits")
STEPS = 300


def train_base() -> dict[str, Tensor]:
    """Train the base on rotated digits and return its state dict."""
    settings = input_config(ARCHITECTURE)
    images = load_images(DIGITS, "teachers", settings.size)
    turned = torch.cat([torch.rot90(images.pixels, quarter, dims=(2, 3)) for quarter in range(4)])
    labels = torch.arange(4).repeat_interleave(len(images))
    model = build_model(ARCHITECTURE, 4).to(memory_format=torch.channels_last).train()
    optimiser = make_optimiser(model, 5e-4)
    order = BatchOrder(len(labels), 128, seed=0)
    for step in range(STEPS):
        chosen = order.indices(step)
        pixels = augment(turned[chosen], order.generator(step), flip=False, pad=2)
        loss = torch.nn.functional.cross_entropy(model(normalise(pixels, settings.mean, settings.std)), labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = cosine_rate(step, STEPS, 0.05, 0.1)
        optimiser.step()
    print(f"base: loss {loss.item():.3f} on the four rotations")
    return model.state_dict()


def main() -> None:
    """Write the base and the four teachers."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    base = FOLDER / "base" / "base.safetensors"
    base.parent.mkdir(parents=True)
    with repeatable(torch.device("cpu")):
        torch.manual_seed(0)
        record = {**made_by("make_digits", ARCHITECTURE, 0), "classes": ["0", "90", "180", "270"]}
        save_state(base, train_base(), record)
    config = TrainTeachersConfig(
        architecture=ARCHITECTURE,
        data=DIGITS,
        count=4,
        output=FOLDER,
        init=str(base),
        epochs=20.0,
        shares="dirichlet",
        concentration=0.3,
        lr=0.02,
        batch_size=32,
        seed=1,
    )
    result = train_teachers(config)
    for teacher in result.zoo["teachers"]:
        print(teacher["file"], teacher["class_counts"], f"validation {teacher['top1']:.3f}")


if __name__ == "__main__":
    main()
