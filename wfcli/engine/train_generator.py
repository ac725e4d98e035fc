"""Train a generator: random subsets of teachers, the student's own forward pass, gradients through it into the generator.

K teachers of a zoo, T of them in a step's subset, B images of a step, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wfcli.core.curriculum import Ground, distillation_loss, generate_subset, student_logits
from wfcli.core.devices import pick_device
from wfcli.core.generator import PRESETS, Frame, WeightFormer, WeightFormerConfig, fingerprint
from wfcli.core.generator_files import save_generator
from wfcli.core.methods import soup_tensor
from wfcli.core.outputs import check_writable
from wfcli.core.runs import RunLog, load_run, save_run
from wfcli.core.training import cosine_rate, seed_for
from wfcli.core.zoo import Zoo, read_zoo
from wfcli.engine.cards import generator_card
from wfcli.engine.grounds import hold_out, read_ground
from wfcli.engine.hooks import Hooks, Silent
from wfcli.errors import GeneratorError

CE_WEIGHT = 1.0
GRADIENT_NORM = 1.0
WARMUP = 0.05
PRIOR_RATE = 0.05  # of the learning rate: the prior is in the unit of weights
VALIDATIONS = 10  # per run
LOG = "training.jsonl"
RESUME = "resume.pt"
RAW_LIMIT = 4608  # token widths above this get no raw-row embedder: 512 channels of 3 x 3


@dataclass(frozen=True)
class TrainGeneratorConfig:
    """Options of `wfcli train-generator`."""

    zoos: tuple[Path, ...]
    output: Path
    preset: str = "universal"
    steps: int = 1000
    batch_size: int = 256
    lr: float = 2e-3
    max_teachers: int = 8
    teachers: str | None = None  # "0-9": which teachers of each zoo, by number; None for all
    seed: int = 0
    device: str = "auto"
    resume: bool = False


@dataclass(frozen=True)
class TrainGeneratorResult:
    """What a training gave; accuracies and gains 0..1 on held-out teachers and validation images."""

    folder: Path
    digest: str
    parameters: int
    steps: int
    best_step: int
    gain: float  # over the soup, mean of calibrated and data-free
    history: tuple[dict[str, float], ...]
    seconds: float


def train_generator(config: TrainGeneratorConfig, hooks: Hooks | None = None) -> TrainGeneratorResult:
    """Train a generator and write it to `config.output`: config.json, model.safetensors, README.md, training.jsonl.

    The best generator on held-out teachers is kept: whole zoos are held out where there are four or more, else a fifth of each zoo's
    teachers. A resumed run ends as if it had not been interrupted.

    Raises:
        GeneratorError: an unknown preset, too few teachers, or zoos that do not fit the preset.
        SourceError, CheckpointError, DataError: a zoo, its teachers or its images cannot be read.
        OutputError: the folder cannot be written.
    """
    hooks = hooks or Silent()
    started = time.perf_counter()
    if config.preset not in PRESETS:
        raise GeneratorError(f"unknown preset {config.preset!r}", hint=f"use one of {', '.join(PRESETS)}")
    device = pick_device(config.device)
    zoos = [read_zoo(folder) for folder in config.zoos]
    _check_preset(config.preset, zoos)
    config.output.mkdir(parents=True, exist_ok=True)
    check_writable(config.output / LOG)
    grounds = []
    for number, zoo in enumerate(zoos):
        hooks.progress("reading zoos", number, len(zoos))
        held = hold_out(number, len(zoos))
        grounds.append(read_ground(zoo, held, config.teachers, seed_for(config.seed, 1, number), device))
    hooks.progress("reading zoos", len(zoos), len(zoos))
    torch.manual_seed(seed_for(config.seed, 2))
    generator = build_generator(config.preset, zoos, grounds).to(device)
    run = Run(config, generator, grounds, device)
    run.train(hooks)
    generator.load_state_dict(run.best_state)
    best = max(run.history, key=lambda row: (row["gain"], -row["step"]))
    digest = save_generator(config.output, generator, generator_card(generator, zoos, best, config))
    (config.output / RESUME).unlink(missing_ok=True)
    parameters = sum(p.numel() for p in generator.parameters())
    seconds = time.perf_counter() - started
    return TrainGeneratorResult(
        config.output, digest, parameters, config.steps, int(best["step"]), best["gain"], tuple(run.history), seconds
    )


def build_generator(preset: str, zoos: Sequence[Zoo], grounds: Sequence[Ground]) -> WeightFormer:
    """Build an untrained generator for these zoos: it gives the soup."""
    config = WeightFormerConfig(
        preset=preset,
        norms=tuple(sorted({norm for ground in grounds for norm in ground.plan.norms or {"none"}})),
        knowledge=tuple(sorted({"same" if zoo.shares["kind"] == "same" else "split" for zoo in zoos})),
        trained_on=tuple(sorted({zoo.architecture.label for zoo in zoos})),
    )
    if preset == "weightformer":
        stacks = [tokens.weight for ground in grounds for _, tokens, _ in ground.layers if tokens.weight is not None]
        widths = sorted({stack.flatten(2).shape[2] for stack in stacks})
        return WeightFormer(replace(config, raw_widths=tuple(width for width in widths if width <= RAW_LIMIT)))
    if preset == "universal":
        return WeightFormer(config)
    zoo, ground = zoos[0], grounds[0]
    mean = {name: tensor for name, tensor in _soup(ground, tuple(range(len(ground.train.log_probs)))).items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in mean.items() if tensor.is_floating_point()}
    anchors = tuple(
        spec.weight for spec in ground.plan.specs if spec.kind in ("conv", "linear") and spec.weight is not None
    )
    frame = Frame(zoo.architecture.label, zoo.class_names, shapes, anchors, str((zoo.base or {}).get("name", "")))
    generator = WeightFormer(replace(config, frame=frame))
    generator.fingerprint.copy_(fingerprint(mean, anchors))
    return generator


class Run:
    """The state of one training: what `--resume` needs to go on, and the history."""

    def __init__(
        self, config: TrainGeneratorConfig, generator: WeightFormer, grounds: Sequence[Ground], device: torch.device
    ) -> None:
        self.config, self.generator, self.grounds, self.device = config, generator, grounds, device
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.best_gain = float("-inf")
        self.best_state = _copy(generator)
        prior = list(generator.prior.parameters())
        rest = [p for name, p in generator.named_parameters() if not name.startswith("prior.")]
        groups = [{"params": rest, "factor": 1.0, "weight_decay": 1e-2}]
        if prior:
            groups.append({"params": prior, "factor": PRIOR_RATE, "weight_decay": 0.0})
        self.optimiser = torch.optim.AdamW(groups, lr=config.lr)
        self.checked = [ground for ground in grounds if ground.held_out]
        self.baselines = [_accuracies(ground, [_soup(ground, s) for s in _subsets(ground)]) for ground in self.checked]

    def train(self, hooks: Hooks) -> None:
        """Run all steps, or those that are left."""
        every = max(1, self.config.steps // VALIDATIONS)
        if self.config.resume:
            self._resume()
        with RunLog(self.config.output / LOG, keep_until=self.step if self.step else None) as log:
            if self.step == 0:
                log.write(**self._validate())
            losses: list[float] = []
            while self.step < self.config.steps:
                losses.append(self._step())
                self.step += 1
                if self.step % every == 0 or self.step == self.config.steps:
                    log.write(**self._validate(loss=sum(losses) / len(losses)))
                    losses = losses[-1:]
                    self._save()
                figures = {"loss": losses[-1], "gain": self.history[-1]["gain"]}
                hooks.progress("training the generator", self.step, self.config.steps, **figures)

    def _step(self) -> float:
        # All of a step follows from the seed and its number: a resumed run is the same run.
        draw = torch.Generator().manual_seed(seed_for(self.config.seed, 3, self.step))
        usable = [ground for ground in self.grounds if len(ground.teachers) >= 2]
        ground = usable[_integer(draw, len(usable))]
        most = min(self.config.max_teachers, len(ground.teachers))
        size = 2 + _integer(draw, most - 1)
        index = torch.tensor(ground.teachers)[torch.randperm(len(ground.teachers), generator=draw)[:size]].to(
            self.device
        )
        batch = torch.randint(len(ground.train.labels), (self.config.batch_size,), generator=draw).to(self.device)
        batch_statistics = bool(_integer(draw, 2))
        student = generate_subset(self.generator, ground, index)
        logits = student_logits(ground, student, ground.train.pixels[batch], batch_statistics)
        wanted = ground.train.log_probs[index][:, batch].logsumexp(0) - torch.tensor(float(size)).log()
        loss = distillation_loss(logits, wanted, ground.train.labels[batch], CE_WEIGHT)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.generator.parameters(), GRADIENT_NORM)
        for group in self.optimiser.param_groups:
            group["lr"] = group["factor"] * cosine_rate(self.step, self.config.steps, self.config.lr, WARMUP)
        self.optimiser.step()
        return float(loss.detach())

    @torch.no_grad()
    def _validate(self, **figures: float) -> dict[str, Any]:
        self.generator.eval()
        rows = []
        for ground, soup in zip(self.checked, self.baselines, strict=True):
            students = [
                generate_subset(self.generator, ground, torch.tensor(s, device=self.device)) for s in _subsets(ground)
            ]
            found = _accuracies(ground, students)
            rows.append({**found, "soup_calibrated": soup["calibrated"], "soup_data_free": soup["data_free"]})
        mean = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
        gain = (mean["calibrated"] - mean["soup_calibrated"] + mean["data_free"] - mean["soup_data_free"]) / 2
        self.history.append({"step": self.step, **figures, "gain": gain, **mean})
        if gain > self.best_gain:
            self.best_gain, self.best_state = gain, _copy(self.generator)
        self.generator.train()
        return self.history[-1]

    def _save(self) -> None:
        parts = {
            "step": self.step,
            "history": self.history,
            "best": self.best_state,
            "generator": self.generator.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        save_run(self.config.output / RESUME, self._identity(), parts)

    def _resume(self) -> None:
        parts = load_run(self.config.output / RESUME, self._identity())
        if parts is None:
            return
        self.step, self.history, self.best_state = parts["step"], parts["history"], parts["best"]
        self.best_gain = max(row["gain"] for row in self.history)
        self.generator.load_state_dict(parts["generator"])
        self.optimiser.load_state_dict(parts["optimiser"])

    def _identity(self) -> dict[str, Any]:
        """Return all that decides about the result, besides the code."""
        options = {
            key: value
            for key, value in asdict(self.config).items()
            if key not in ("zoos", "output", "device", "resume")
        }
        return {**options, "teachers": [ground.digests for ground in self.grounds]}


def _check_preset(preset: str, zoos: Sequence[Zoo]) -> None:
    kinds = {(zoo.architecture.label, zoo.class_names, (zoo.base or {}).get("sha256")) for zoo in zoos}
    if preset == "specialised" and len(kinds) > 1:
        raise GeneratorError(
            *(
                f"{z.folder}: {z.architecture.label}, {len(z.class_names)} classes, base {(z.base or {}).get('name')}"
                for z in zoos
            ),
            hint="a specialised generator belongs to one base, architecture and set of classes; use --preset universal",
        )


def _subsets(ground: Ground) -> list[tuple[int, ...]]:
    """Return the fixed validation subsets of a ground: three of the held-out teachers, and up to eight of them."""
    held = ground.held_out
    return sorted({held[:3], held[-3:], held[:8]})


def _soup(ground: Ground, subset: Sequence[int]) -> dict[str, Tensor]:
    index = list(subset)
    student = dict(ground.constants)
    for spec, tokens, _ in ground.layers:
        stacks: list[tuple[str | None, Tensor | None]] = [
            (spec.weight, tokens.weight),
            *zip(spec.affines, tokens.affines, strict=True),
        ]
        if tokens.running is not None:
            stacks += [(spec.running_mean, tokens.running[0]), (spec.running_var, tokens.running[1])]
        for name, stack in stacks:
            if name is not None and stack is not None:
                student[name] = soup_tensor(stack[i] for i in index)
    return {name: t.reshape(ground.shapes[name]) for name, t in student.items()}


@torch.no_grad()
def _accuracies(ground: Ground, students: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Return the mean top-1 of students on the validation images, with batch statistics (as if calibrated) and data-free."""
    pool = ground.validation
    found = {}
    for key, batch_statistics in (("calibrated", True), ("data_free", False)):
        right = [
            (student_logits(ground, student, pool.pixels, batch_statistics).argmax(1) == pool.labels).float().mean()
            for student in students
        ]
        found[key] = float(torch.stack(right).mean())
    return found


def _copy(generator: WeightFormer) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in generator.state_dict().items()}


def _integer(draw: torch.Generator, below: int) -> int:
    return int(torch.randint(below, (), generator=draw))
