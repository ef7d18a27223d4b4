"""Configs and methods: what is built in is valid, what is wrong is one line."""

from __future__ import annotations

import pytest
from support import tiny

from leuda_deploy.errors import InputError
from leuda_train.config.load import built_in, load_config, make_recipe, parse_config

ALONE = {**tiny.NO_TERMS, "supervised_on": [], "lambda_pseudo": 1.0}  # a source-free objective


def refused(match: str, **sections: object) -> None:
    with pytest.raises(InputError, match=match) as caught:
        parse_config(tiny.content(**sections), "tiny.toml")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("tiny.toml: ")


@pytest.mark.parametrize("method", built_in("methods"))
@pytest.mark.parametrize("config", built_in("configs"))
def test_every_built_in_config_takes_every_built_in_method(config, method):
    found = load_config(config, method)
    assert (found.name, found.method) == (config, method)
    make_recipe(found, "superior", "native")


def test_what_the_readme_names_is_built_in():
    assert built_in("configs") == [
        "demo",
        "mini",
        "paper-abdominal",
        "paper-cardiac",
        "small",
    ]
    assert {"le-uda", "source-only", "supervised"} <= set(built_in("methods"))


def test_the_papers_config_has_the_papers_values():
    config = load_config("paper-cardiac", "le-uda")
    assert config.recipe.clip_percentiles == (0.0, 98.0)
    assert config.unet.dropout == (0.05, 0.1, 0.2, 0.3, 0.5)
    objective, schedule = config.objective, config.schedule
    assert objective.supervised_on == ("source", "source_cycled")
    assert (objective.lambda_intra, objective.lambda_inter) == (1.0, 0.1)
    assert 1e-3 <= objective.lambda_adv_intra == objective.lambda_adv_inter <= 1e-2
    assert (objective.warmup_epochs, objective.ramp_epochs, objective.ema_decay) == (30, 150, 0.99)
    assert (objective.teacher_noise, objective.teacher_noise_limit) == (0.1, 0.2)
    assert (schedule.epochs, schedule.batch_labelled, schedule.learning_rate) == (150, 4, 0.005)
    assert (config.augment.scale, config.augment.rotation_degrees) == ((0.9, 1.1), 10.0)
    assert (config.test.network, config.test.feed) == ("intra_teacher", "target_as_source")
    translation = config.translation
    assert (translation.blocks, translation.pool, translation.learning_rate) == (9, 50, 2e-4)
    assert (translation.lambda_cycle, translation.lambda_identity) == (10.0, 0.5)


def test_distillation_is_a_share_of_stage_two():
    for config in ("demo", "paper-cardiac"):
        found = load_config(config, "le-uda-distilled")
        assert found.distil_steps == found.schedule.epochs * found.schedule.steps_per_epoch
        assert load_config(config, "le-uda").distil_steps == 0
    short = {"distil": {"width": 0.5, "share": 0.01, "learning_rate": 0.002}}
    assert tiny.config(**short).distil_steps == 1


def test_only_the_supervised_method_reads_target_labels():
    reading = [m for m in built_in("methods") if load_config("demo", m).uses_target_labels]
    assert reading == ["supervised"]


def test_only_methods_with_translated_images_need_a_translation():
    assert load_config("demo", "le-uda").uses_translation
    assert not load_config("demo", "source-only").uses_translation
    assert not load_config("demo", "supervised").uses_translation
    plain = {**tiny.NO_TERMS, "supervised_on": ["source_as_target"]}
    on_target = {"network": "student", "feed": "target"}
    assert tiny.config(objective=plain, test=on_target).uses_translation
    plain["supervised_on"] = ["source"]
    on_source = {"network": "student", "feed": "target_as_source"}
    assert tiny.config(objective=plain, test=on_source).uses_translation


@pytest.mark.parametrize(
    ("sections", "match"),
    [
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"schedule": {"epoch": 3}}, "unknown key 'schedule.epoch'"),
        ({"schedule": {"epochs": 0}}, "'schedule.epochs' = 0"),
        ({"schedule": {"learning_rate": -1.0}}, "'schedule.learning_rate' = -1.0"),
        ({"recipe": {"window": [18, 16]}}, r"recipe.window \(18, 16\)"),
        ({"unet": {"dropout": [0.1]}}, "dropout"),
        ({"unet": {"dropout": [0.1, 1.0]}}, "'unet.dropout.1' = 1.0"),
        ({"adversarial": {"levels": [2]}}, r"adversarial.levels \(2,\)"),
        ({"adversarial": {"levels": [0]}}, "'adversarial.levels.0' = 0"),
        (
            {"unet": {"widths": [4, 4, 4], "dropout": [0, 0, 0]}, "adversarial": {"levels": [3]}},
            r"adversarial.levels \(3,\)",
        ),
        (
            {
                "unet": {"widths": [4, 4, 4, 4], "dropout": [0, 0, 0, 0]},
                "adversarial": {"levels": [3]},
            },
            r"adversarial.levels \(3,\) .*recipe.window of 32",
        ),
        (
            {"translation": {"discriminator_layers": 3}},
            "discriminator_layers = 3 .*recipe.window of 24",
        ),
        ({"objective": {"lambda_intra": -1.0}}, "'objective.lambda_intra' = -1.0"),
        ({"objective": {"ema_decay": 1.0}}, "'objective.ema_decay' = 1.0"),
        ({"objective": {"teacher_batchnorm": "both"}}, "'objective.teacher_batchnorm' = both"),
        ({"objective": {"supervised_on": ["sauce"]}}, "'objective.supervised_on.0' = sauce"),
        ({"objective": {"supervised_on": []}}, "supervised_on is empty: lambda_pseudo"),
        (
            {"objective": {"supervised_on": [], "lambda_pseudo": 1.0}},
            "supervised_on is empty: .*source_cycled",
        ),
        (
            {"objective": {**ALONE, "copy_paste": 0.5}, "test": {"feed": "target"}},
            "supervised_on is empty: .*copy_paste",
        ),
        (
            {"objective": ALONE, "test": {"network": "inter_teacher"}},
            "supervised_on is empty: .*feed",
        ),
        (
            {"objective": ALONE, "test": {"feed": "target", "select": "label-free"}},
            "supervised_on is empty: .*choice",
        ),
        ({"objective": {"supervised_on": ["source", "target"]}}, "supervised_on"),
        ({"objective": {"supervised_on": ["target_cycled"]}}, "supervised_on"),
        (
            {"objective": {"lambda_intra": 0.0, "lambda_adv_intra": 0.0}},
            "test.network = intra_teacher",
        ),
        (
            {"objective": tiny.NO_TERMS, "test": {"network": "inter_teacher"}},
            "test.network = inter_teacher",
        ),
        (
            {
                "objective": {"supervised_on": ["target"]},
                "distil": {"width": 0.5, "share": 0.5, "learning_rate": 0.002},
            },
            "distil",
        ),
        ({"augment": {"scale": [1.1, 0.9]}}, r"scale .*\(1.1, 0.9\)"),
        ({"augment": {"scale": [0.0, 1.0]}}, "'augment.scale.0' = 0.0"),
        ({"device": "tpu"}, "'device' = tpu"),
    ],
)
def test_a_wrong_value_is_one_clear_error(sections, match):
    refused(match, **sections)


