"""The commands: options -> config -> verb -> report. `cli` puts them together.

Nothing heavy is imported before a command runs: `wfcli --help` loads neither torch nor timm nor datasets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from wfcli import html_report, pipes, report, terminal
from wfcli import options as opt
from wfcli.typed import as_typed
from wfcli.units import parse_size

if TYPE_CHECKING:
    from rich.console import RenderableType

    from wfcli.core.architectures import Architecture
    from wfcli.core.data import DataSpec
    from wfcli.engine.hooks import Hooks

C = TypeVar("C")
R = TypeVar("R")


def _run(
    verb: Callable[[C, Hooks], R],
    config: C,
    draw: Callable[[R], RenderableType],
    as_json: bool,
    aside: bool = False,
    then: Callable[[R], None] | None = None,
) -> None:
    with terminal.TerminalHooks() as hooks:
        result = verb(config, hooks)
    if aside:  # stdout has something else to take
        terminal.write(draw(result), aside=True)
    else:
        _show(result, draw, as_json)
    if then is not None:
        then(result)


def _show(result: R, draw: Callable[[R], RenderableType], as_json: bool) -> None:
    terminal.write(report.as_json(result) if as_json else draw(result))


def _page(
    file: Path | None, write: Callable[[R, html_report.About], str], context: typer.Context
) -> Callable[[R], None] | None:
    """Return what makes a page of a result, once that is shown; None where none is wanted."""
    if file is None or not terminal.SPEAKS:
        return None

    def then(result: R) -> None:
        about = html_report.About(as_typed(context), html_report.today())
        html_report.write_report(file, write(result, about))

    return then


def _architecture(name: str, args: list[str] | None) -> Architecture:
    from wfcli.core.architectures import find_architecture, parse_arch_args

    return find_architecture(name, parse_arch_args(args or []))


def _net_of(
    name: str | None, args: list[str] | None, sources: list[str], others: list[str] | None = None
) -> tuple[Architecture, list[str], list[str]]:
    """Return the architecture and the sources; without --arch, the architecture that they name themselves."""
    if name is not None:
        return _architecture(name, args), sources, others or []
    if args:
        raise typer.BadParameter("--arch-arg goes with --arch, which is missing")
    from wfcli.engine.own_architecture import architecture_of

    with terminal.TerminalHooks() as hooks:
        told = architecture_of([*sources, *(others or [])], hooks)
    return told.architecture, told.at(sources), told.at(others)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"--weights: got {text!r}, expected numbers: 1,2,0.5") from None


def _size(text: str) -> int:
    try:
        size = parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(f"--max-shard-size: {error}") from None
    if size < 1:
        raise typer.BadParameter("--max-shard-size: expected at least one byte")
    return size


def _counts(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words("--counts", text))
    except ValueError:
        raise typer.BadParameter(f"--counts: got {text!r}, expected whole numbers: 3,6") from None


def _words(flag: str, text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    words = tuple(word.strip() for word in text.split(","))
    if not all(words):
        raise typer.BadParameter(f"{flag}: got {text!r}, expected words with commas between them")
    return words


def _pairs(texts: list[str]) -> Iterator[tuple[str, float]]:
    for text in texts:
        name, _, value = text.partition("=")
        try:
            yield name.strip(), float(value)
        except ValueError:
            raise typer.BadParameter(f"--param: got {text!r}, expected a name and a number: density=0.2") from None


def _data(source: str, label_column: str | None, classes: str | None) -> DataSpec:
    from wfcli.core.data import DataSpec

    return DataSpec(source, label_column, classes)


def fuse(
    checkpoints: opt.CheckpointsArgument,
    output: opt.OutputFile,
    arch: opt.OwnArchitectureOption = None,
    arch_arg: opt.ArchitectureArgs = None,
    method: opt.MethodOption = "weightformer",
    generator: opt.GeneratorOption = None,
    base: opt.BaseOption = None,
    weights: opt.TeacherWeights = None,
    param: opt.ParamOption = None,
    set_: opt.SetOption = None,
    heads: opt.HeadsOption = None,
    candidates: opt.CandidatesOption = None,
    time_budget: opt.TimeBudget = None,
    data: opt.OptionalDataOption = None,
    split: opt.SplitOption = "test",
    label_column: opt.LabelColumn = None,
    classes: opt.ClassesOption = None,
    calibration_images: opt.CalibrationImages = 4096,
    batch_size: opt.EvaluationBatch = 500,
    dtype: opt.DtypeOption = "keep",
    max_shard_size: opt.MaxShardSize = None,
    align: opt.AlignOption = "auto",
    guard: opt.GuardOption = True,
    probes: opt.ProbesOption = 0,
    unlabelled: opt.UnlabelledOption = None,
    images: opt.ImagesOption = 1000,
    distill_steps: opt.DistillSteps = 100,
    distill_lr: opt.DistillRate = None,
    recipe: opt.RecipeOption = None,  # its options are defaults by now
    seed: opt.SeedOption = 0,
    device: opt.DeviceOption = "auto",
    page: opt.ReportOption = None,
    as_json: opt.JsonOption = False,
    context: typer.Context = None,  # type: ignore[assignment]
) -> None:
    """Fuse teachers into one student.

    With --data its BatchNorm is calibrated and the table of [bold]wfcli eval[/] is printed; with --unlabelled it
    learns from images without labels.

    \b
    Example:
      wfcli fuse teacher*.safetensors --arch vit_b_32 -o student.safetensors
    """
    of_data = ("split", "label_column", "classes", "calibration_images", "batch_size", "page")
    if data is None and (given := _given(context, *of_data)):
        raise typer.BadParameter(f"{', '.join(given)}: of no use without --data")
    if unlabelled is None and (given := _given(context, "images", "distill_steps", "distill_lr")):
        raise typer.BadParameter(f"{', '.join(given)}: of no use without --unlabelled")
    if heads is not None and (given := _given(context, "distill_steps", "distill_lr")):
        raise typer.BadParameter(f"{', '.join(given)}: of no use with --heads, whose teachers do not answer together")
    if not guard and method not in ("weightformer", "auto"):
        raise typer.BadParameter(f"--no-guard goes with --method weightformer, got --method {method}")
    piped = output == pipes.STDOUT
    if piped:
        pipes.check_stdout(as_json, max_shard_size is not None)
    html_report.check_report(page)
    (checkpoints,) = pipes.read_names(checkpoints)
    architecture, checkpoints, _ = _net_of(arch, arch_arg, checkpoints)
    from wfcli.engine import fuse as engine
    from wfcli.engine.filters import rules_of

    config = engine.FuseConfig(
        teachers=tuple(checkpoints),
        architecture=architecture,
        output=output,
        method=method,
        generator=generator,
        base=base,
        weights=None if weights is None else _numbers(weights),
        params=tuple(_pairs(param or [])),
        rules=rules_of(set_ or []),
        heads=heads,
        methods=_words("--methods", candidates),
        time_budget=time_budget,
        data=None if data is None else _data(data, label_column, classes),
        split=split,
        calibration_images=calibration_images,
        batch_size=batch_size,
        seed=seed,
        device=device,
        dtype=dtype,
        max_shard_size=None if max_shard_size is None else _size(max_shard_size),
        align=align,
        guard=guard,
        probes=probes,
        unlabelled=unlabelled,
        images=images,
        distill_steps=distill_steps,
        distill_lr=distill_lr,
        pictures=page is not None,
    )
    then = _page(page, html_report.fused, context)
    _run(pipes.to_stdout(engine.fuse) if piped else engine.fuse, config, report.fused, as_json, aside=piped, then=then)


def evaluate(
    checkpoints: opt.CheckpointsArgument,
    data: opt.DataOption,
    arch: opt.OwnArchitectureOption = None,
    teachers: opt.OptionalTeachersOption = None,
    arch_arg: opt.ArchitectureArgs = None,
    split: opt.SplitOption = "test",
    label_column: opt.LabelColumn = None,
    classes: opt.ClassesOption = None,
    calibration_images: opt.CalibrationImages = 4096,
    batch_size: opt.EvaluationBatch = 500,
    seed: opt.SeedOption = 0,
    device: opt.DeviceOption = "auto",
    page: opt.ReportOption = None,
    as_json: opt.JsonOption = False,
    context: typer.Context = None,  # type: ignore[assignment]
) -> None:
    """Compare checkpoints with their teachers, the ensemble and the soup.

    \b
    Example:
      wfcli eval student.safetensors --teachers zoo --arch vgg11_bn_cifar --data digits
    """
    html_report.check_report(page)
    checkpoints, teachers = pipes.read_names(checkpoints, teachers or [])
    architecture, checkpoints, teachers = _net_of(arch, arch_arg, checkpoints, teachers)
    from wfcli.engine import evaluate as engine

    config = engine.EvaluateConfig(
        checkpoints=tuple(checkpoints),
        teachers=tuple(teachers),
        architecture=architecture,
        data=_data(data, label_column, classes),
        split=split,
        batch_size=batch_size,
        calibration_images=calibration_images,
        seed=seed,
        device=device,
        pictures=page is not None,
    )
    then = _page(page, html_report.evaluated, context)
    _run(engine.evaluate, config, report.compared, as_json, then=then)


def compare(
    checkpoints: opt.CheckpointsArgument,
    data: opt.DataOption,
    output: opt.OutputFolder,
    arch: opt.OwnArchitectureOption = None,
    arch_arg: opt.ArchitectureArgs = None,
    numbers: opt.CountsOption = None,
    seeds: opt.SeedsOption = 3,
    candidates: opt.CandidatesOption = None,
    generator: opt.GeneratorOption = None,
    base: opt.BaseOption = None,
    align: opt.AlignOption = "auto",
    split: opt.SplitOption = "test",
    label_column: opt.LabelColumn = None,
    classes: opt.ClassesOption = None,
    calibration_images: opt.CalibrationImages = 4096,
    distill_steps: opt.CompareSteps = 0,
    batch_size: opt.EvaluationBatch = 500,
    resume: opt.ResumeOption = False,
    seed: opt.SeedOption = 0,
    device: opt.DeviceOption = "auto",
    page: opt.ReportOption = None,
    as_json: opt.JsonOption = False,
    context: typer.Context = None,  # type: ignore[assignment]
) -> None:
    """Compare all merge methods, for several numbers of teachers and several draws of them.

    DIR gets compare.json, compare.csv and compare.svg.

    \b
    Example:
      wfcli compare 'zoo/*.safetensors' --arch vgg11_bn_cifar --data digits --counts 3,6 -o comparison
    """
    html_report.check_report(page, output)
    (checkpoints,) = pipes.read_names(checkpoints)
    architecture, checkpoints, _ = _net_of(arch, arch_arg, checkpoints)
    from wfcli.engine import compare as engine
    from wfcli.plots import draw_comparison

    config = engine.CompareConfig(
        teachers=tuple(checkpoints),
        architecture=architecture,
        data=_data(data, label_column, classes),
        output=output,
        counts=_counts(numbers),
        seeds=seeds,
        methods=_words("--methods", candidates),
        generator=generator,
        base=base,
        align=align,
        split=split,
        calibration_images=calibration_images,
        distill_steps=distill_steps,
        batch_size=batch_size,
        seed=seed,
        device=device,
        resume=resume,
        pictures=page is not None,
    )

    def drawn(config: engine.CompareConfig, hooks: Hooks) -> engine.CompareResult:
        result = engine.compare(config, hooks)
        draw_comparison(result, output / "compare.svg", hooks)
        return result

    then = _page(page, html_report.methods_compared, context)
    _run(drawn, config, report.methods_compared, as_json, then=then)


def finetune(
    checkpoint: opt.CheckpointArgument,
    teachers: opt.TeachersOption,
    data: opt.DataOption,
    steps: opt.RequiredSteps,
    output: opt.OutputFile,
    arch: opt.OwnArchitectureOption = None,
    arch_arg: opt.ArchitectureArgs = None,
    label_column: opt.LabelColumn = None,
    classes: opt.ClassesOption = None,
    optimiser: opt.OptimiserOption = None,
    lr: opt.FinetuneRate = None,
    batch_size: opt.TrainingBatch = 256,
    distill_weight: opt.DistillWeight = 1.0,
    ce_weight: opt.CrossEntropyWeight = 0.5,
    temperature: opt.Temperature = 1.0,
    warmup: opt.Warmup = 0.05,
    weight_decay: opt.WeightDecay = None,
    validate_every: opt.ValidateEvery = 0,
    resume: opt.ResumeOption = False,
    seed: opt.SeedOption = 0,
    device: opt.DeviceOption = "auto",
    as_json: opt.JsonOption = False,
    context: typer.Context = None,  # type: ignore[assignment]
) -> None:
    """Fine-tune a student on its teachers' ensemble and the labels.

    The best step by the validation split is written; the log stands beside it as OUT.log.jsonl.

    \b
    Example:
      wfcli finetune student.safetensors --teachers zoo --arch vgg11_bn_cifar \\
        --data digits --steps 200 -o tuned.safetensors
    """
    if context.args:
        raise typer.BadParameter(
            f"one checkpoint to start from, got also {', '.join(context.args)}; a glob after --teachers needs quotes, "
            "--teachers 'zoo/*.safetensors', or the shell expands it"
        )
    if output == pipes.STDOUT:
        raise typer.BadParameter("-o -: a training writes a file, beside which its log and its state stand")
    (teachers,) = pipes.read_names(teachers)
    architecture, (checkpoint,), teachers = _net_of(arch, arch_arg, [checkpoint], teachers)
    from wfcli.engine import finetune as engine

    config = engine.FinetuneConfig(
        checkpoint=checkpoint,
        teachers=tuple(teachers),
        architecture=architecture,
        data=_data(data, label_column, classes),
        steps=steps,
        output=output,
        optimiser=optimiser,
        lr=lr,
        batch_size=batch_size,
        distill_weight=distill_weight,
        ce_weight=ce_weight,
        temperature=temperature,
        warmup=warmup,
        weight_decay=weight_decay,
        validate_every=validate_every,
        seed=seed,
        device=device,
        resume=resume,
    )
    _run(engine.finetune, config, report.finetuned, as_json)


def train_generator(
    zoo: opt.ZooOption,
    output: opt.OutputFolder,
    preset: opt.PresetOption = None,
    init: opt.GeneratorInit = None,
    train: opt.TrainedPart = "all",
    width: opt.WidthOption = None,
    blocks: opt.BlocksOption = None,
    attention: opt.AttentionOption = None,
    mask: opt.MaskOption = None,
    flow: opt.FlowOption = True,
    shift_weight: opt.ShiftWeight = None,
    zoo_teachers: opt.ZooTeachers = None,
    max_teachers: opt.MaxTeachers = 8,
    views: opt.ViewsOption = 2,
    steps: opt.StepsOption = 1000,
    lr: opt.LearningRate = 2e-3,
    batch_size: opt.TrainingBatch = 256,
    accumulate: opt.AccumulateOption = None,
    resume: opt.ResumeOption = False,
    seed: opt.SeedOption = 0,
    device: opt.DeviceOption = "auto",
    page: opt.ReportOption = None,
    as_json: opt.JsonOption = False,
    context: typer.Context = None,  # type: ignore[assignment]
) -> None:
    """Train a generator on zoos of teachers.

    \b
    Example:
      wfcli train-generator --zoo zoo-a --zoo zoo-b -o generator
    """
    html_report.check_report(page, output)
    from wfcli.core.zoo import find_zoos
    from wfcli.engine import train_generator as engine

    config = engine.TrainGeneratorConfig(
        zoos=tuple(folder for text in zoo for folder in find_zoos(text)),
        output=output,
        preset=preset,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        max_teachers=max_teachers,
        views=views,
        init=init,
        train=train,
        width=width,
        blocks=blocks,
        attention=attention,
        mask=mask,
        flow=flow,
        shift_weight=shift_weight,
        accumulate=accumulate,
        teachers=zoo_teachers,
        seed=seed,
        device=device,
        resume=resume,
    )
    then = _page(page, html_report.generator_trained, context)
    _run(engine.train_generator, config, report.generator_trained, as_json, then=then)


def train_teachers(
    output: opt.OutputFolder,
    arch: opt.OptionalArchitectureOption = None,
    data: opt.OptionalDataOption = None,
    count: opt.OptionalCountOption = None,
    zoo_recipe: opt.ZooRecipeOption = None,
    arch_arg: opt.ArchitectureArgs = None,
    init: opt.InitOption = None,
    label_column: opt.LabelColumn = None,
    classes: opt.ClassesOption = None,
    shares: opt.SharesOption = "same",
    concentration: opt.ConcentrationOption = 0.3,
    images_per_teacher: opt.ImagesPerTeacher = None,
    epochs: opt.EpochsOption = 10.0,
    same_recipe: opt.SameRecipe = False,
    faults: opt.FaultsOption = "none",
    optimiser: opt.OptimiserOption = None,
    lr: opt.TeacherLearningRate = None,
    batch_size: opt.TrainingBatch = 128,
    jobs: opt.JobsOption = 1,
    seed: opt.SeedOption = 0,
    device: opt.DeviceOption = "auto",
    as_json: opt.JsonOption = False,
    context: typer.Context = None,  # type: ignore[assignment]
) -> None:
    """Train a zoo of teachers, with or without a shared base, or many zoos by a recipe.

    \b
    Example:
      wfcli train-teachers --arch vgg11_bn_cifar --data digits --count 4 \\
        --init base.safetensors --shares dirichlet -o zoo
    """
    if zoo_recipe is not None:
        own = {"zoo_recipe", "output", "data", "jobs", "device", "as_json"}
        others = [parameter.name or "" for parameter in context.command.params if parameter.name not in own]
        if given := _given(context, *others):
            raise typer.BadParameter(f"--zoo-recipe says all of that itself; leave out {', '.join(given)}")
        from wfcli.engine import train_zoos as zoos

        whole = zoos.TrainZoosConfig(recipe=zoo_recipe, output=output, data=data, jobs=jobs, device=device)
        _run(zoos.train_zoos, whole, report.zoos_trained, as_json)
        return
    if (arch or init) is None or data is None or count is None:
        needed = (("--arch", arch or init), ("--data", data), ("--count", count))
        missing = [flag for flag, value in needed if value is None]
        raise typer.BadParameter(f"give {', '.join(missing)}, or a --zoo-recipe")
    if shares != "dirichlet" and _given(context, "concentration"):
        raise typer.BadParameter(f"--concentration goes with --shares dirichlet, got --shares {shares}")
    architecture, found, _ = _net_of(arch, arch_arg, [] if init is None else [init])
    from wfcli.core.shares import parse_cap
    from wfcli.engine import train_teachers as engine

    config = engine.TrainTeachersConfig(
        architecture=architecture,
        data=_data(data, label_column, classes),
        count=count,
        output=output,
        init=found[0] if found else None,
        epochs=epochs,
        seed=seed,
        shares=shares,
        concentration=concentration,
        images_per_teacher=None if images_per_teacher is None else parse_cap(images_per_teacher),
        same_recipe=same_recipe,
        faults=faults,
        optimiser=optimiser,
        lr=lr,
        batch_size=batch_size,
        jobs=jobs,
        device=device,
    )
    _run(engine.train_teachers, config, report.teachers_trained, as_json)


def _given(context: typer.Context, *names: str) -> list[str]:
    """Return the flags of those parameters that stand on the command line or in a recipe: a default is no wish."""
    return [
        parameter.opts[-1]
        for parameter in context.command.params
        if parameter.name in names
        and (source := context.get_parameter_source(parameter.name)) is not None
        and source.name in ("COMMANDLINE", "DEFAULT_MAP")  # the latter: a recipe
    ]


def inspect_checkpoints(
    checkpoints: opt.CheckpointsArgument,
    weights: opt.WeightsOption = False,
    plan: opt.PlanOption = False,
    recipe: opt.RecipeFlag = False,
    as_json: opt.JsonOption = False,
) -> None:
    """Say what checkpoints hold, from their headers alone.

    \b
    Example:
      wfcli inspect teacher*.safetensors --weights
    """
    (checkpoints,) = pipes.read_names(checkpoints)
    from wfcli.engine import inspect as engine

    if recipe:
        if weights or plan:
            raise typer.BadParameter("--recipe stands alone: leave out --weights and --plan")
        from wfcli.engine.recipe import read_recipes

        _show({"recipes": read_recipes(checkpoints)}, report.recipes_shown, as_json)
        return
    config = engine.InspectConfig(checkpoints=tuple(checkpoints), weights=weights, plan=plan)
    _run(engine.inspect, config, report.inspected, as_json)


def push(
    source: opt.PushedArgument,
    target: opt.RepositoryArgument,
    private: opt.PrivateOption = False,
    revision: opt.BranchOption = None,
    message: opt.MessageOption = None,
    create_pr: opt.PullRequestOption = False,
    license_: opt.LicenseOption = None,
    metrics: opt.MetricsOption = None,
    dry_run: opt.DryRunOption = False,
    as_json: opt.JsonOption = False,
) -> None:
    """Make a student, a generator or a zoo a repository on the Hub, with its card.

    A student is loaded by timm then: timm.create_model("hf-hub:owner/name", pretrained=True).

    \b
    Example:
      wfcli push student.safetensors hf:owner/name --private
    """
    from wfcli.engine import push as engine

    config = engine.PushConfig(
        source=source,
        target=target,
        private=private,
        revision=revision,
        message=message,
        create_pr=create_pr,
        dry_run=dry_run,
        license=license_,
        metrics=metrics,
    )
    _run(engine.push, config, report.pushed, as_json)


def pull(
    source: opt.PulledArgument,
    output: opt.OptionalOutputFolder = None,
    whole: opt.WholeOption = False,
    as_json: opt.JsonOption = False,
) -> None:
    """Fetch weights, a generator or a whole repository from the Hub, and say where they lie.

    \b
    Example:
      wfcli pull hf:owner/zoo --all -o zoo
    """
    from wfcli.engine import pull as engine

    config = engine.PullConfig(source=source, output=output, whole=whole)
    _run(engine.pull, config, report.pulled, as_json)


def list_methods(as_json: opt.JsonOption = False) -> None:
    """List the merge methods of fuse: what each does, needs and takes.

    \b
    Example:
      wfcli methods
    """
    from wfcli.core.methods import METHODS

    _show({"methods": METHODS}, report.methods_listed, as_json)


def list_known(
    hub: opt.AskHubOption = False,
    tag: opt.TagOption = "wfcli",
    limit: opt.LimitOption = 50,
    as_json: opt.JsonOption = False,
    context: typer.Context = None,  # type: ignore[assignment]
) -> None:
    """List the generators that go by a name, and what wfcli made in the Hub's cache.

    With --hub also what the Hub has under a tag, unless you name another that of [bold]wfcli push[/].

    \b
    Example:
      wfcli list --hub
    """
    if not hub and (given := _given(context, "tag", "limit")):
        raise typer.BadParameter(f"{', '.join(given)}: of no use without --hub")
    from wfcli.engine import listing as engine

    _show(engine.list_known(engine.ListConfig(hub=hub, tag=tag, limit=limit)), report.listed, as_json)
