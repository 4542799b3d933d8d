"""Full and adapter repositories: what is in them, and that they load with and without this package."""

import ast
import json
import os
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from hub_server import hub_environment, running_hub
from huggingface_hub import HfApi, ModelCard
from load_repositories import embed
from peft import LoraConfig, PeftModel, get_peft_model
from repositories import make_adapter, make_base, make_full, make_processor, plain, rank, run_script, write_inputs
from safetensors.torch import load_file
from tiny import make_batch, randomise
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    pipeline,
)
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import hub

from modeling_alta import (
    AltaAdapterConfig,
    AltaConfig,
    AltaForMaskedRecordModeling,
    AltaForPreTraining,
    AltaImageProcessor,
    AltaModel,
    AltaProcessor,
)
from modeling_alta.export_alta import export_adapter, export_full, main
from modeling_alta.shipped_alta import SHIPPED_FILES


NOT_SHIPPED = {"__init__.py", "convert_alta.py", "export_alta.py", "modeling_mrm.py", "published_names.py"}
CODE = ROOT / "modeling_alta"
LOCAL = {"trust_remote_code": False}


class Repositories:
    """The three kinds of repository in one folder, and the models and the processor that went into them."""

    def __init__(self, folder):
        self.folder, self.processor, self.batch = folder, make_processor(), make_batch()
        self.full, self.base, self.adapter = make_full(), make_base(), make_adapter()
        write_inputs(folder)
        export_full(self.full, self.processor, folder / "full")
        export_full(self.base, self.processor, folder / "base")
        export_adapter(self.adapter, self.processor, folder / "adapter", base=folder / "base")
        self.inputs = json.loads((folder / "inputs.json").read_text())
        merged = make_adapter().merge_and_unload()
        models = {"full": self.full, "base": self.base, "adapter": merged}
        self.plain = {kind: plain(model) for kind, model in models.items()}

    def expected(self, kind: str) -> dict:
        """Embeddings and logits worked out without any repository."""
        return embeds(self.plain[kind], self.batch)

    def load_elsewhere(self, environment, *arguments) -> dict:
        """The answers of a process that has no package of ours."""
        folder = self.folder / "elsewhere"
        folder.mkdir(exist_ok=True)
        return json.loads(run_script("load_repositories.py", folder, environment, [self.folder, *arguments])[-1])


@pytest.fixture(scope="module")
def repos(tmp_path_factory) -> Repositories:
    return Repositories(tmp_path_factory.mktemp("repositories"))


