"""Distillation from an ensemble of teachers, step by step, with validation, a log, and a state to resume from."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wfcli.core.architectures import input_config
from wfcli.core.devices import training_autocast
from wfcli.core.images import CROP_PADDING, Images
from wfcli.core.runs import RunLog, load_run, refuse_forgotten, save_run
from wfcli.core.training import (
    BatchOrder,
    Loss,
    accuracy,
    cosine_rate,
    make_optimiser,
    mean_probabilities,
    seed_layers,
    train_step,
    training_batch,
)
from wfcli.engine.hooks import Hooks
from wfcli.errors import WfError

if TYPE_CHECKING:
    from wfcli.engine.finetune import FinetuneConfig

VALIDATIONS = 10
LOG_LINES = 200
PROGRESS_SECONDS = 0.5


def beside(output: Path, ending: str) -> Path:
    """Return the path of what a run leaves beside its output."""
    return output.with_name(output.name + ending)


@dataclass
class Progress:
    """Where a run stands: beside model and optimiser, all that a resumed run needs."""

    step: int = 0
    best_step: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    validation: list[tuple[int, float]] = field(default_factory=list)
    images_seen: int = 0
    seconds: float = 0.0


class Distillation:
    """One run: the student on its way, what it learns from, and where it stands."""

    def __init__(
        self,
        config: FinetuneConfig,
        student: nn.Module,
        ensemble: Sequence[nn.Module],
        images: Images,
        validation: Images,
        device: torch.device,
        hooks: Hooks,
    ) -> None:
        self.config, self.student, self.ensemble, self.device, self.hooks = config, student, ensemble, device, hooks
        self.images, self.validation = images, validation
        self.inputs = input_config(config.architecture)
        assert config.lr is not None  # settled, and so are the next two
        assert config.weight_decay is not None
        assert config.optimiser is not None
        self.lr = config.lr
        self.optimiser = make_optimiser(student, config.weight_decay, config.optimiser)
        self.autocast = training_autocast(device, student)
        self.state = Progress()

    def go(self, provenance: Mapping[str, Any]) -> Progress:
        """Take the steps that are left, validate in between, keep the best; return where it ended.

        Raises:
            WfError: the loss is no longer finite, the run to resume had another `provenance`, or this one, and was
                not asked for.
            CheckpointError: the state to resume from is damaged.
        """
        config, state = self.config, self.state
        resume_path = beside(config.output, ".resume")
        if not config.resume:
            refuse_forgotten(resume_path, provenance)
        resumed = config.resume and self._restore(load_run(resume_path, provenance))
        order = BatchOrder(len(self.images), config.batch_size, config.seed)
        every = config.validate_every or max(1, -(-config.steps // VALIDATIONS))
        log_every = max(1, config.steps // LOG_LINES)
        seen_before, seconds_before = state.images_seen, state.seconds
        began = told = time.monotonic()
        with RunLog(beside(config.output, ".log.jsonl"), state.step if resumed else None) as log:
            if not resumed:
                self._validate(log)
            for step in range(state.step, config.steps):
                value, rate = self._step(step, order)
                now = time.monotonic()
                state.seconds = seconds_before + now - began
                speed = (state.images_seen - seen_before) / max(now - began, 1e-9)
                due = state.step % every == 0 or state.step == config.steps
                if due or state.step % log_every == 0:
                    _check_finite(value, state.step)
                    log.write(state.step, loss=float(value), rate=rate, images_per_second=round(speed, 1))
                if due or now - told > PROGRESS_SECONDS:
                    told = now
                    figures = {"loss": float(value), "images_per_second": speed, "top1": state.validation[-1][1]}
                    self.hooks.progress("finetune", state.step, config.steps, **figures)
                if due:
                    self._validate(log)
                    state.seconds = seconds_before + time.monotonic() - began
                    save_run(resume_path, provenance, self._parts())
        return state

    def _step(self, step: int, order: BatchOrder) -> tuple[Tensor, float]:
        """Take one step; return the loss before it and its learning rate."""
        config = self.config
        x, y = training_batch(self.images, order, step, self.inputs, CROP_PADDING[self.images.flip][1], self.device)
        seed_layers(config.seed, step)
        rate = cosine_rate(step, config.steps, self.lr, config.warmup)
        loss = Loss(config.ce_weight, config.distill_weight, config.temperature)
        self.student.train()
        wanted = None
        if self.ensemble:
            with self.autocast:
                wanted = mean_probabilities(self.ensemble, x, config.temperature)
        value = train_step(
            self.student, self.optimiser, x, y, rate=rate, loss=loss, wanted=wanted, autocast=self.autocast
        )
        self.state.step, self.state.images_seen = step + 1, self.state.images_seen + len(y)
        return value, rate

    def _validate(self, log: RunLog) -> None:
        """Score the student; remember it where it is better than all before (of equals the earlier one)."""
        state = self.state
        top1 = accuracy(self.student, self.validation, self.inputs, device=self.device, autocast=self.autocast)
        if not state.validation or top1 > max(score for _, score in state.validation):
            state.best = {key: value.detach().cpu().clone() for key, value in self.student.state_dict().items()}
            state.best_step = state.step
        state.validation.append((state.step, top1))
        log.write(state.step, validation_top1=top1, best_step=state.best_step)

    def _parts(self) -> dict[str, Any]:
        return {
            "state": vars(self.state),
            "student": self.student.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def _restore(self, parts: Mapping[str, Any] | None) -> bool:
        if parts is None:
            path = beside(self.config.output, ".resume")
            self.hooks.warn(f"{path}: not there, nothing to resume: starting from the beginning")
            return False
        self.student.load_state_dict(parts["student"])
        self.optimiser.load_state_dict(parts["optimiser"])
        vars(self.state).update(parts["state"])
        return True


def _check_finite(value: Tensor, step: int) -> None:
    if not value.isfinite():
        raise WfError(f"the loss is {float(value)} after step {step}", hint="lower --lr")
