import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from normbench.config.catalog.clips import PLACES
from normbench.config.catalog.norms import NORMS
from normbench.config.trial import ADDED, Trial, with_old_defaults

RESULTS = Path(__file__).parents[2] / "results"

# One other valid value for every setting, so that every one can be shown to change the id.
OTHER: dict[str, Any] = {
    "dataset": {"name": "shapes", "train_size": 100},
    "model": "resnet8",
    "norm": "switchable",
    "batch_size": 64,
    "norm_batch_size": 32,
    "norm_every": 2,
    "clip": "agc",
    "epochs": 99,
    "optimizer": {"lr": 0.2},
    "lr_reference_batch": None,
    "schedule": "step",
    "label_smoothing": 0.1,
    "augment": False,
    "dropout": 0.1,
    "init_scale": 2.0,
    "precision": "bf16",
    "logits_precision": "bf16",
    "zero_init_residual": True,
    "evaluate_every": 2,
    "evaluate": ["precise"],
    "whiten": "zca",
    "online": True,
    "diagnose": ["gradient_norm"],
    "seed": 1,
}
OTHER_INNER: dict[str, dict[str, Any]] = {
    "optimizer": {
        "name": "adam",
        "lr": 0.2,
        "momentum": 0.8,
        "nesterov": True,
        "beta1": 0.8,
        "beta2": 0.99,
        "eps": 1e-6,
        "weight_decay": 0.0,
        "weight_decay_on_norm": False,
    },
    "schedule": {"name": "constant", "warmup_epochs": 5.0},
}
SUBSETS = st.sets(st.sampled_from(sorted(OTHER)))


def trial(**settings: Any) -> Trial:
    norm = settings.get("norm")
    if isinstance(norm, str) and norm in NORMS and NORMS[norm].needs_preactivation:
        settings = {"model": "preact_resnet20"} | settings
    return Trial.model_validate(settings)


# Experiment and id of committed trials that cover every experiment, method and schema with records.
STORED = (
    "agc_layers_cpu/normalizer-free-preact-resnet8-b1024-s0-1d91428fdf13",
    "agc_threshold_cpu/normalizer-free-preact-resnet8-b1024-s0-2462565f3209",
    "cifar10_cpu/group-resnet8-b16-s0-0e10374f9dbd",
    "cifar10_norm_batch/instance-resnet8-b128-s0-58a38de7672f",
    "dropout_cpu/none-resnet8-b128-s0-579425cd64f2",
    "groups_cpu/group-resnet8-b32-s0-21bb31eabf76",
    "inference_statistics_cpu/batch-resnet8-b128-n4-s0-977756ed59b6",
    "initialisation_cpu/layer-resnet8-b128-s0-020073f2e7d6",
    "large_batch_cpu/normalizer-free-preact-resnet8-b1024-s0-3defbf89f259",
    "learning_rate_cpu/batch-resnet8-b128-s0-0fd09c10c12a",
    "norm_every_cpu/batch-resnet8-b128-s0-3264ae71696e",
    "online_cpu/filter-response-resnet8-b1-s0-721ba729f972",
    "signal_propagation_cpu/switchable-preact-resnet20-b128-s0-16ce5d8fb8ce",
    "small_batch_cpu/batch-renorm-preact-resnet8-b2-s0-cfa5f0a33575",
    "small_batch_cpu/centred-weights-preact-resnet8-b8-s0-eb6d3654ba74",
    "small_batch_cpu/evonorm-b0-preact-resnet8-b8-s0-a77434730cbe",
    "small_batch_cpu/evonorm-s0-preact-resnet8-b2-s0-02ef2bb9c652",
    "small_batch_cpu/moving-average-batch-preact-resnet8-b32-s0-f18c8fc3d19d",
    "small_batch_cpu/weight-standardization-preact-resnet8-b8-s1-b9e5a1f4f68c",
    "small_batch_cpu/weight-norm-preact-resnet8-b2-s0-e97b08347be3",
    "switch_weights_cpu/switchable-resnet8-b128-n2-s0-b63806de0b90",
)


@pytest.mark.parametrize("stored", STORED)
def test_the_ids_of_committed_trials_do_not_move(stored: str) -> None:
    record = json.loads((RESULTS / f"{stored}.json").read_text())
    settings = {key: value for key, value in record["trial"].items() if key != "id"}
    assert Trial.model_validate(with_old_defaults(settings)).id == stored.partition("/")[2]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "batch-resnet20-b128-s0-c60058653206"),
        ({"norm": "group", "batch_size": 2, "seed": 2}, "group-resnet20-b2-s2-f62d191a658a"),
        (
            {
                "norm": {"name": "switchable", "variance": "official"},
                "norm_batch_size": 4,
                "model": "resnet8",
                "dataset": {"name": "cifar10", "train_size": 10_000},
            },
            "switchable-resnet8-b128-n4-s0-e6c45f3a8334",
        ),
    ],
)
def test_the_id_of_a_trial_never_changes(settings, expected):
    """Stored records are found by these ids: if one of them moves, every finished trial is lost."""
    assert trial(**settings).id == expected