def offline(home) -> dict[str, str]:
    return hub_environment("http://127.0.0.1:9", home, {"PATH": os.environ["PATH"]}) | {"HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def local_answers(repos, tmp_path_factory) -> dict:
    names = [repos.folder / name for name in ("full", "adapter", "base")]
    return repos.load_elsewhere(offline(tmp_path_factory.mktemp("home")), "modeling_alta", *names)


@pytest.fixture(scope="module")
def hub_answers(repos, tmp_path_factory) -> dict:
    """Push all three to a small Hub, then load them from there by their names."""
    with running_hub(tmp_path_factory.mktemp("hub")) as endpoint:
        environment = hub_environment(endpoint, tmp_path_factory.mktemp("home"), {"PATH": os.environ["PATH"]})
        pushed = run_script("push_repositories.py", repos.folder, environment, [repos.folder])
        environment["HF_HOME"] = str(tmp_path_factory.mktemp("another_home"))
        names = ("tester/alta", "tester/alta-adapter", "tester/alta-base")
        answers = repos.load_elsewhere(environment, "modeling_alta", *names)
    return answers | {"pushed": pushed}


@pytest.fixture(params=["local", "hub"])
def answers(request) -> dict:
    """What a process without the package got out of local folders and out of a Hub."""
    return request.getfixturevalue(f"{request.param}_answers")


def embeds(model, batch) -> dict:
    with torch.no_grad():
        return embed(model, batch)


def assert_answers(given: dict, expected: dict) -> None:
    for name, value in expected.items():
        assert_close(torch.tensor(given[name]), torch.tensor(value), rtol=1e-5, atol=1e-6, msg=name)


def assert_ranking(given: list[dict], expected: list[dict]) -> None:
    assert [item["label"] for item in given] == [item["label"] for item in expected]
    assert [item["score"] for item in given] == pytest.approx([item["score"] for item in expected], abs=1e-5)


def test_saved_code_loads_without_the_package(answers):
    assert answers["importable"] == []
    origins = {name: value for name, value in answers["full"]["origins"].items() if name != "stock"}
    assert set(origins.values()) == {
        f"transformers_modules:Alta{name}"
        for name in ("Model", "Processor", "ForPreTraining", "ImageProcessor", "Config", "StudyPipeline")
    }
    assert answers["full"]["origins"]["stock"] == "transformers:ZeroShotImageClassificationPipeline"


def test_full_repository_gives_the_outputs_of_the_model_without_the_package(repos, answers):
    expected = repos.expected("full")
    assert_answers(answers["full"], expected)
    assert_answers(answers["full"]["zero_shot"], expected)
    with torch.no_grad():
        assert answers["full"]["loss"] == pytest.approx(repos.full(**repos.batch).loss.item(), rel=1e-5)


def test_processors_give_the_same_inputs_without_the_package(repos, answers):
    frontal = repos.inputs["study"]["current_frontal"]
    pixel_values = repos.processor.image_processor(frontal, return_tensors="pt")["pixel_values"]
    assert torch.equal(torch.tensor(answers["full"]["pixel_values"]), pixel_values)
    input_ids = repos.processor(text=repos.inputs["labels"], padding=True)["input_ids"]
    assert answers["full"]["input_ids"] == answers["adapter"]["input_ids"] == input_ids


def test_pipelines_give_the_scores_of_the_model_without_the_package(repos, answers):
    model = repos.plain["full"]
    study = repos.inputs["study"]
    assert_ranking(answers["full"]["stock_pipeline"], rank(model, repos.processor, study["current_frontal"]))
    assert_ranking(answers["full"]["study_pipeline"], rank(model, repos.processor, study))


def test_adapter_repository_loads_over_its_base_without_the_package(repos, answers):
    expected = repos.expected("adapter")
    assert_answers(answers["adapter"], expected)
    assert_answers(answers["adapter"]["over_base"], expected)
    assert answers["adapter"]["origins"] == {
        "Model": "transformers_modules:AltaModel",
        "Processor": "transformers_modules:AltaProcessor",
    }


def test_command_and_function_push_and_name_what_they_pushed(hub_answers):
    pushed = re.findall(r"/tester/([\w-]+)/commit/", "\n".join(hub_answers["pushed"]))
    assert pushed == ["alta", "alta-base", "alta-adapter"]


def test_full_repository_loads_where_peft_cannot_be_imported(repos, tmp_path):
    answers = repos.load_elsewhere(offline(tmp_path), "modeling_alta,peft", repos.folder / "full")
    assert answers["importable"] == []
    assert_answers(answers["full"], repos.expected("full"))


def test_full_repository_loads_with_the_package_and_no_remote_code(repos):
    full = repos.folder / "full"
    loaded = {AltaModel: AutoModel, AltaForPreTraining: AutoModelForPreTraining, AltaConfig: AutoConfig}
    loaded |= {AltaProcessor: AutoProcessor, AltaImageProcessor: AutoImageProcessor}
    for expected_class, auto_class in loaded.items():
        assert type(auto_class.from_pretrained(full, **LOCAL)) is expected_class
    model = AutoModelForZeroShotImageClassification.from_pretrained(full, **LOCAL)
    assert_answers(embeds(model, repos.batch), repos.expected("full"))


def test_stock_pipeline_runs_with_the_package_and_no_remote_code(repos):
    full, frontal = repos.folder / "full", repos.inputs["study"]["current_frontal"]
    classify = pipeline("zero-shot-image-classification", model=str(full), **LOCAL)
    given = classify(frontal, candidate_labels=repos.inputs["labels"], hypothesis_template=repos.inputs["template"])
    assert_ranking(given, rank(repos.plain["full"], repos.processor, frontal))


def test_adapter_repository_loads_with_the_package_and_no_remote_code(repos):
    expected = repos.expected("adapter")
    model = AutoModel.from_pretrained(repos.folder / "adapter", **LOCAL)
    assert type(model) is AltaModel
    assert_answers(embeds(model, repos.batch), expected)
    base = AutoModel.from_pretrained(repos.folder / "base", **LOCAL)
    assert_answers(embeds(PeftModel.from_pretrained(base, repos.folder / "adapter"), repos.batch), expected)


def test_repositories_hold_weights_code_processor_tokenizer_and_card(repos):
    common = {*SHIPPED_FILES, "README.md", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    names = {kind: {path.name for path in (repos.folder / kind).iterdir()} for kind in ("full", "adapter")}
    assert names["full"] == common | {"config.json", "model.safetensors"}
    assert names["adapter"] == common | {"adapter_config.json", "adapter_model.safetensors"}
    for name in SHIPPED_FILES:
        assert (repos.folder / "adapter" / name).read_bytes() == (CODE / name).read_bytes()


def test_export_of_an_adapter_does_not_look_its_base_up_on_the_hub(repos, tmp_path, monkeypatch):
    ask = "peft.utils.save_and_load.check_file_exists_on_hf_hub"
    monkeypatch.setattr(ask, lambda *args, **kwargs: pytest.fail("asked the Hub"))
    export_adapter(repos.adapter, repos.processor, tmp_path, base="tester/alta-base")


def test_model_saved_again_with_the_package_names_and_holds_the_code_that_it_came_with(repos, tmp_path):
    full = repos.folder / "full"
    for auto_class in (AutoModelForPreTraining, AutoProcessor):
        auto_class.from_pretrained(full, **LOCAL).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.py")} == set(SHIPPED_FILES)
    for name in ("config.json", "processor_config.json"):
        expected, got = (json.loads((folder / name).read_text()) for folder in (full, tmp_path))
        assert got["auto_map"] == expected["auto_map"]
        assert got.get("custom_pipelines") == expected.get("custom_pipelines")


def test_model_saved_again_without_the_package_is_a_repository_of_its_own(repos, tmp_path):
    environment, again = offline(tmp_path / "home"), tmp_path / "again"
    run_script("resave_repository.py", tmp_path, environment, [repos.folder / "full", again])
    assert {path.name for path in again.glob("*.py")} == set(SHIPPED_FILES)
    answers = repos.load_elsewhere(offline(tmp_path / "another_home"), "modeling_alta", again)
    assert_answers(answers["full"], repos.expected("full"))


@pytest.mark.parametrize("push", ["push_to_hub", "save_pretrained"])
def test_pushed_model_takes_its_code_along(repos, tmp_path, monkeypatch, push):
    pushed = []
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *args, **kwargs: ModelCard(""))
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **kwargs: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "create_commit", lambda self, operations, **kwargs: pushed.extend(operations))
    model = AutoModel.from_pretrained(repos.folder / "full", **LOCAL)
    if push == "push_to_hub":
        model.push_to_hub("tester/alta")
    else:
        model.save_pretrained(tmp_path, push_to_hub=True, repo_id="tester/alta")
    assert {"config.json", "model.safetensors", *SHIPPED_FILES} <= {operation.path_in_repo for operation in pushed}


