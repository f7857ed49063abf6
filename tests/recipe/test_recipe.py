from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.errors import RecipeError
from stoker.recipe import (
    Recipe,
    as_yaml,
    changed_keys,
    json_schema,
    parse_recipe,
    read_recipe,
    renamed,
    stored_model,
    stored_recipe,
)

RECIPES = sorted((Path(__file__).parents[2] / "jobs" / "recipes").glob("*.yaml"))
SMALL = """
name: small
storage: s3://bucket
data: {url: s3://bucket/data}
model: {name: resnet18}
batch: {total: 64, micro: 16}
optimizer: {lr: 0.1}
schedule: {epochs: 3}
"""


def small(*overrides: str) -> Recipe:
    return parse_recipe(SMALL, "small.yaml", overrides)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_each_shipped_recipe_reads_and_reads_back_equal(path: Path) -> None:
    recipe = read_recipe(path)
    assert parse_recipe(as_yaml(recipe), "again") == recipe


@given(st.floats(1e-8, 1e3), st.integers(1, 500), st.integers(0, 2**63 - 1))
def test_a_resolved_recipe_reads_back_equal_whatever_its_numbers(rate: float, epochs: int, seed: int) -> None:
    recipe = small(f"optimizer.lr={rate!r}", f"schedule.epochs={epochs}", f"seed={seed}")
    assert (recipe.optimizer.lr, recipe.schedule.epochs, recipe.seed) == (rate, epochs, seed)
    assert parse_recipe(as_yaml(recipe), "again") == recipe


def test_an_override_reaches_a_section_that_the_file_leaves_out() -> None:
    assert small("ema.decay=0.99", "data.augment.flip=0").ema.decay == 0.99  # type: ignore[union-attr]


def test_keys_by_their_old_names_are_read_and_warned_about_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renamed, "_warned", set())
    path = tmp_path / "old.yaml"
    path.write_text(SMALL + "patience_s: 50\nworkers: {hang_s: 90}\n")
    for _ in range(2):
        recipe = read_recipe(path, ["patience_s=70"])
        assert (recipe.storage_timeout_s, recipe.workers.stall_timeout_s) == (70, 90)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: patience_s is now called storage_timeout_s; the old name still works",
        f"{path}: workers.hang_s is now called workers.stall_timeout_s; the old name still works",
    ]


def test_old_keys_in_a_section_that_an_override_gives_are_read() -> None:
    recipe = small("workers={min: 2, max: 2, gpus: 0, cpus: 1, hang_s: 700}")
    assert (recipe.workers.min, recipe.workers.stall_timeout_s) == (2, 700)


def test_a_recipe_that_a_version_stored_with_old_names_is_read() -> None:
    stored = small().model_dump(mode="json")
    stored["patience_s"] = stored.pop("storage_timeout_s")
    stored["workers"]["hang_s"] = stored["workers"].pop("stall_timeout_s")
    assert stored_recipe(stored) == small()


def test_keys_that_a_later_stoker_stored_are_passed_over_and_values_are_not() -> None:
    stored = small().model_dump(mode="json")
    for section in (stored, stored["model"], stored["workers"]):
        section["tomorrow"] = {"a": 1}
    assert stored_recipe(stored) == small()
    assert stored_model(stored["model"]) == small().model
    stored["model"]["classes"] = "many"
    with pytest.raises(RecipeError, match=r"^the stored recipe: model\.classes.*; upgrade stoker, or train") as caught:
        stored_recipe(stored)
    assert "\n" not in str(caught.value)


def test_a_key_by_both_of_its_names_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"small\.yaml: patience_s is the old name of storage_timeout_s, and both"):
        parse_recipe(SMALL + "patience_s: 50\nstorage_timeout_s: 60\n", "small.yaml")


