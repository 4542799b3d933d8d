import pytest
import torch
from conftest import ROOT
from peft import get_peft_config, get_peft_model

from modeling_alta import AltaConfig, AltaForPreTraining
from recipes.recipe import RecipeError, TrainArguments, build_arguments, read_recipe


START = {"stage": "alta", "records": "records", "output_dir": "run", "base": "base"}


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_is_valid(path):
    assert isinstance(read_recipe(path), TrainArguments)


def test_published_recipe_is_the_default():
    published, defaults = read_recipe(ROOT / "recipes" / "alta_mimic.yaml"), build_arguments(START)
    names = ("batch_size", "num_epochs", "schedule_epochs", "warmup_epochs", "base_learning_rate", "weight_decay")
    assert [getattr(published, name) for name in names] == [getattr(defaults, name) for name in names]
    assert (published.batch_size, published.num_epochs, published.betas) == (24, 30, [0.9, 0.95])


def test_overrides_reach_into_mappings_and_are_read_as_yaml(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("stage: alta\nrecords: r\noutput_dir: o\nbase: b\npeft: {peft_type: ALTA_ADAPTER}\n")
    args = read_recipe(
        path, ["peft.bottleneck_ratio=0.5", "base_learning_rate=1e-3", "log_with=null", "warmup_epochs=1"]
    )
    assert args.peft == {"peft_type": "ALTA_ADAPTER", "bottleneck_ratio": 0.5}
    assert (args.base_learning_rate, args.log_with, args.warmup_epochs) == (0.001, None, 1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 1}, r"got \['learning_rate'\]"),
        ({"records": None}, r"got none for \['records'\]"),
        ({"batch_size": "many"}, "`batch_size` must be of type int, got 'many'"),
        ({"batch_size": True}, "`batch_size` must be of type int, got True"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"weight_decay": "heavy"}, "`weight_decay` must be a number, got 'heavy'"),
        ({"stage": "clip"}, r"`stage` must be one of \['mrm', 'alta', 'adapt', 'classify'\], got 'clip'"),
        ({"batch_size": 8, "micro_batch_size": 3}, "`micro_batch_size` must divide `batch_size` 8, got 3"),
        ({"stage": "mrm", "text_encoder": "t", "micro_batch_size": 8}, "which the stage mrm has none of"),
        ({"stage": "adapt", "base": None}, "`base` must be the trained model that the stage adapt starts from"),
        ({"validation_studies": 0}, "`validation_studies` must be at least 1, got 0"),
        ({"mixed_precision": "fp8"}, "`mixed_precision` must be one of"),
        ({"schedule_epochs": 10}, "`schedule_epochs` must be at least `num_epochs` 30, got 10"),
        ({"model": {"hidden": 3}}, r"`model` must hold fields of AltaConfig, got \['hidden'\]"),
        ({"mrm": "MRM.pth"}, "`text_encoder` must be the folder"),
        ({"betas": [0.9]}, r"`betas` must be two numbers, got \[0.9\]"),
        ({"seed": -1}, "`seed` must be at least 0, got -1"),
        ({"checkpoint_every": -1}, "`checkpoint_every` must be at least 0, got -1"),
        ({"peft": {"peft_type": "LORAX"}}, "`peft_type` of `peft` must be a method of PEFT, got 'LORAX'"),
        ({"peft": {"rank": 3}}, "`peft` must hold fields of its config, got .*'rank': 3"),
        ({"stage": "classify", "adapter": "a"}, "`adapter` starts the stages alta and adapt alone, got a in classify"),
        ({"adapter": "a", "peft": {"r": 3}}, "`peft` must be empty where `adapter` a says it, got {'r': 3}"),
        ({"base": None}, "Either `mrm` or `base` must start the stage alta, .* got mrm=None and base=None"),
    ],
)
def test_a_bad_setting_is_an_error_that_names_it(settings, message):
    with pytest.raises(ValueError, match=message):
        build_arguments(START | settings)


@pytest.mark.parametrize("content", ["- a list", "a: [", "just text"])
def test_a_file_that_is_no_recipe_is_an_error_with_its_path(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"must be a recipe.*recipe\.yaml"):
        read_recipe(path)


@pytest.mark.parametrize("name", ["adapt_hospital", "alta_mimic", "classify_mimic"])
def test_a_field_of_the_adapters_is_overridden_in_every_recipe(name):
    overrides = ["peft.bottleneck_ratio=0.125", "adapter=null"]
    args = read_recipe(ROOT / "recipes" / f"{name}.yaml", overrides)
    assert args.peft.items() >= {"peft_type": "ALTA_ADAPTER", "bottleneck_ratio": 0.125}.items()


def test_a_run_folder_of_before_says_the_default_beside_the_adapter_that_started_it():
    args = build_arguments(START | {"adapter": "a", "peft": {"peft_type": "ALTA_ADAPTER"}})
    assert args.peft == {}


def test_no_is_a_precision_though_yaml_reads_it_as_false():
    assert read_recipe(ROOT / "recipes" / "alta_mimic.yaml", ["mixed_precision=no"]).mixed_precision == "no"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stage.x=1", "`stage` must be a mapping to have a field, got 'alta' and 'stage.x=1'"),
        ("model.missing_views=[", r"`overrides` must have values in YAML, got 'model.missing_views=\['"),
    ],
)
def test_an_override_that_cannot_be_read_is_an_error_that_names_it(override, message):
    with pytest.raises(RecipeError, match=message):
        read_recipe(ROOT / "recipes" / "alta_mimic.yaml", [override])


def test_an_override_without_a_value_is_an_error(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("stage: alta")
    with pytest.raises(ValueError, match="must have the form name=value, got 'seed'"):
        read_recipe(path, ["seed"])


@pytest.mark.parametrize(("name", "trained"), [("alta_mimic", 18_333_502), ("alta_lora_mimic", 18_287_422)])
def test_published_size_trains_what_the_recipe_says(name, trained):
    # LoRA: rank 48 × 12,288 rows and columns a layer × 24 layers, and the 4,131,646 that train beside the adapters.
    with torch.device("meta"):
        base = AltaForPreTraining(AltaConfig(use_adapters=False))
        model = get_peft_model(base, get_peft_config(dict(read_recipe(ROOT / "recipes" / f"{name}.yaml").peft)))
    assert model.get_nb_trainable_parameters()[0] == trained