def test_model_that_names_no_code_and_other_processes_write_none(repos, tmp_path):
    repos.full.save_pretrained(tmp_path / "plain")
    model = AutoModel.from_pretrained(repos.folder / "full", **LOCAL)
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not [*tmp_path.rglob("*.py")]


def test_repositories_tell_nothing_of_the_machine_that_wrote_them(repos, tmp_path):
    export_adapter(repos.adapter, repos.processor, tmp_path / "adapter", base="tester/alta-base")
    for folder in (repos.folder / "full", tmp_path / "adapter"):
        for path in folder.iterdir():
            assert str(repos.folder).encode() not in path.read_bytes(), path
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        "tester/alta-base"
    )


def test_export_leaves_the_config_of_the_model_as_it_was(repos):
    assert not hasattr(repos.full.config, "auto_map") and not hasattr(repos.full.config, "custom_pipelines")


def test_card_of_the_repository_is_the_one_given(repos, tmp_path):
    export_full(repos.full, repos.processor, tmp_path, card="---\nlicense: mit\n---\n")
    assert (tmp_path / "README.md").read_text() == "---\nlicense: mit\n---\n"
    plain = (repos.folder / "full" / "README.md").read_text()
    assert "pipeline_tag: zero-shot-image-classification" in plain and "no medical device" in plain