def test_a_smallest_window_that_is_accepted_can_be_trained_on():
    """The limits that the config states are those of the networks."""
    import torch

    from leuda_train.networks.discriminators import FeatureDiscriminator, patch_discriminator

    assert patch_discriminator(2, 3)(torch.randn(1, 1, 24, 24)).shape[-1] == 1
    with pytest.raises((RuntimeError, ValueError)):
        patch_discriminator(2, 3)(torch.randn(1, 1, 20, 20))
    discriminator = FeatureDiscriminator([2], [0], width=2)
    assert discriminator([torch.randn(1, 2, 8, 8)])[0].shape[-1] == 1
    with pytest.raises(RuntimeError):
        discriminator([torch.randn(1, 2, 4, 4)])


def test_the_method_is_laid_over_the_config_and_overrides_over_both(tmp_path):
    plain = load_config("demo", "source-only")
    assert plain.objective.lambda_intra == 0.0
    assert plain.objective.warmup_epochs == load_config("demo", "le-uda").objective.warmup_epochs
    assert plain.seed == 0
    changed = load_config("demo", "source-only", seed=7, device="cpu", precision=None)
    assert (changed.seed, changed.device, changed.precision) == (7, "cpu", "auto")


def test_a_config_of_ones_own_keeps_its_values_unless_overridden(tmp_path):
    import tomli_w

    path = tmp_path / "mine.toml"
    content = tiny.content(seed=5)
    del content["name"], content["method"]
    path.write_text(tomli_w.dumps(content))
    config = load_config(str(path), "le-uda", seed=None, device=None, precision=None)
    assert (config.name, config.method, config.seed) == ("mine", "le-uda", 5)
    assert (config.device, config.precision) == ("cpu", "fp32")


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ("nonesuch", "no config named 'nonesuch'. Built in: demo, mini, paper-abdominal"),
        ("missing.toml", "no such file: .*missing.toml"),
        ("broken.toml", "broken.toml is not TOML"),
        ("latin.toml", "latin.toml is not TOML"),
    ],
)
def test_a_config_that_cannot_be_read_is_one_clear_error(tmp_path, config, match):
    (tmp_path / "broken.toml").write_text("[recipe\n")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    name = str(tmp_path / config) if config.endswith(".toml") else config
    with pytest.raises(InputError, match=match):
        load_config(name, "le-uda")


@pytest.mark.parametrize(
    "recipe", [{"clip_percentiles": [98.0, 2.0]}, {"clip_percentiles": [0.0, 101.0]}]
)
def test_a_recipe_that_cannot_be_is_one_clear_error(recipe):
    with pytest.raises(InputError, match=r"recipe of config tiny: .*clip_percentiles"):
        make_recipe(tiny.config(recipe=recipe), "superior", "native")


def test_a_method_based_on_another_holds_what_it_changes(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'based_on = "le-uda-plus"\n[objective]\ncopy_paste = 0.25\n'
    )
    mine, base = (
        load_config("demo", str(tmp_path / "mine.toml")),
        load_config("demo", "le-uda-plus"),
    )
    assert (mine.method, mine.objective.copy_paste) == ("mine", 0.25)
    changed = mine.objective.model_copy(update={"copy_paste": base.objective.copy_paste})
    assert base.model_copy(update={"method": "mine"}) == mine.model_copy(
        update={"objective": changed}
    )


@pytest.mark.parametrize(
    ("base", "said"),
    [('"nothing"', "no method named 'nothing'"), ("3", "based_on = 3"), ('"{own}"', "goes round")],
)
def test_a_base_that_cannot_be_is_one_line(base, said, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(f"based_on = {base.format(own=path)}\n")
    with pytest.raises(InputError, match=said):
        load_config("demo", str(path))


def test_true_labels_are_always_among_the_supervised():
    with pytest.raises(InputError, match="no image with true labels"):
        tiny.config(objective={"source_pseudo_share": 1.0})