def test_an_id_is_a_short_file_name():
    for name in NORMS:
        assert re.fullmatch(r"[a-z0-9-]{1,80}", trial(norm=name).id)


def test_other_values_cover_every_setting():
    assert set(OTHER) | {"task"} == set(Trial.model_fields)  # another task needs another network too
    for field, inner in OTHER_INNER.items():
        assert set(inner) == set(type(getattr(Trial(), field)).model_fields)


@pytest.mark.parametrize("dotted", ADDED)
def test_an_added_setting_that_is_as_before_is_the_default(dotted):
    """Else leaving it out would not mean the same trial."""
    values = Trial(clip="agc" if dotted.startswith("clip.") else "none").model_dump(mode="json")
    for key in dotted.split("."):
        values = values[key]
    assert values == ADDED[dotted]


@pytest.mark.parametrize("field", OTHER)
def test_every_setting_changes_the_id(field):
    beside = {"precision": "bf16"} if field == "logits_precision" else {}  # in fp32 logits are fp32
    assert trial(**{field: OTHER[field]}, **beside).id != trial(**beside).id


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ({"logits_precision": "bf16"}, "batch-resnet8-b32-s0-d9f0d08a3c66"),
        (
            {"logits_precision": "bf16", "evaluate": [{"name": "precise", "variance": "within"}]},
            "batch-resnet8-b32-s0-1fd9b39fbd5a",
        ),
    ],
)
def test_what_was_made_before_a_default_changed_keeps_its_id_and_the_default_has_another(before, expected):
    """Expected ids are of the version before the change."""
    settings = {"model": "resnet8", "batch_size": 32, "precision": "bf16"}
    now = {"evaluate": [{"name": "precise"}]} if "evaluate" in before else {}
    assert trial(**settings, **before).id == expected
    assert trial(**settings, **now).id != expected
    assert Trial.model_validate(with_old_defaults(settings | now)).id == expected


def test_in_fp32_logits_are_fp32():
    assert trial(precision="fp32", logits_precision="bf16").logits_precision == "fp32"


@pytest.mark.parametrize(
    ("field", "key"), [(field, key) for field in OTHER_INNER for key in OTHER_INNER[field]]
)
def test_every_setting_of_optimizer_and_schedule_changes_the_id(field, key):
    base = {"name": "adamw"} if key in ("beta1", "beta2", "eps") else {}
    assert trial(**{field: base | {key: OTHER_INNER[field][key]}}).id != trial(**{field: base}).id


def test_settings_of_another_optimizer_do_not_matter():
    assert trial(optimizer={"beta1": 0.5, "beta2": 0.5, "eps": 1.0}).id == Trial().id
    adam = {"name": "adam"}
    assert trial(optimizer=adam | {"momentum": 0.5, "nesterov": True}).id == trial(optimizer=adam).id
    assert trial(optimizer="adam") == trial(optimizer=adam) != trial(optimizer="adamw")


@given(SUBSETS, SUBSETS)
def test_trials_have_equal_ids_exactly_where_they_are_equal(these, those):
    first, second = (trial(**{field: OTHER[field] for field in fields}) for fields in (these, those))
    assert (first.id == second.id) == (first == second)
    assert (first == second) <= (hash(first) == hash(second))


@given(SUBSETS, st.randoms())
def test_the_order_of_keys_does_not_matter(fields, random):
    order = random.sample(sorted(fields), len(fields))
    assert (
        trial(**{field: OTHER[field] for field in order}).id
        == trial(**{field: OTHER[field] for field in sorted(fields)}).id
    )


@given(SUBSETS)
def test_defaults_spelled_out_give_the_same_trial(fields):
    short = trial(**{field: OTHER[field] for field in fields})
    spelled_out = Trial.model_validate(short.model_dump())
    assert spelled_out == short
    assert spelled_out.id == short.id


@given(SUBSETS)
def test_a_trial_crosses_process_boundaries(fields):
    sent = trial(**{field: OTHER[field] for field in fields})
    received = pickle.loads(pickle.dumps(sent))
    assert received == sent
    assert hash(received) == hash(sent)
    assert received.id == sent.id


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"norm": "group"}, {"norm": {"name": "group"}}),
        ({"norm": "group"}, {"norm": {"groups": 8, "name": "group"}}),
        ({"schedule": "step"}, {"schedule": {"name": "step"}}),
        ({"optimizer": {"lr": 1}}, {"optimizer": {"lr": 1.0}}),
        ({"optimizer": {"weight_decay": 0.0}}, {"optimizer": {"weight_decay": -0.0}}),
        ({"label_smoothing": 0.0}, {"label_smoothing": -0.0}),
    ],
)
def test_two_spellings_of_one_value_are_one_trial(one, other):
    assert trial(**one).id == trial(**other).id