def test_numbers_and_words_are_those_of_yaml_1_2() -> None:
    recipe = small("optimizer.lr=1e-3", "name=no")
    assert (recipe.optimizer.lr, recipe.name) == (1e-3, "no")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optimizer.lrr=2", "small.yaml: optimizer.lrr: unknown key; did you mean optimizer.lr?"),
        ("epochs=3", "small.yaml: epochs: unknown key; did you mean schedule.epochs?"),
        ("ema.decya=0.9", "small.yaml: ema.decya: unknown key; did you mean ema.decay?"),
        ("optimizer.lr=fast", 'small.yaml: optimizer.lr: input should be a valid number, not "fast"'),
        ("data.image_size=2.5", "small.yaml: data.image_size: input should be a valid integer, not 2.5"),
        ("optimizer.name=lars", "small.yaml: optimizer.name: input should be 'sgd', 'adamw' or 'lamb', not \"lars\""),
        (
            "loss.class_weights=inverse",
            "small.yaml: loss.class_weights: input should be 'none' or 'balanced', not \"inverse\"",
        ),
        ("batch.micro=13", "small.yaml: batch: total (64) must be a multiple of micro (13)"),
        ("batch.micro=0", "small.yaml: batch.micro: input should be greater than 0, not 0"),
        (
            "workers.max=9",
            "small.yaml: workers.max (9) is above the number of micro-batches (batch.total / batch.micro = 4); "
            "lower it or batch.micro",
        ),
        ("schedule.warmup_epochs=4", "small.yaml: schedule: warmup_epochs (4) is longer than epochs (3)"),
        ("optimizer=3", "small.yaml: optimizer: input should be an object, not 3"),
        ("seed", "override 'seed': write it as key=value, for example optimizer.lr=0.2"),
        ("name.first=x", "override name.first: name is a value, not a section"),
    ],
)
def test_a_bad_override_gets_one_line_that_names_the_key(override: str, line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        small(override)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ("workers.gpus=0", "data.decode is gpu, but workers.gpus is 0; set data.decode to cpu or give workers a GPU"),
        ("data.scales_in_dct=true", "data: scales_in_dct is for decode: cpu; with decode: gpu leave it out"),
    ],
)
def test_decoding_on_the_gpu_is_refused_where_it_cannot_be(other: str, line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        small("data.decode=gpu", other)
    assert str(caught.value) == f"small.yaml: {line}"


@pytest.mark.parametrize(
    ("others", "line"),
    [
        (
            ["reproducible=true", "gradient_compression=bfloat16"],
            "reproducible sums gradients exactly, gradient_compression bfloat16 rounds them; set reproducible to false "
            "or gradient_compression to none",
        ),
        (
            ["reproducible=true", "sync_batch_norm=true"],
            "with sync_batch_norm the statistics depend on the number of workers, which reproducible rules out; set "
            "one of them to false",
        ),
        (
            ["reproducible=false", "sync_batch_norm=true", "workers.gpus=0"],
            "sync_batch_norm is for GPUs, but workers.gpus is 0; set sync_batch_norm to false",
        ),
        (
            ["reproducible=false", "sync_batch_norm=true", "workers.gpus=1", "workers.min=3", "workers.max=3"],
            "with sync_batch_norm all workers need the same number of micro-batches in each step: set workers.min and "
            "workers.max to one divisor of batch.total / batch.micro, and data.last_batch to drop",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(others: list[str], line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        small(*others)
    assert str(caught.value) == f"small.yaml: {line}"


def test_a_file_that_is_missing_or_not_a_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere.yaml: recipe not found"):
        read_recipe(tmp_path / "nowhere.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,\nb: 2")
    with pytest.raises(RecipeError, match=rf"^{broken}: not valid YAML: line 2, column"):
        read_recipe(broken)
    broken.write_text("- 1\n- 2")
    with pytest.raises(RecipeError, match="a recipe is a mapping of keys to values, this is a list"):
        read_recipe(broken)


def test_a_duplicate_key_is_refused() -> None:
    with pytest.raises(RecipeError, match="line 2, column 1: duplicate key 'name'"):
        parse_recipe("name: a\nname: b\n", "twice.yaml")


def test_what_does_not_change_the_result_may_change_when_a_run_continues() -> None:
    assert changed_keys(small(), small("workers.max=4", "checkpoint.every_steps=7")) == []
    assert changed_keys(small(), small("optimizer.lr=0.2")) == ["optimizer.lr"]
    assert changed_keys(small(), small("schedule.epochs=9")) == ["schedule.epochs"]
    assert changed_keys(small(), small("loss.class_weights=balanced")) == ["loss.class_weights"]


def test_a_run_that_a_version_without_class_weights_stored_had_none() -> None:
    stored = small().model_dump(mode="json")
    del stored["loss"]["class_weights"]
    assert stored_recipe(stored).loss.class_weights == "none"


def test_what_changes_rounding_alone_may_change_unless_the_run_is_reproducible() -> None:
    layout, exact = "channels_last=false", "reproducible=true"
    assert changed_keys(small(), small("compile=true", layout)) == []
    assert changed_keys(small(exact), small(exact, layout)) == ["channels_last"]
    assert "compile" in changed_keys(small("compile=true"), small(exact))


def test_the_json_schema_describes_every_section() -> None:
    assert set(json_schema()["properties"]) == set(Recipe.model_fields)


def test_every_key_has_a_description_that_is_about_it_alone() -> None:
    schema = json_schema()
    sections = {"Recipe": schema, **schema["$defs"]}
    described = {
        f"{section}.{key}": field.get("description", "")
        for section, content in sections.items()
        for key, field in content["properties"].items()
    }
    assert len(described) > 90
    assert [key for key, text in described.items() if len(text) < 8 or text.endswith(".")] == []
    assert [name for name, content in sections.items() if not content.get("description")] == []
