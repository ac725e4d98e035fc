"""The steps of training a generator: random subsets of teachers, gradients through the student into the generator.

T teachers in a step's subset, B images of a step, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wfcli.core.curriculum import (
    Ground,
    agreement,
    distillation_loss,
    generate_subset,
    pick_net,
    soup_subset,
    student_logits,
)
from wfcli.core.generator import WeightFormer
from wfcli.core.generator_files import RESUME
from wfcli.core.runs import RunLog, load_run, refuse_forgotten, save_run
from wfcli.core.training import cosine_rate, seed_for
from wfcli.engine.hooks import Hooks
from wfcli.engine.team import Team
from wfcli.errors import WfError

if TYPE_CHECKING:
    from wfcli.engine.train_generator import TrainGeneratorConfig

CE_WEIGHT = 1.0
LEAST_CLASSES = 3
GRADIENT_NORM = 1.0
WARMUP = 0.05
PRIOR_RATE = 0.05  # of the learning rate: the prior is in the unit of weights
VALIDATIONS = 10  # per run
PIXELS_AT_ONCE = 2000 * 32 * 32  # of images that are validated on
LOG = "training.jsonl"


class GeneratorRun:
    """One training: what a resumed one needs to go on, and the history. Accuracies and gains are 0..1."""

    def __init__(
        self,
        config: TrainGeneratorConfig,
        generator: WeightFormer,
        grounds: Sequence[Ground],
        team: Team,
        hooks: Hooks,
        first: str = "",  # digest of the generator it starts from
    ) -> None:
        self.config, self.generator, self.team, self.hooks, self.first = config, generator, team, hooks, first
        self.device = team.device
        self.pairs = config.accumulate or team.size  # of teachers and images, in each step, of all processes
        given = config.shift_weight
        self.shift_weight = config.kind.shift_weight if given is None else given
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.best_state = _copy(generator)
        for name, parameter in generator.named_parameters():
            parameter.requires_grad_(config.train in ("all", "prior" if name.startswith("prior.") else "mixing"))
        prior = [p for p in generator.prior.parameters() if p.requires_grad]
        rest = [p for n, p in generator.named_parameters() if p.requires_grad and not n.startswith("prior.")]
        groups = [
            {"params": rest, "factor": 1.0, "weight_decay": 1e-2},
            {"params": prior, "factor": PRIOR_RATE, "weight_decay": 0.0},
        ]
        self.moved = [*rest, *prior]
        self.optimiser = torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr)
        self.digests = [ground.digests for ground in grounds]
        self.trained = [ground for ground in grounds if ground.teachers]
        self.checked = [ground for ground in grounds if ground.held_out]
        self.channels = [ground.channels for ground in self.trained]
        self.soups = [self._accuracies(g, [soup_subset(g, index) for index in self._subsets(g)]) for g in self.checked]

    @property
    def best(self) -> dict[str, float]:
        """The validation with the highest gain over the soup, of equals the earliest."""
        return max(self.history, key=lambda row: (row["gain"], -row["step"]))

    def go(self) -> None:
        """Take the steps that are left, validate in between, keep the best.

        Raises:
            WfError: the loss is no longer finite, the run to resume had other options or teachers, or the same, and was
                not asked for.
            CheckpointError: the state to resume from is damaged.
        """
        steps = self.config.steps
        every = max(1, steps // VALIDATIONS)
        if not self.config.resume:
            refuse_forgotten(self.config.output / RESUME, self._identity())
        resumed = self.config.resume and self._restore()
        main = self.team.is_main
        log = RunLog(self.config.output / LOG, keep_until=self.step if resumed else None) if main else None
        with log or nullcontext():
            if not resumed and log is not None:
                log.write(**self._validate())
            losses: list[float] = []
            for step in range(self.step, steps):
                loss = self._step()
                losses.append(loss)
                self.step = step + 1
                if log is None:
                    continue
                if self.step % every == 0 or self.step == steps:
                    log.write(**self._validate(loss=sum(losses) / len(losses)))
                    losses = []
                    save_run(self.config.output / RESUME, self._identity(), self._parts())
                figures = {"loss": loss, "gain": self.history[-1]["gain"]}
                self.hooks.progress("training the generator", self.step, steps, **figures)

    def _step(self) -> float:
        """Take one step and return the loss before it, the mean over this process's pairs."""
        self.optimiser.zero_grad(set_to_none=True)
        own = range(self.team.rank, self.pairs, self.team.size)
        value = 0.0
        for pair in own:
            loss = self._loss(pair) / len(own)
            loss.backward()  # type: ignore[no-untyped-call]
            value += float(loss.detach())
        self.team.average_gradients(self.moved)
        norm = torch.nn.utils.clip_grad_norm_(self.moved, GRADIENT_NORM)
        for group in self.optimiser.param_groups:
            group["lr"] = group["factor"] * cosine_rate(self.step, self.config.steps, self.config.lr, WARMUP)
        self.optimiser.step()
        if not (math.isfinite(value) and norm.isfinite()):  # the norm is of all processes: they stop together
            raise WfError(f"the loss is {value} at step {self.step + 1}", hint="lower --lr")
        return value

    def _loss(self, pair: int) -> Tensor:
        """Return the loss of one pair of this step: some teachers of a ground and the student they give on a batch."""
        # All of a step follows from the seed and its number: a resumed run is the same run, and so is one in parallel.
        draw = torch.Generator().manual_seed(seed_for(self.config.seed, 3, self.step, *([pair] if pair else [])))
        ground = self.trained[pick_net(self.channels, draw)]
        most = min(self.config.max_teachers, len(ground.teachers))
        size = 2 + _integer(draw, most - 1)
        places = torch.randperm(len(ground.teachers), generator=draw)[:size]
        index = torch.tensor(ground.teachers)[places].to(self.device)
        batch, labels, classes = self._draw_images(ground, draw)
        batch_statistics = bool(_integer(draw, 2))
        student = generate_subset(self.generator, ground, index, classes)
        logits = student_logits(ground, student, ground.train.pixels[batch], batch_statistics)
        loss = distillation_loss(logits, ground.train.wanted(index, batch, classes), labels, CE_WEIGHT)
        if self.shift_weight and size > 2:
            # Shift consistency (2210.01973): without one of the teachers the student is nearly the same.
            keep = torch.arange(size) != _integer(draw, size)
            cut = generate_subset(self.generator, ground, index[keep.to(self.device)], classes)
            others = student_logits(ground, cut, ground.train.pixels[batch], batch_statistics)
            loss = loss + self.shift_weight * agreement(logits, others)
        return loss

    def _draw_images(self, ground: Ground, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return numbers of images [B], their labels [B] and, half of the time, the few classes of this step's task.

        There are few tasks, and many parts of them. A prior belongs to all classes.
        """
        labels, classes = ground.train.labels, None
        images = torch.arange(len(labels), device=self.device)
        if _integer(draw, 2) and ground.divisible and not self.generator.prior:
            number = int(labels.max()) + 1
            some = LEAST_CLASSES + _integer(draw, max(1, number - LEAST_CLASSES))
            chosen = torch.randperm(number, generator=draw)[:some].to(self.device)
            of_them = torch.isin(labels, chosen).nonzero()[:, 0]
            if len(of_them):  # a tiny pool may lack all of them
                images, classes = of_them, chosen
        batch = images[torch.randint(len(images), (self.config.batch_size,), generator=draw).to(self.device)]
        if classes is None:
            return batch, labels[batch], None
        return batch, (labels[batch][:, None] == classes).int().argmax(1), classes

    @torch.no_grad()
    def _validate(self, **figures: float) -> dict[str, Any]:
        """Measure the generator on the held-out teachers, beside their soup; remember it where it is the best."""
        self.generator.eval()
        rows = []
        for ground, soup in zip(self.checked, self.soups, strict=True):
            students = [generate_subset(self.generator, ground, index) for index in self._subsets(ground)]
            rows.append({**self._accuracies(ground, students), **{f"soup_{key}": value for key, value in soup.items()}})
        mean = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
        gain = (mean["calibrated"] - mean["soup_calibrated"] + mean["data_free"] - mean["soup_data_free"]) / 2
        self.history.append({"step": self.step, **figures, "gain": gain, **mean})
        if self.best is self.history[-1]:
            self.best_state = _copy(self.generator)
        self.generator.train()
        return self.history[-1]

    def _accuracies(self, ground: Ground, students: Sequence[dict[str, Tensor]]) -> dict[str, float]:
        # Small images all at once. Large ones as many as in a step, which takes more memory, and BatchNorm then has the
        # statistics it is trained with.
        return _accuracies(ground, students, max(self.config.batch_size, PIXELS_AT_ONCE // ground.settings.size**2))

    def _subsets(self, ground: Ground) -> list[Tensor]:
        """Return the fixed validation subsets of a ground: three of the held-out teachers, and up to eight of them."""
        held = ground.held_out
        return [torch.tensor(subset, device=self.device) for subset in sorted({held[:3], held[-3:], held[:8]})]

    def _parts(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "history": self.history,
            "best": self.best_state,
            "generator": self.generator.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def _restore(self) -> bool:
        path = self.config.output / RESUME
        parts = self.team.from_main(load_run(path, self._identity()) if self.team.is_main else None)
        if parts is None:
            self.hooks.warn(f"{path}: not there, nothing to resume: starting from the beginning")
            return False
        self.step, self.history, self.best_state = parts["step"], parts["history"], parts["best"]
        self.generator.load_state_dict(parts["generator"])
        self.optimiser.load_state_dict(parts["optimiser"])
        return True

    def _identity(self) -> dict[str, Any]:
        """Return all that decides about the result, besides the code."""
        free = ("zoos", "output", "device", "resume")
        options = {key: value for key, value in asdict(self.config).items() if key not in free}
        return {**options, "accumulate": self.pairs, "teachers": self.digests, "init": self.first}


@torch.no_grad()
def _accuracies(ground: Ground, students: Sequence[dict[str, Tensor]], at_once: int) -> dict[str, float]:
    """Return the mean top-1 of students on the validation images, as if calibrated and data-free.

    The images are divided into parts of `at_once` at most, all of one size but for an image: none lacks statistics.
    """
    pool = ground.validation
    everyone = torch.arange(len(pool.labels), device=pool.labels.device)
    parts = everyone.tensor_split(-(-len(everyone) // at_once))
    found = {}
    for key, batch_statistics in (("calibrated", True), ("data_free", False)):
        right = []
        for student in students:
            logits = [student_logits(ground, student, pool.pixels[part], batch_statistics) for part in parts]
            right.append((torch.cat(logits).argmax(1) == pool.labels).float().mean())
        found[key] = float(torch.stack(right).mean())
    return found


def _copy(generator: WeightFormer) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in generator.state_dict().items()}


def _integer(draw: torch.Generator, below: int) -> int:
    return int(torch.randint(below, (), generator=draw))
