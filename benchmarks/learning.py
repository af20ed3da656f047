"""What experiments learn from one budget of audio: trained, probed, and set in a table and a plot of error and cost.

    python benchmarks/learning.py --shards corpora/synthetic --hours 4 --out docs/results/learning
    python benchmarks/learning.py --shards corpora/synthetic --hours 4 --experiments hubert_tiny \
        --sweep mixer=attention,summary,hyena --seeds 0,1 --out docs/results/mixers

Every job is ``ossicle pretrain`` and then ``ossicle probe``, one after another, each in a process of its own. A run's
directory is named by a hash of what it computes, so the same command goes on where it was stopped: what is trained is
not trained again, a run that was cut off is resumed at its last checkpoint, and what is probed is not probed again.
Table, plot and records (OUT.md, OUT.png, OUT.json) are written anew after every job. A job that fails is named in the
table with the last line that it said, and does not stop the others.
"""

import argparse
import csv
import itertools
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ossicle.core.errors import OssicleError
from ossicle.core.files import atomic_write, read_json, write_json
from ossicle.launch import runs
from ossicle.launch.config import compose, groups
from ossicle.launch.experiment import check, resolved, stages
from ossicle.probe.report import ProbeReport

TASKS = ("phone", "language")
WATCHED = (
    "objective/loss", "objective/accuracy_masked", "objective/accuracy_contrastive", "objective/accuracy_foreseen",
    "objective/output_std",
    "objective/codes_perplexity", "target/codes_perplexity", "target/codes_used", "target/frame_std",
)  # fmt: skip
"""Metrics of the last reading that go into the records: what collapse shows in."""
CPU_FILE = "processor_time.json"
"""Beside a run's other files: the processor time of its training, which other work on the machine does not change."""
COLUMNS = (
    "run", "seed", "steps", "phones", "untrained", "log-mel", "language", "untrained", "log-mel", "train CPU-s",
    "audio-s/s", "GMAC/audio-s", "million parameters", "signs of life",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One run of the table.

    Args:
        experiment: The experiment's name.
        choices: The sweep's overrides.
        seed: The run's seed.
        overrides: Every override of ``ossicle pretrain``.
        directory: Its run directory.
        steps: Optimiser steps of the whole chain.
    """

    experiment: str
    choices: tuple[str, ...]
    seed: int
    overrides: tuple[str, ...]
    directory: Path
    steps: int

    @property
    def name(self) -> str:
        """The experiment, and what the sweep chose."""
        return " ".join([self.experiment, *self.choices])


@dataclass(frozen=True)
class Result:
    """What came of a job.

    Args:
        name: The job's name.
        seed: Its seed.
        run: Its run directory.
        steps: Optimiser steps.
        errors: Test error of ``pretrained``, ``untrained`` and ``logmel`` by task.
        cost: Numbers of the cost card by name; None where unknown.
        metrics: The last reading of the metrics that :data:`WATCHED` names.
        failure: Why there is no result, or None.
    """

    name: str
    seed: int
    run: str
    steps: int
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    cost: dict[str, float | None] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    failure: str | None = None


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    tiny = [name for name in groups()["experiment"] if name.endswith("_tiny")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True, help="a prepared dataset with phones, with splits train, dev, test")
    parser.add_argument("--hours", type=float, required=True, help="hours of audio that each run is trained on")
    parser.add_argument("--experiments", type=listed, default=tiny, help="comma-separated; default: every _tiny one")
    parser.add_argument("--sweep", nargs="*", default=[], help="KEY=VALUE,VALUE,...: each combination is a job")
    parser.add_argument("--override", nargs="*", default=[], help="further overrides of ossicle pretrain")
    parser.add_argument("--probe", nargs="*", default=[], help="further overrides of ossicle probe")
    parser.add_argument("--seeds", type=listed, default=["0"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, required=True, help="files OUT.md, OUT.png and OUT.json")
    parser.add_argument("--gather", action="store_true", help="only gather what is there")
    return parser.parse_args(argv)


def listed(text: str) -> list[str]:
    """A comma-separated list."""
    return [item for item in text.split(",") if item]


def combinations(sweep: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Every combination of a sweep's values, as overrides."""
    axes = []
    for axis in sweep:
        key, _, values = axis.partition("=")
        axes.append([f"{key}={value}" for value in listed(values)])
    return itertools.product(*axes)


def plan(options: argparse.Namespace) -> list[Job | Result]:
    """Every job of the command line; a combination that is refused is a result that says why."""
    jobs: list[Job | Result] = []
    for seed, name, choices in itertools.product(options.seeds, options.experiments, combinations(options.sweep)):
        given = [*choices, f"seed={seed}", f"runs={options.runs}", f"threads={options.threads}", *options.override]
        try:
            jobs.append(job_of(name, choices, int(seed), given, options))
        except OssicleError as error:
            jobs.append(Result(" ".join([name, *choices]), int(seed), "", 0, failure=error.problem))
    return jobs


def job_of(name: str, choices: tuple[str, ...], seed: int, given: Sequence[str], options: argparse.Namespace) -> Job:
    """A job whose chain of runs hears the budget in all."""
    first = compose("pretrain", [f"experiment={name}", *given])
    if str(first.data._target_).endswith("MixtureData"):
        data = f"data.sources={{one:{{shards:{options.shards}}}}}"
    else:
        data = f"data.shards={options.shards}"
    chain = len(first.stage.get("iterations") or [None])
    steps = max(1, round(options.hours * 3600 / float(first.batch_s) / chain))
    overrides = [f"experiment={name}", data, f"max_steps={steps}", *given]
    config = resolved(compose("pretrain", overrides))
    check(config)
    told = sum(run.max_steps or steps for run in stages(config).runs())
    return Job(name, choices, seed, tuple(overrides), runs.run_dir(config), told)


def carry_out(job: Job, options: argparse.Namespace) -> str | None:
    """Train and probe a job where that is not done. Returns why it failed, or None."""
    if not runs.read_state(job.directory).get("finished"):
        before_s = cpu_s_of_children()
        failure = ossicle("pretrain", *job.overrides, "wandb.mode=disabled")
        add_cpu_s(job.directory, cpu_s_of_children() - before_s)
        if failure is not None:
            return failure
    report = job.directory / "probe.json"
    if report.is_file():
        return None
    shards, threads = f"shards={options.shards}", f"threads={options.threads}"
    tasks = f"tasks=[{','.join(TASKS)}]"
    return ossicle(
        "probe", f"run={job.directory}", shards, threads, tasks, "baselines=[logmel,untrained]", *options.probe
    )


def cpu_s_of_children() -> float:
    """Processor seconds of all processes that were started here and have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def add_cpu_s(directory: Path, cpu_s: float) -> None:
    """Count processor time towards a run, which may take several attempts."""
    if directory.is_dir():
        write_json(directory / CPU_FILE, {"cpu_s": cpu_s + (read_cpu_s(directory) or 0.0)})


def read_cpu_s(directory: Path) -> float | None:
    """Processor seconds of a run with its labels and its start, or None where nothing counted them."""
    file = directory / CPU_FILE
    return read_json(file)["cpu_s"] if file.is_file() else None


def ossicle(*words: str) -> str | None:
    """Run a command in a process of its own. Returns its last line where it failed, else None."""
    line = [sys.executable, "-m", "ossicle.launch.cli", *words]
    ran = subprocess.run(line, stderr=subprocess.PIPE, stdout=sys.stderr, text=True, env=os.environ, check=False)  # noqa: S603  our own command
    if ran.returncode == 0:
        return None
    said = [text.strip() for text in ran.stderr.splitlines() if text.strip()]
    sys.stderr.write(ran.stderr)
    return next((text for text in reversed(said) if text.startswith("ossicle ")), said[-1] if said else "no word")


def result_of(job: Job, failure: str | None) -> Result:
    """What is in a job's run directory."""
    known = (job.name, job.seed, str(job.directory), job.steps)
    if failure is not None or not (job.directory / "probe.json").is_file():
        return Result(*known, failure=failure or "not done yet")
    report = ProbeReport.read(job.directory / "probe.json")
    card = read_json(job.directory / "cost.json")
    return Result(
        *known,
        errors={task: report.errors(task) for task in TASKS},
        cost={name: entry["value"] for name, entry in card.items()} | {"cpu_s": read_cpu_s(job.directory)},
        metrics=last_metrics(job.directory),
    )


def last_metrics(directory: Path) -> dict[str, float]:
    """The last reading of the metrics of a run, the last of its chain."""
    file = directory / str(runs.read_state(directory).get("last_run") or "") / "metrics.csv"
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return {name: float(rows[-1][name]) for name in WATCHED if rows and rows[-1].get(name)}


def write(results: Sequence[Result], options: argparse.Namespace) -> None:
    """The records, the table and the plot."""
    write_json(options.out.with_suffix(".json"), [asdict(result) for result in results])
    with atomic_write(options.out.with_suffix(".md"), "w") as file:
        file.write(table(results, options))
    done = [result for result in results if result.errors]
    if done:
        plot(done, options.out.with_suffix(".png"))


def table(results: Sequence[Result], options: argparse.Namespace) -> str:
    """The table as markdown."""
    lines = [
        f"# Learning from {options.hours:g} hours of audio",
        "",
        f"`python benchmarks/learning.py {' '.join(map(str, sys.argv[1:]))}`",
        "",
        "Errors of linear heads on frozen features, of voices and sentences that neither pretraining nor heads met,",
        "at the layer chosen on dev. *Untrained* is the same encoder before its first step. A phone error in bold is",
        "below both log-mel's and the untrained encoder's.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
    ]
    lines += [row(result) for result in results]
    return "\n".join(lines) + "\n"


def row(result: Result) -> str:
    """A result as a row of the table."""
    if not result.errors:
        return f"| {result.name} | {result.seed} | {result.steps or '-'} | {result.failure} |" + " |" * (
            len(COLUMNS) - 4
        )
    phones, languages, cost = result.errors["phone"], result.errors["language"], result.cost
    mark = "**" if beats(result) else ""
    cells = [
        result.name,
        result.seed,
        result.steps,
        f"{mark}{100 * phones['pretrained']:.1f} %{mark}",
        *(f"{100 * phones[name]:.1f} %" for name in ("untrained", "logmel")),
        *(f"{100 * languages[name]:.1f} %" for name in ("pretrained", "untrained", "logmel")),
        number(cost, "cpu_s", 1, 0),
        number(cost, "audio_s_per_s", 1, 0),
        number(cost, "macs_per_audio_s", 1e9, 3),
        number(cost, "params", 1e6, 2),
        ", ".join(f"{name} {value:.3g}" for name, value in result.metrics.items()),
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def beats(result: Result) -> bool:
    """Whether training took the phone error below that of log-mel and of the untrained encoder."""
    phones = result.errors["phone"]
    return phones["pretrained"] < min(phones["untrained"], phones["logmel"])


def number(cost: Mapping[str, float | None], name: str, unit: float, digits: int) -> str:
    """A number of the cost card in a unit."""
    value = cost.get(name)
    return "-" if value is None else f"{value / unit:.{digits}f}"


def point_name(result: Result, results: Sequence[Result]) -> str:
    """What tells a run from the others: its experiment, unless all have the same, and the values that it chose."""
    experiment, *choices = result.name.split()
    shared = len({other.name.split()[0] for other in results}) == 1 and choices
    return " ".join([*([] if shared else [experiment.removesuffix("_tiny")]), *(c.partition("=")[2] for c in choices)])


def plot(results: Sequence[Result], path: Path) -> None:
    """Phone error over processor seconds of training and over the encoder's operations, a point a run."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, name, unit, label in (
        (axes[0], "cpu_s", 1.0, "processor seconds of training"),
        (axes[1], "macs_per_audio_s", 1e9, "encoder, GMAC a second of audio"),
    ):
        for place, result in enumerate(results):
            cost = result.cost.get(name)
            if cost is None:
                continue
            error = 100 * result.errors["phone"]["pretrained"]
            axis.scatter(cost / unit, error, color=f"C{place % 10}", marker="o" if beats(result) else "x")
            axis.annotate(point_name(result, results), (cost / unit, error), fontsize=7, xytext=(4, 3),
                          textcoords="offset points")  # fmt: skip
        axis.axhline(100 * results[0].errors["phone"]["logmel"], color="0.6", linestyle=":", label="log-mel")
        axis.set_xscale("log")
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("phone error of unseen voices, %")
    axes[0].legend(frameon=False, fontsize=8)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=130)


def main(argv: Sequence[str] | None = None) -> None:
    """Carry out every job and write what came of it after each."""
    options = arguments(argv)
    jobs = plan(options)
    failures: dict[Path, str | None] = {}
    for place, job in enumerate(jobs, start=1):
        if isinstance(job, Result) or options.gather:
            continue
        sys.stderr.write(f"{place}/{len(jobs)} {job.name}, seed {job.seed}: {job.directory}\n")
        failures[job.directory] = carry_out(job, options)
        write(
            [one if isinstance(one, Result) else result_of(one, failures.get(one.directory)) for one in jobs], options
        )
    write([one if isinstance(one, Result) else result_of(one, failures.get(one.directory)) for one in jobs], options)


if __name__ == "__main__":
    main()