def test_adapter_of_another_name_lies_at_the_top_of_its_repository(repos, tmp_path):
    model = make_adapter()
    model.add_adapter("hospital", AltaAdapterConfig())
    export_adapter(model, repos.processor, tmp_path, base=repos.folder / "base", adapter_name="hospital")
    assert not (tmp_path / "hospital").exists()
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert all((value == 0).all() for name, value in weights.items() if name.endswith("alta_adapter_up.weight"))
    assert_answers(
        embeds(AutoModel.from_pretrained(tmp_path, **LOCAL), repos.batch),
        repos.expected("base"),
    )


def test_full_repository_of_a_model_with_peft_adapters_is_an_error(repos, tmp_path):
    for model in (make_adapter(), make_adapter().base_model.model):
        with pytest.raises(ValueError, match="`model` must carry no PEFT adapters .*'default'.*merge_and_unload"):
            export_full(model, repos.processor, tmp_path)
    assert not any(tmp_path.iterdir())


def test_one_folder_takes_one_kind_of_repository(repos, tmp_path):
    export_adapter(repos.adapter, repos.processor, tmp_path / "a", base="tester/base")
    with pytest.raises(ValueError, match="of the other kind, got adapter_config.json in"):
        export_full(repos.full, repos.processor, tmp_path / "a")
    export_full(repos.full, repos.processor, tmp_path / "f")
    with pytest.raises(ValueError, match="of the other kind, got config.json in"):
        export_adapter(repos.adapter, repos.processor, tmp_path / "f", base="tester/base")


def test_command_merges_an_adapter_into_a_full_repository(repos, tmp_path, capsys):
    folders = ["--model", str(repos.folder / "base"), "--adapter", str(repos.folder / "adapter")]
    (tmp_path / "card.md").write_text("A card")
    main([*folders, "--output", str(tmp_path / "out"), "--card", str(tmp_path / "card.md")])
    assert capsys.readouterr().out == f"wrote {tmp_path / 'out'}\n"
    assert (tmp_path / "out" / "README.md").read_text() == "A card"
    model = AutoModel.from_pretrained(tmp_path / "out", **LOCAL)
    assert_answers(embeds(model, repos.batch), repos.expected("adapter"))


def test_command_gives_a_model_without_decoder_no_new_one(repos, tmp_path):
    export_full(repos.plain["base"], repos.processor, tmp_path / "plain")
    main(["--model", str(tmp_path / "plain"), "--output", str(tmp_path / "again")])
    names = load_file(tmp_path / "again" / "model.safetensors").keys()
    assert names == repos.plain["base"].state_dict().keys()