@pytest.mark.parametrize("name", [name for name, method in NORMS.items() if not method.across_samples])
def test_norm_batch_size_cannot_matter_to_a_norm_within_samples(name):
    assert trial(norm=name, norm_batch_size=2).id == trial(norm=name).id
    assert trial(norm=name, norm_batch_size=3).norm_batch_size is None  # 3 does not divide 128, and need not


@pytest.mark.parametrize("name", [name for name, method in NORMS.items() if method.across_samples])
def test_norm_batch_size_is_the_batch_size_unless_it_is_given(name):
    assert trial(norm=name, batch_size=32).id == trial(norm=name, batch_size=32, norm_batch_size=32).id
    assert "-b128-n4-s0-" in trial(norm=name, norm_batch_size=4).id


@pytest.mark.parametrize("name", [name for name, method in NORMS.items() if not method.has_parameters])
def test_the_weight_decay_of_norms_cannot_matter_to_a_method_without_parameters(name):
    assert trial(norm=name, optimizer={"weight_decay_on_norm": False}).id == trial(norm=name).id


@pytest.mark.parametrize("name", [name for name, method in NORMS.items() if not method.has_layers])
def test_settings_of_layers_cannot_matter_without_layers(name):
    plain = trial(norm=name)
    assert trial(norm=name, zero_init_residual=True).id == plain.id
    assert trial(norm=name, norm_every=100).id == plain.id


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"norm_batch_size": 3}, "norm_batch_size 3 does not divide batch_size 128"),
        ({"norm_batch_size": 256}, "norm_batch_size 256 does not divide batch_size 128"),
        ({"optimizer": {"nesterov": True, "momentum": 0.0}}, "nesterov needs a momentum above 0"),
        ({"schedule": {"warmup_epochs": 2.5}, "epochs": 2}, "warmup_epochs 2.5 is more than epochs 2"),
        ({"norm_every": 20}, "norm_every 20 is more than the 19 layers of resnet20"),
        (
            {
                "task": "denoising",
                "model": "dncnn",
                "clip": {"name": "agc", "vectors": False, "exclude": ["final_linear", "stage1", "stem"]},
            },
            "every place of dncnn is excluded, and vectors are: nothing is left to clip",
        ),
        ({"norm": "normalizer_free", "model": "resnet20"}, "networks only, such as preact_resnet20"),
        ({"norm": "evonorm_s0", "model": "resnet8"}, "such as preact_resnet8"),
        ({"model": "preact_resnet8", "zero_init_residual": True}, "do not end in a norm"),
        (
            {"norm": {"name": "batch", "frozen_epochs": 3}, "epochs": 2},
            "frozen_epochs 3 is more than epochs 2",
        ),
        ({"norm": {"name": "batch_renorm", "r_max": 0.5}}, "greater than or equal to 1"),
        ({"clip": {"name": "agc", "threshold": 0.0}}, "greater than 0"),
        ({"clip": {"name": "agc", "exclude": ["stage4"]}}, "stage3"),
        ({"clip": {"name": "agc", "exclude": list(PLACES)}}, "some of stem, .*, final_linear, and not all"),
        ({"clip": "acg"}, r"unknown clip 'acg' \(did you mean 'agc'\?\)"),
        ({"norm": "grup"}, r"unknown norm 'grup' \(did you mean 'group'\?\)"),
    ],
)
def test_values_that_do_not_go_together_are_refused(settings, words):
    with pytest.raises(ValidationError, match=words):
        trial(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"epocs": 3},
        {"epochs": 0},
        {"epochs": 3.0},
        {"epochs": "3"},
        {"augment": "no"},
        {"seed": -1},
        {"seed": 2**32},
        {"optimizer": {"lr": 0.0}},
        {"optimizer": {"lr": float("nan")}},
        {"optimizer": {"momentum": 1.0}},
        {"norm": {"name": "batch", "momentum": float("nan")}},
        {"norm": {"name": "layer", "groups": 2}},
        {"norm": None},
        {"dataset": {"name": "folder", "folder": "../secrets"}},
    ],
)
def test_wrong_values_are_refused_and_never_converted(settings):
    with pytest.raises(ValidationError):
        trial(**settings)


def test_a_trial_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Trial().seed = 1  # type: ignore[misc]


def test_the_options_of_a_choice_are_its_settings_without_the_name():
    assert trial(norm={"name": "group", "groups": 4}).norm.options == {"groups": 4, "eps": 1e-5}


def test_a_changed_copy_has_an_id_of_its_own() -> None:
    trial = Trial(seed=1)
    assert trial.id == Trial(seed=1).id
    copy = trial.model_copy(update={"seed": 2})
    assert copy.id == Trial(seed=2).id
    assert copy == Trial(seed=2)
    assert hash(trial) == hash(Trial(seed=1)), "whether or not the id has been asked for"
