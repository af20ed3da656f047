"""Everything that waits for a GPU, in one command for a machine that is lent for minutes: tests, steps, peers, mixers.

    PYTHONPATH=src:. python benchmarks/gpu.py --out results --limit 540
    PYTHONPATH=src:. python benchmarks/gpu.py --out results --limit 540 --only peers,step_64

What matters most comes first. Each task has a limit of its own and none may take more than what is left of the whole,
so that what was measured is written: OUT/records.json holds every record by task, OUT/summary.json what came of each,
and OUT/log.txt all that was said. Tasks are forks of one process that has imported everything and touched no GPU, since
importing takes ten to twenty seconds on a fresh machine; the trainer's recordings are made beside the first of them.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import TextIOWrapper
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from ossicle.core.files import read_json, write_json

# Asked whether there is a GPU, torch is to ask NVML and not to start the driver, which forks could not use then.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

IMPORTED = (
    "ossicle.launch.cli", "ossicle.system.pretraining", "ossicle.launch.config", "lightning.pytorch",
    "transformers.models.hubert.modeling_hubert", "torchaudio", "triton", "pytest", "sklearn.cluster",
)  # fmt: skip
"""What most tasks import and what takes longest; one that is not installed is left out."""

STEP = (
    "hubert_base", "hubert_base compile=true", "hubert_base compile=true compile_mode=reduce-overhead",
    "hubert_base recompute.blocks=12 recompute.frontend=true",
)  # fmt: skip
"""How HuBERT Base may be run, the first being what the ratios are to."""
FAMILIES = (
    "hubert_base", "melhubert", "fast_hubert", "sew_small", "summary_mixing_wav2vec2", "wav2vec2_base",
    "best_rq", "spiral_base", "essl", "mr_hubert", "data2vec_base",
)  # fmt: skip
"""Experiments whose papers claim a speed."""
COMPILED = ("hubert_base", "summary_mixing_wav2vec2", "sew_small", "spiral_base", "essl")
"""Experiments that wait for the host, or read and write much between products, where nothing is compiled."""
WIDE = ("hubert_base", "data2vec2_base")
"""Such as need more memory than the others, and what they stand beside."""
EVERY = "[ossicle,transformers,transformers_wav2vec2,torchaudio,minimal_hubert]"
"""Systems of the table of peers."""
ORDER = (
    "tests", "trainer", "peers_64", "families_wide", "mixers_new", "peers_11", "families_compiled", "mixers",
    "families", "step", "peers_32", "all_tests",
)  # fmt: skip
"""What matters most comes first."""
NEW = "[alibi_attention,relative_attention,mamba,gru,lstm,ligru,sligru,summary]"
"""Mixers whose kernels a GPU has not timed yet, or whose passes over memory have changed."""
TESTED = (
    "tests/ops",
    "tests/system/test_pretraining.py",
    "tests/data/test_transfer.py",
    "tests/callback/test_trace.py",
)
"""Tests of kernels, and of what a step and a loader may wait for."""
TESTS = ("tests", "all_tests")
"""Tasks that time nothing."""
_PATIENCE_S = 8.0
RECORDS = "RECORDS"
"""Stands in a command where the path of its records is to be."""


def tasks(device: str, *, small: bool) -> dict[str, tuple[float, list[str]]]:
    """Limit in seconds and command of every task, by name, the most important first.

    Args:
        device: cuda or cpu.
        small: Whether sizes and repetitions are those of a trial.
    """
    crop, often = (
        ("crop_s=1", ["steps=1", "rounds=1", "warmup=0"]) if small else ("crop_s=15.6", ["steps=8", "rounds=2"])
    )
    on = [f"device={device}", crop, *often]
    sizes = ["sizes={dim: 16, layers: 1, heads: 2, ffn_dim: 32, conv_dim: 16}"] if small else []
    told = "[" + ",".join(json.dumps(name) for name in (("hubert_tiny",) if small else STEP)) + "]"
    built = ",".join(json.dumps(f"{name} compile=true") for name in (("hubert_tiny",) if small else COMPILED))
    families, wide = (
        f"[{','.join(names)}]" for names in ((("hubert_tiny", "best_rq_tiny"),) * 2 if small else (FAMILIES, WIDE))
    )
    # in one process: the tests share one GPU
    tests = [
        sys.executable, "-m", "pytest", "-v", "-o", "addopts=--import-mode=importlib", "-m", "gpu", "--tb=short",
        "-o", "timeout=60", "-p", "no:cacheprovider",
    ]  # fmt: skip
    found: dict[str, tuple[float, list[str]]] = {
        "tests": (110, [*tests, "--maxfail=4", *TESTED]),
        "all_tests": (240, tests),
    }
    fast = "[ossicle,minimal_hubert]"  # the two that all others are behind, and that fit at every batch
    settings = ((1, "[false]", "[ossicle]"),) if small else (
        (64, "[true]", fast), (11, "[reduce-overhead,false,true]", EVERY), (32, "[false,true]", EVERY),
    )  # fmt: skip
    for batch, compiled, systems in settings:
        peers = [f"compile={compiled}", f"batch={batch}", *sizes, *on, f"systems={systems}"]
        peers += [] if small or batch > 11 else ["together=true"]
        found[f"peers_{batch}"] = (200 if batch > 32 else 250, ossicle("peers", "precision=bfloat16", *peers))
    found["trainer"] = (400 if small else 150, trainer(device, small=small))
    alone = [*on, "apart=false"]
    found["families"] = (200, ossicle("step", f"experiments={families}", f"batch={1 if small else 64}", *alone))
    found["families_wide"] = (90, ossicle("step", f"experiments={wide}", f"batch={1 if small else 32}", *alone))
    found["families_compiled"] = (200, ossicle("step", f"experiments=[{built}]", f"batch={1 if small else 64}", *alone))
    found["step"] = (180, ossicle("step", f"experiments={told}", f"batch={1 if small else 64}", *alone))
    trial = ["lengths=[50,100]", "mixers=[attention,summary]", "dim=16", "heads=2", "repeats=1"]
    whole = ["rows=8", "max_s=2", "max_gb=50"]
    part = ["rows=8", "max_s=0.5", "max_gb=50", "repeats=2", f"mixers={NEW}"]
    mixer = [f"device={device}", "precision=bfloat16"]
    found["mixers"] = (240, ossicle("mixer", *mixer, *(trial if small else whole)))
    found["mixers_new"] = (120, ossicle("mixer", *mixer, *(trial if small else part)))
    return {name: found[name] for name in sorted(found, key=lambda name: ORDER.index(name) if name in ORDER else 0)}


def trainer(device: str, *, small: bool) -> list[str]:
    """The command of the trainer beside its step."""
    line = ["--device", device, "--work", f"{tempfile.gettempdir()}/trainer", "--out", RECORDS]
    if small:
        line += ["--crop-s=1", "--batch=2", "--steps=1", "--workers=0", "experiment=hubert_tiny"]
    else:
        line += ["--batch=64", "--workers=8", "--copies=4", "--no-after", "experiment=hubert_base", "compile=true"]
    return [sys.executable, "benchmarks/trainer.py", *line]


def ossicle(bench: str, *words: str) -> list[str]:
    """The command line of a bench."""
    return [sys.executable, "-m", "ossicle.launch.cli", "bench", bench, *words]


def carry_out(line: Sequence[str], log: Path) -> None:
    """A command of Python in this process, whose output goes to a file."""
    os.setsid()  # a session of its own, so that what it starts ends with it: what is left over slows what is timed next
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n===== {' '.join(line)}\n")
        file.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, TextIOWrapper)
        stream.reconfigure(line_buffering=True)  # what was said is to be there when the process is killed
    if line[1] == "-m":
        sys.argv = [line[2], *line[3:]]
        runpy.run_module(line[2], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(line[1:])
        runpy.run_path(line[1], run_name="__main__")


def touch_gpu() -> None:
    """Make a tensor on the GPU."""
    torch.zeros(1, device="cuda")


def context(device: str) -> BaseContext:
    """How tasks are begun: as forks, unless something that was imported has started CUDA, which forks cannot use."""
    fork = multiprocessing.get_context("fork")
    if device == "cuda":
        probe = fork.Process(target=touch_gpu)
        probe.start()
        probe.join()
        if probe.exitcode != 0:
            sys.stderr.write("a fork cannot use the GPU: each task imports everything anew\n")
            return multiprocessing.get_context("spawn")
    return fork


def start(line: Sequence[str], log: Path, how: BaseContext) -> BaseProcess:
    """Begin a command in a process of its own."""
    process = how.Process(target=carry_out, args=(line, log))  # ty: ignore[unresolved-attribute]  each context has it
    process.start()
    return process


def run(name: str, command: Sequence[str], limit_s: float, out: Path, how: BaseContext) -> tuple[str, object]:
    """What came of a task, in a word, and its records; all that it says is added to the log."""
    records = out / f"{name}.json"
    line = [str(records) if word == RECORDS else word for word in command]
    line += [f"out={records}"] if "bench" in command else []
    outcome = ended(start(line, out / "log.txt", how), limit_s)
    found = read_json(records) if records.is_file() else None
    records.unlink(missing_ok=True)
    return outcome, found


def ended(process: BaseProcess, limit_s: float) -> str:
    """How a process ended, which has no more time than this."""
    process.join(limit_s)
    if process.exitcode is None:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)  # what it has to say at its end, it says now
        process.join(_PATIENCE_S)
        with suppress(ProcessLookupError):  # all of it has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        return f"stopped after {limit_s:.0f} s"
    return "done" if process.exitcode == 0 else f"ended with {process.exitcode}"


def import_all() -> None:
    """Import what the tasks need, once for all of them."""
    for name in IMPORTED:
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:
            sys.stderr.write(f"{name} is not imported beforehand: {error}\n")


def main(argv: Sequence[str] | None = None) -> Mapping[str, object]:
    """Carry out what there is time for. Returns the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=float, default=540, help="seconds for all of it")
    parser.add_argument("--only", type=lambda text: text.split(","), default=None, help="names of tasks")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="a trial of the commands, whose figures mean nothing")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + options.limit
    summary: dict[str, str] = {}
    records: dict[str, object] = {}
    known = tasks(options.device, small=options.small)
    unknown = set(options.only or ()) - set(known)
    if unknown:
        parser.error(f"there is no task {', '.join(sorted(unknown))}: choose from {', '.join(known)}")
    chosen = [name for name in known if options.only is None or name in options.only]
    import_all()
    how = context(options.device)
    preparing = None
    if "trainer" in chosen:
        line = [*trainer(options.device, small=options.small), "--prepare"]
        preparing = start(line, options.out / "prepare.txt", how)
    for name in chosen:
        limit_s, command = known[name]
        left_s = end - time.monotonic()
        if left_s < 1:
            summary[name] = "no time was left"
            continue
        if name not in TESTS and preparing is not None:  # nothing is timed beside it
            ended(preparing, left_s)
            preparing = None
            left_s = max(1.0, end - time.monotonic())
        begin = time.monotonic()
        outcome, records[name] = run(name, command, min(limit_s, left_s), options.out, how)
        summary[name] = f"{outcome}, {time.monotonic() - begin:.0f} s"
        write_json(options.out / "summary.json", summary)
        write_json(options.out / "records.json", records)
    write_json(options.out / "summary.json", summary)
    sys.stdout.write("".join(f"{name}: {outcome}\n" for name, outcome in summary.items()))
    return summary


if __name__ == "__main__":
    main()
