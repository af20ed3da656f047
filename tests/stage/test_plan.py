import pytest

from ossicle.stage.plan import Iterations, Run, Single


def test_a_single_stage_is_one_run_in_the_run_directory() -> None:
    (run,) = Single().runs()
    assert (run.name, run.label_source, run.max_steps) == ("", None, None)


def test_iterations_keep_their_order() -> None:
    chain = Iterations([Run("a", "mfcc", clusters=100), Run("b", "layer", layer=6, clusters=500)])
    assert [run.name for run in chain.runs()] == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"label_source": "mel", "clusters": 5}, "one of mfcc, layer"),
        ({"label_source": "mfcc"}, "no number of clusters"),
        ({"label_source": "layer", "clusters": 5}, "names no layer"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Run(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("chain", "words"),
    [
        ([], "at least one run"),
        ([Run("a", "layer", layer=1, clusters=5)], "no run before it"),
        ([Run("a", "mfcc", clusters=5), Run("a", "mfcc", clusters=5)], "share a name"),
    ],
)
def test_a_chain_that_cannot_be_carried_out_is_refused(chain: list[Run], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Iterations(chain)
