"""Every command of the README is run: those that train for hours at toy size, those of a cluster up to their config."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import soundfile

from ossicle.data.audio import decode
from ossicle.data.index import DatasetIndex
from tests.launch.toy import ENVIRONMENT, TOY, command

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
LINES = [line.strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
NOT_CHOSEN = {"callback", "hydra", "layer", "ops"}  # groups of conf/ of which a user seldom exchanges the options
SET_UP = "pip install uv && uv run "  # what .ci/run does; here the environment exists

TOYS = [o for o in TOY if not o.startswith(("data.max_crop_s", "data.min_crop_s"))]
SHORT = [*TOYS, "data.max_crop_s=2", "data.min_crop_s=1", "max_steps=2"]


def listed(key: str, overrides: list[str]) -> str:
    """Overrides as the value of a key, each in quotes, as Hydra wants them in a list."""
    return f"{key}=[{','.join(repr(override) for override in overrides)}]"


PROBE = ["train_s=60", "dev_s=20", "test_s=20", "seeds=[0]", "threads=1"]
EXTRA = {
    "demo": [
        "hours=0.05",
        listed("prepare", ["corpus.num_voices=8", "shard_s=40", "workers=1"]),
        listed("pretrain", SHORT),
        listed("probe", PROBE),
    ],
    "pretrain": SHORT,
    "probe": PROBE,
    "prepare": ["shard_s=40", "workers=1"],
    "label": ["sample_frames=2000"],
}  # fmt: skip


def on_hardware(words: list[str]) -> bool:
    """Whether a command asks for what no test machine has: many GPUs, or a cluster."""
    return any(word.startswith("cluster") for word in words)


@pytest.fixture(scope="module")
def home(synthetic_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of someone who follows the README: recordings in my_audio, the project's scripts."""
    folder = tmp_path_factory.mktemp("home")
    for split in ("train", "dev", "test"):
        index = DatasetIndex.load(synthetic_dataset, split)
        for row in range(index.num_utterances):
            meta = index.read_meta(row)
            path = folder / "my_audio" / meta.speaker / f"{row}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, decode(index.read_audio(row)), 16_000)
    lines = ["path\tlang\tspeaker\ttext\tsplit"]
    for number, path in enumerate(sorted((folder / "my_audio").rglob("*.wav"))):
        split = "dev" if number % 4 == 0 else "train"
        lines.append(f"{path.relative_to(folder / 'my_audio')}\t{'ab'[number % 2]}\t{path.parent.name}\t\t{split}")
    (folder / "my_audio" / "manifest.tsv").write_text("\n".join(lines) + "\n")
    shutil.copytree(ROOT / "slurm", folder / "slurm")
    return folder


def test_the_readme_holds_commands() -> None:
    assert f"{SET_UP}ossicle demo" in LINES
    assert f"{SET_UP}pytest" in LINES


def test_every_command_of_the_readme_works_in_its_order(home: Path) -> None:
    for line in LINES:
        words = shlex.split(line.removeprefix(SET_UP))
        if words[0] == "pytest":
            continue  # that is this very run
        if words[0] == "sbatch":
            run = ["bash", "-n", words[1]]
        elif on_hardware(words):
            run = command(*words[1:], "--cfg", "job")
        else:
            run = command(*words[1:], *EXTRA[words[1]])
        ran = subprocess.run(run, capture_output=True, text=True, cwd=home, env=ENVIRONMENT, check=False, timeout=400)
        assert ran.returncode == 0, f"{line}\n{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}"
    assert list(home.glob("runs/demo/*/demo.json"))
    assert list(home.glob("runs/hubert_tiny/*/probe.json"))


def test_every_word_has_a_row_in_the_readme_and_every_part_that_it_names_exists() -> None:
    word, named = "", dict[str, set[str]]()
    for key, cell in re.findall(r"^\| (?:`\+?([\w/]+)[@.\w]*=` )?\| ([^|]*)\|", README, re.MULTILINE):
        word = key or word  # a row without a word goes on with the one above
        named.setdefault(word, set()).update(re.findall(r"`(\w+)`", cell))
    words = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()} - NOT_CHOSEN
    assert words <= {word.partition("/")[0] for word in named}
    for word, options in named.items():
        files = {path.stem for path in (ROOT / "conf" / word).glob("*.yaml")}
        assert options - {"_tiny"} <= files, f"{word}: {options - files}"
        assert options, word