def test_command_does_not_publish_weights_that_were_drawn_by_chance(tmp_path, capsys):
    AltaForMaskedRecordModeling(make_base().config).save_pretrained(tmp_path / "mrm")
    make_processor().save_pretrained(tmp_path / "mrm")
    with pytest.raises(SystemExit) as stop:
        main(["--model", str(tmp_path / "mrm"), "--output", str(tmp_path / "out")])
    assert stop.value.code == 2 and "`model` must hold every weight of AltaModel" in capsys.readouterr().err
    lora = get_peft_model(AltaModel.from_pretrained(tmp_path / "mrm"), LoraConfig(target_modules=["qkv"]))
    lora.save_pretrained(tmp_path / "lora")
    make_processor().save_pretrained(tmp_path / "lora")
    with pytest.raises(SystemExit):
        main(
            ["--model", str(tmp_path / "mrm"), "--adapter", str(tmp_path / "lora"), "--output", str(tmp_path / "out")]
        )
    assert "`model` must hold every weight of AltaModel" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("config", [AltaAdapterConfig(), LoraConfig(target_modules=["qkv"])], ids=["alta", "lora"])
def test_command_exports_an_adapter_over_a_full_model(repos, tmp_path, config):
    base, full = str(repos.folder / "full"), AltaForPreTraining.from_pretrained(repos.folder / "full")
    adapter = randomise(get_peft_model(full, config)).eval()
    export_adapter(adapter, repos.processor, tmp_path / "adapter", base=base)
    main(
        [
            "--model",
            base,
            "--adapter",
            str(tmp_path / "adapter"),
            "--kind",
            "adapter",
            "--output",
            str(tmp_path / "out"),
        ]
    )
    given, expected = (AutoModel.from_pretrained(tmp_path / name, **LOCAL) for name in ("out", "adapter"))
    assert_answers(embeds(given, repos.batch), embeds(expected, repos.batch))


@pytest.mark.parametrize("arguments", [["--kind", "adapter"], ["--card", "CARD"], ["--adapter", "ADAPTER"]])
def test_command_gives_a_readable_error(repos, tmp_path, capsys, arguments):
    arguments = [str(tmp_path / part) if part.isupper() else part for part in arguments]
    with pytest.raises(SystemExit) as exit_:
        main(["--model", str(repos.folder / "full"), "--output", str(tmp_path / "out"), *arguments])
    message = "`adapter` needs --adapter, got none" if "--kind" in arguments else arguments[-1]
    assert exit_.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_adapter_of_the_full_size_has_less_than_80_megabytes(tmp_path):
    with torch.device("meta"):
        model = get_peft_model(AltaForPreTraining(AltaConfig(use_adapters=False)), AltaAdapterConfig())
    model.to_empty(device="cpu").save_pretrained(tmp_path)
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert 4 * 18_333_502 < size < 74e6 < 80e6


def test_remote_code_takes_every_shipped_file_along_with_the_model():
    fetched = {os.path.basename(path) for path in get_relative_import_files(CODE / "modeling_alta.py")}
    assert fetched == set(SHIPPED_FILES)


def imports_of(path) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]


def test_every_code_file_is_shipped_or_known_not_to_be():
    assert {path.name for path in CODE.glob("*.py")} == set(SHIPPED_FILES) | NOT_SHIPPED
    assert sorted(SHIPPED_FILES) == list(SHIPPED_FILES) and not NOT_SHIPPED & set(SHIPPED_FILES)


@pytest.mark.parametrize("name", SHIPPED_FILES)
def test_shipped_file_imports_shipped_siblings_by_name_and_no_other_room(name):
    rooms = {path.stem for path in ROOT.iterdir() if path.is_dir() or path.suffix == ".py"}
    for node in imports_of(CODE / name):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and f"{node.module}.py" in SHIPPED_FILES, ast.unparse(node)
        else:
            modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not rooms & {module.partition(".")[0] for module in modules}, ast.unparse(node)


@pytest.mark.parametrize("name", SHIPPED_FILES)
def test_shipped_file_has_no_text_that_looks_like_an_import(name):
    # transformers finds the siblings to fetch by a regular expression that docstrings match too.
    looks_like = re.findall(r"^\s*(?:from\s+\.|import\s+\.)", (CODE / name).read_text(), re.MULTILINE)
    relative = [node for node in imports_of(CODE / name) if isinstance(node, ast.ImportFrom) and node.level]
    assert len(looks_like) == len(relative)
