"""The options of the command line: each is spelled once here and means the same in every command.

Types, choices and plain ranges are checked here (exit 2), what depends on data or other options by the engine (exit 1).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from wfcli.completion import complete_architecture, complete_generator, complete_method
from wfcli.recipe_file import take_recipe

DATA = "Data"
TRAINING = "Training"
GENERATOR = "Generator"

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["keep", "float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"]
Attention = Literal["cross", "full"]
Preset = Literal["universal", "weightformer", "specialised"]
Align = Literal["auto", "weights", "activations", "none"]
Trained = Literal["all", "mixing", "prior"]
Shares = Literal["same", "dirichlet", "disjoint"]
Optimiser = Literal["sgd", "adamw"]

SOURCE_HELP = "file, glob, folder, [cyan]hf:owner/name\\[@rev]\\[:file][/] or [cyan]-[/] (names on standard input)"
DATA_HELP = (
    "Images: [cyan]digits[/], a folder of parquet files, a folder of images or a Hub dataset [cyan]owner/name[/]."
)
TEACHERS_HELP = f"Teachers: {SOURCE_HELP}; repeat for more."

# Checkpoints -------------------------------------------------------------------------------------------------------

CheckpointsArgument = Annotated[
    list[str], typer.Argument(metavar="CKPT", help=f"Checkpoints: {SOURCE_HELP}.", show_default=False)
]
CheckpointArgument = Annotated[
    str, typer.Argument(metavar="CKPT", help="The checkpoint to start from.", show_default=False)
]
TeachersOption = Annotated[list[str], typer.Option("--teachers", metavar="SRC", help=TEACHERS_HELP, show_default=False)]
OptionalTeachersOption = Annotated[
    list[str] | None, typer.Option("--teachers", metavar="SRC", help=TEACHERS_HELP, show_default=False)
]
OutputFile = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="OUT",
        help="The .safetensors file to write; one that is there is replaced. fuse: - is standard output.",
        show_default=False,
    ),
]
OutputFolder = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write to.", show_default=False)
]
WeightsOption = Annotated[
    bool, typer.Option("--weights", help="Read the weights too: shared base or not, distances, non-finite values.")
]

PlanOption = Annotated[
    bool,
    typer.Option("--plan", help="Follow the net and say which units may be permuted, and which weights with them."),
]

# The Hub -----------------------------------------------------------------------------------------------------------

PushedArgument = Annotated[
    str,
    typer.Argument(metavar="SRC", help="A student, the folder of a generator, or a zoo.", show_default=False),
]
RepositoryArgument = Annotated[
    str, typer.Argument(metavar="REPO", help="The repository: [cyan]hf:owner/name[/].", show_default=False)
]
PulledArgument = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        help="[cyan]hf:owner/name\\[@rev]\\[:file][/]; the file may be a pattern, in quotes.",
        show_default=False,
    ),
]
PrivateOption = Annotated[bool, typer.Option("--private", help="Make the repository a private one.")]
BranchOption = Annotated[
    str | None,
    typer.Option(
        "--revision", metavar="BRANCH", help="The branch to push to; it is made if need be.", show_default=False
    ),
]
MessageOption = Annotated[
    str | None, typer.Option("--message", metavar="TEXT", help="The message of the commit.", show_default=False)
]
PullRequestOption = Annotated[
    bool, typer.Option("--create-pr", help="Propose the commit as a pull request, to a repository that is there.")
]
LicenseOption = Annotated[
    str | None,
    typer.Option(
        "--license",
        metavar="NAME",
        help="The license that the card names: apache-2.0, say. [dim]\\[default: none][/]",
        show_default=False,
    ),
]
MetricsOption = Annotated[
    Path | None,
    typer.Option(
        "--metrics",
        metavar="FILE",
        help="What the student reached: the output of [bold]wfcli eval --json[/] or [bold]fuse --json[/].",
        show_default=False,
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check, and show files and card, but send nothing.")]
OptionalOutputFolder = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="DIR", help="Also copy the files there: to a new folder.", show_default=False
    ),
]
WholeOption = Annotated[bool, typer.Option("--all", help="Fetch all files of the repository.")]
AskHubOption = Annotated[bool, typer.Option("--hub", help="List what the Hub has under a tag, too.")]
TagOption = Annotated[str, typer.Option("--tag", metavar="TAG", help="With [bold]--hub[/]: the tag.")]
LimitOption = Annotated[
    int, typer.Option("--limit", metavar="N", min=1, help="With [bold]--hub[/]: how many to list at most.")
]

# Architecture ------------------------------------------------------------------------------------------------------

OptionalArchitectureOption = Annotated[
    str | None,
    typer.Option(
        "--arch",
        metavar="A",
        help="Architecture: a timm or torchvision name. May be left out where the checkpoint of --init says it itself.",
        show_default=False,
        autocompletion=complete_architecture,
    ),
]
OwnArchitectureOption = Annotated[
    str | None,
    typer.Option(
        "--arch",
        metavar="A",
        help="Architecture: a timm or torchvision name. May be left out where the checkpoints say it themselves.",
        show_default=False,
        autocompletion=complete_architecture,
    ),
]
ArchitectureArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--arch-arg", metavar="K=V", help="Its argument, width=0.25 say; repeat for more.", show_default=False
    ),
]

# Generator ---------------------------------------------------------------------------------------------------------

MethodOption = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="M",
        help="Merge method ([bold]wfcli methods[/] lists them), or auto: the best by the validation images.",
        autocompletion=complete_method,
    ),
]
BaseOption = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="CKPT",
        help="The checkpoint that the teachers were fine-tuned from, for methods that take it.",
        show_default=False,
    ),
]
TeacherWeights = Annotated[
    str | None,
    typer.Option(
        "--weights", metavar="W,W,...", help="A weight for every teacher, in their order.", show_default=False
    ),
]
ParamOption = Annotated[
    list[str] | None,
    typer.Option("--param", metavar="K=V", help="A parameter of the method; repeat for more.", show_default=False),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATTERN:K=V",
        help="Make some tensors otherwise: method (copy:0 and copy:base too), weights or a parameter; repeat for more.",
        show_default=False,
    ),
]
HeadsOption = Annotated[
    str | None,
    typer.Option(
        "--heads",
        metavar="H",
        help="Teachers with other classes: keep:N (the head of one), stack (one joint head) or drop.",
        show_default=False,
    ),
]
RecipeOption = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        metavar="FILE",
        help="Take options from a TOML file, by the names of the flags; what stands here comes before it.",
        callback=take_recipe,
        is_eager=True,
        show_default=False,
    ),
]
RecipeFlag = Annotated[bool, typer.Option("--recipe", help="Print how a student was made, for fuse --recipe.")]
CandidatesOption = Annotated[
    str | None,
    typer.Option(
        "--methods",
        metavar="M,M,...",
        help="What --method auto tries. [dim]\\[default: all that teachers, base and images allow][/]",
        show_default=False,
    ),
]
CountsOption = Annotated[
    str | None,
    typer.Option(
        "--counts",
        metavar="K,K,...",
        help="Numbers of teachers to draw. [dim]\\[default: all of them][/]",
        show_default=False,
    ),
]
SeedsOption = Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="Draws of each number of teachers.")]
CompareSteps = Annotated[
    int,
    typer.Option(
        "--distill-steps",
        metavar="N",
        min=0,
        help="Also distil the ensemble, so many steps, from best teacher, soup and auto.",
    ),
]
TimeBudget = Annotated[
    float | None,
    typer.Option(
        "--time-budget",
        metavar="S",
        help="Seconds after which auto begins no other method. [dim]\\[default: no limit][/]",
        show_default=False,
    ),
]
GeneratorOption = Annotated[
    str | None,
    typer.Option(
        "--generator",
        metavar="SRC",
        help="A folder, hf:owner/name or pretrained:NAME. [dim]\\[default: the universal one][/]",
        show_default=False,
        autocompletion=complete_generator,
    ),
]
AlignOption = Annotated[
    Align,
    typer.Option(
        "--align",
        metavar="A",
        help="Bring the units of the teachers into one order: auto (by weights, where they share no base), weights, "
        "activations (on the images of --data or --unlabelled) or none.",
    ),
]
GuardOption = Annotated[
    bool,
    typer.Option(
        "--guard/--no-guard", help="Write the soup where the generator's student looks broken, told without labels."
    ),
]
ProbesOption = Annotated[
    int,
    typer.Option(
        "--probes", metavar="N", min=0, help="Fit the head to its teachers on so many made-up images: 2000, say."
    ),
]
ZooOption = Annotated[
    list[str],
    typer.Option(
        "--zoo",
        metavar="DIR",
        help="A folder written by train-teachers, or a glob of such in quotes; repeat for more.",
        show_default=False,
    ),
]
ZooTeachers = Annotated[
    str | None,
    typer.Option(
        "--zoo-teachers",
        metavar="LIST",
        help="The teachers of each zoo to train on, by number: 0-9. [dim]\\[default: all][/]",
        show_default=False,
    ),
]
PresetOption = Annotated[
    Preset | None,
    typer.Option(
        "--preset",
        metavar="P",
        help="Kind: universal, weightformer or specialised. [dim]\\[default: that of --init, or universal][/]",
        show_default=False,
    ),
]
GeneratorInit = Annotated[
    str | None,
    typer.Option(
        "--init",
        metavar="G",
        help="A trained generator that goes on: a folder, hf:owner/name or pretrained:name. [dim]\\[default: none][/]",
        show_default=False,
    ),
]
TrainedPart = Annotated[
    Trained,
    typer.Option(
        "--train",
        metavar="P",
        help="What to train: all, or of a specialised one the mixing or the prior.",
        rich_help_panel=GENERATOR,
    ),
]
WidthOption = Annotated[
    int | None,
    typer.Option(
        "--width",
        metavar="N",
        min=1,
        help="Width of the Transformer, a multiple of 4. [dim]\\[default: that of --init, or 32][/]",
        rich_help_panel=GENERATOR,
        show_default=False,
    ),
]
BlocksOption = Annotated[
    int | None,
    typer.Option(
        "--blocks",
        metavar="N",
        min=1,
        help="Blocks of the Transformer. [dim]\\[default: those of --init, or 2][/]",
        rich_help_panel=GENERATOR,
        show_default=False,
    ),
]
MaxTeachers = Annotated[int, typer.Option("--max-teachers", metavar="N", min=2, help="Most teachers in one step.")]
ViewsOption = Annotated[
    int,
    typer.Option(
        "--views",
        metavar="N",
        min=1,
        help="Augmented copies of every image; all teachers answer each of them.",
        rich_help_panel=TRAINING,
    ),
]
AttentionOption = Annotated[
    Attention | None,
    typer.Option(
        "--attention",
        metavar="A",
        help="Among channels: cross (through cross tokens) or full. [dim]\\[default: of the preset][/]",
        rich_help_panel=GENERATOR,
        show_default=False,
    ),
]
MaskOption = Annotated[
    bool | None,
    typer.Option(
        "--mask/--no-mask",
        help="A learned mask of the full attention. [dim]\\[default: of the preset][/]",
        rich_help_panel=GENERATOR,
        show_default=False,
    ),
]
FlowOption = Annotated[
    bool,
    typer.Option("--flow/--no-flow", help="Information flows from layer to layer.", rich_help_panel=GENERATOR),
]
ShiftWeight = Annotated[
    float | None,
    typer.Option(
        "--shift-weight",
        metavar="X",
        min=0,
        help="Weight of shift consistency in the loss. [dim]\\[default: of the preset][/]",
        rich_help_panel=GENERATOR,
        show_default=False,
    ),
]
AccumulateOption = Annotated[
    int | None,
    typer.Option(
        "--accumulate",
        metavar="N",
        min=1,
        help="Pairs of teachers and images in a step. [dim]\\[default: one for each process][/]",
        rich_help_panel=TRAINING,
        show_default=False,
    ),
]
DtypeOption = Annotated[
    Dtype,
    typer.Option(
        "--dtype",
        metavar="D",
        help="The student's: keep, float64, float32, bfloat16, float16, float8_e4m3fn, float8_e5m2.",
    ),
]
MaxShardSize = Annotated[
    str | None,
    typer.Option(
        "--max-shard-size",
        metavar="SIZE",
        help="Write a larger student as files of this size and their index: 5GB, 500MB. [dim]\\[default: one file][/]",
        show_default=False,
    ),
]

# Data --------------------------------------------------------------------------------------------------------------

DataOption = Annotated[
    str, typer.Option("--data", metavar="D", help=DATA_HELP, rich_help_panel=DATA, show_default=False)
]
OptionalDataOption = Annotated[
    str | None, typer.Option("--data", metavar="D", help=DATA_HELP, rich_help_panel=DATA, show_default=False)
]
SplitOption = Annotated[
    str, typer.Option("--split", metavar="S", help="The split to evaluate on.", rich_help_panel=DATA)
]
UnlabelledOption = Annotated[
    str | None,
    typer.Option(
        "--unlabelled",
        metavar="D",
        help="Images without labels to learn from: a folder of them, or what --data takes.",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
ImagesOption = Annotated[
    int,
    typer.Option(
        "--images", metavar="N", min=1, help="How many of the unlabelled images, drawn at random.", rich_help_panel=DATA
    ),
]
DistillSteps = Annotated[
    int,
    typer.Option(
        "--distill-steps",
        metavar="N",
        min=0,
        help="Steps of distillation on them, 128 images each.",
        rich_help_panel=DATA,
    ),
]
DistillRate = Annotated[
    float | None,
    typer.Option(
        "--distill-lr",
        metavar="X",
        help="Their peak learning rate. [dim]\\[default: 0.03, for nets with layer norms 0.0005][/]",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        "--label-column",
        metavar="NAME",
        help="The column of the labels where there are several: fine_label, say.",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
ClassesOption = Annotated[
    str | None,
    typer.Option(
        "--classes",
        metavar="LIST",
        help="Only these classes, numbered anew in this order: 0-9,20.",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
CalibrationImages = Annotated[
    int,
    typer.Option(
        "--calibration-images",
        metavar="N",
        min=0,
        help="Training images for the BatchNorm statistics.",
        rich_help_panel=DATA,
    ),
]
EvaluationBatch = Annotated[
    int, typer.Option("--batch-size", metavar="N", min=1, help="Images per batch.", rich_help_panel=DATA)
]
SharesOption = Annotated[
    Shares,
    typer.Option(
        "--shares",
        metavar="KIND",
        help="Images of a teacher: same (all), dirichlet (uneven in classes) or disjoint (own classes).",
        rich_help_panel=DATA,
    ),
]
ConcentrationOption = Annotated[
    float,
    typer.Option(
        "--concentration", metavar="X", help="Of the dirichlet shares; smaller is more uneven.", rich_help_panel=DATA
    ),
]
ImagesPerTeacher = Annotated[
    str | None,
    typer.Option(
        "--images-per-teacher",
        metavar="N|A-B",
        help="At most so many images in a share; a range: in each share another number. [dim]\\[default: no limit][/]",
        rich_help_panel=DATA,
        show_default=False,
    ),
]

# Training ----------------------------------------------------------------------------------------------------------

OptionalCountOption = Annotated[
    int | None, typer.Option("--count", metavar="N", min=1, help="How many teachers.", show_default=False)
]
ZooRecipeOption = Annotated[
    Path | None,
    typer.Option(
        "--zoo-recipe",
        metavar="FILE",
        help="Make all zoos that this TOML file describes, in folders of their own in DIR.",
        show_default=False,
    ),
]
JobsOption = Annotated[
    int,
    typer.Option(
        "--jobs", metavar="N", min=1, help="Teachers made at a time, each in a process.", rich_help_panel=TRAINING
    ),
]
FaultsOption = Annotated[
    str,
    typer.Option(
        "--faults",
        metavar="LIST",
        help="What is wrong with the teachers, in turn: none, short, long, rate, labels, noise.",
        rich_help_panel=TRAINING,
    ),
]
OptimiserOption = Annotated[
    Optimiser | None,
    typer.Option(
        "--optimiser",
        metavar="O",
        help="sgd or adamw. [dim]\\[default: adamw for nets with layer norms, else sgd][/]",
        rich_help_panel=TRAINING,
        show_default=False,
    ),
]
TeacherLearningRate = Annotated[
    float | None,
    typer.Option(
        "--lr",
        metavar="X",
        min=0,
        help="Peak learning rate. [dim]\\[default: 0.05, with adamw 0.001][/]",
        rich_help_panel=TRAINING,
        show_default=False,
    ),
]
InitOption = Annotated[
    str | None,
    typer.Option(
        "--init",
        metavar="CKPT",
        help="The base all start from. [dim]\\[default: a random start each][/]",
        rich_help_panel=TRAINING,
        show_default=False,
    ),
]
EpochsOption = Annotated[
    float,
    typer.Option("--epochs", metavar="E", min=0, help="Passes over a teacher's images.", rich_help_panel=TRAINING),
]
SameRecipe = Annotated[
    bool, typer.Option("--same-recipe", help="One recipe for all instead of varied ones.", rich_help_panel=TRAINING)
]
StepsOption = Annotated[
    int, typer.Option("--steps", metavar="N", min=1, help="Training steps.", rich_help_panel=TRAINING)
]
RequiredSteps = Annotated[
    int,
    typer.Option("--steps", metavar="N", min=1, help="Training steps.", rich_help_panel=TRAINING, show_default=False),
]
TrainingBatch = Annotated[
    int, typer.Option("--batch-size", metavar="N", min=1, help="Images per step.", rich_help_panel=TRAINING)
]
LearningRate = Annotated[
    float, typer.Option("--lr", metavar="X", min=0, help="Peak learning rate.", rich_help_panel=TRAINING)
]
DistillWeight = Annotated[
    float,
    typer.Option(
        "--distill-weight", metavar="X", min=0, help="Weight of the KL to the ensemble.", rich_help_panel=TRAINING
    ),
]
CrossEntropyWeight = Annotated[
    float,
    typer.Option("--ce-weight", metavar="X", min=0, help="Weight of the cross entropy.", rich_help_panel=TRAINING),
]
Temperature = Annotated[
    float,
    typer.Option("--temperature", metavar="X", help="Temperature of the distillation.", rich_help_panel=TRAINING),
]
Warmup = Annotated[
    float,
    typer.Option(
        "--warmup", metavar="X", min=0, max=1, help="Share of the steps that warm up.", rich_help_panel=TRAINING
    ),
]
FinetuneRate = Annotated[
    float | None,
    typer.Option(
        "--lr",
        metavar="X",
        min=0,
        help="Peak learning rate. [dim]\\[default: 0.01, with adamw 0.0003][/]",
        rich_help_panel=TRAINING,
        show_default=False,
    ),
]
WeightDecay = Annotated[
    float | None,
    typer.Option(
        "--weight-decay",
        metavar="X",
        min=0,
        help="Weight decay. [dim]\\[default: 0.0005, with adamw 0.05][/]",
        rich_help_panel=TRAINING,
        show_default=False,
    ),
]
ValidateEvery = Annotated[
    int,
    typer.Option(
        "--validate-every",
        metavar="N",
        min=0,
        help="Steps between validations; 0: ten in all.",
        rich_help_panel=TRAINING,
    ),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on where an interrupted run stopped.", rich_help_panel=TRAINING)
]

# Everywhere --------------------------------------------------------------------------------------------------------

SeedOption = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of every random choice.")]
DeviceOption = Annotated[Device, typer.Option("--device", metavar="DEV", help="auto, cpu or cuda.")]
ReportOption = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="Also write one page for a browser, FILE.html: the tables, and pictures of more. It takes some time more.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
