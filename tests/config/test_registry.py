import pytest

from normbench.config.catalog.clips import CLIPS
from normbench.config.catalog.datasets import DATASETS
from normbench.config.catalog.models import MODELS
from normbench.config.catalog.norms import NORMS
from normbench.config.registry import Entry, Registry, UnknownName

KNOWN = f"; known: {', '.join(NORMS)}"

FRUIT: Registry[Entry] = Registry(
    "fruit", Entry("pear", "a pear", "math:pi"), Entry("apple", "an apple", "os.path:join")
)


def test_a_table_keeps_the_order_in_which_it_is_written():
    assert list(FRUIT) == ["pear", "apple"]
    assert len(FRUIT) == 2


def test_a_table_knows_its_names_and_only_them():
    assert "pear" in FRUIT
    assert "plum" not in FRUIT
    assert FRUIT["pear"].summary == "a pear"


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UnknownName, match=r"^unknown fruit 'aple' \(did you mean 'apple'\?\)$"):
        FRUIT["aple"]


def test_an_unknown_name_like_none_is_refused_with_all_that_are_known():
    with pytest.raises(UnknownName, match=r"^unknown fruit 'xyz'; known: pear, apple$"):
        FRUIT["xyz"]


def test_a_name_listed_twice_is_refused():
    with pytest.raises(ValueError, match="the registry of fruits lists a name twice"):
        Registry("fruit", FRUIT["pear"], FRUIT["pear"])


def test_the_code_behind_an_entry_is_imported_when_asked_for():
    from os.path import join

    assert FRUIT["apple"].load() is join


@pytest.mark.parametrize(
    ("names", "meant"),
    [
        ("bn batchnorm batch_norm BatchNorm1d BatchNorm2d nn.BatchNorm2d torch.nn.BatchNorm2d", "batch"),
        ("SyncBatchNorm BATCH Batch-Normalization batch_normalisation bacthnorm", "batch"),
        ("LN LayerNorm nn.LayerNorm layer-norm", "layer"),
        ("gn GroupNorm torch.nn.GroupNorm groupnorm", "group"),
        ("in InstanceNorm2d instance_norm InstanceNorm", "instance"),
        ("sn SwitchNorm2d SwitchableNorm switch", "switchable"),
        ("wn WeightNorm weight_normalization weight_norms", "weight_norm"),
        ("WS", "weight_standardization"),
        ("frn FilterResponseNorm2d", "filter_response"),
        ("EvoNormS0 EvoNorm-S0 EvoNorm2dS0", "evonorm_s0"),
        ("EvoNormB0", "evonorm_b0"),
        ("brn BatchRenorm BatchReNorm2d batch_renormalization batch_renrom", "batch_renorm"),
        ("MABN", "moving_average_batch"),
        ("nf NFNet NF-ResNet", "normalizer_free"),
        ("None Identity nn.Identity", "none"),
    ],
)
def test_any_spelling_of_any_library_leads_to_the_method(names, meant):
    assert {NORMS.hint(name) for name in names.split()} == {f" (did you mean {meant!r}?)"}


OTHERS = (
    "LocalResponseNorm LRN RMSNorm SpectralNorm PowerNorm PathNorm IBN LCN FrozenBatchNorm2d "
    "BatchInstanceNorm evonorm weight norm layer_scale ActNorm GroupNorm32 b"
)


@pytest.mark.parametrize("name", OTHERS.split())
def test_no_method_is_named_for_another_one_of_the_field(name):
    assert NORMS.hint(name) == KNOWN


@pytest.mark.parametrize("name", ["GhostBatchNorm", "ghost_bn", "GhostBatchNorm2d"])
def test_ghost_batch_normalization_is_a_setting_beside_the_method(name):
    assert "did you mean 'batch'?" in NORMS.hint(name)
    assert "norm_batch_size" in NORMS.hint(name)


def test_a_clip_that_is_written_as_a_norm_is_sent_to_its_place():
    assert "clip: agc" in NORMS.hint("AGC")
    assert "clip: gradient_norm" in NORMS.hint("grad_norm")
    assert CLIPS.hint("AGC") == " (did you mean 'agc'?)"
    assert CLIPS.hint("grad_norm") == CLIPS.hint("GradNorm") == " (did you mean 'gradient_norm'?)"


def test_another_number_is_another_thing():
    for name in ("ResNet-18", "resnet18", "resnet9", "resnet"):
        assert MODELS.hint(name).startswith("; known: resnet8, ")
    assert MODELS.hint("ResNet-20") == " (did you mean 'resnet20'?)"
    assert MODELS.hint("PreActResNet20") == " (did you mean 'preact_resnet20'?)"
    assert "did you mean" not in MODELS.hint("resnext20") + MODELS.hint("seresnet20")
    assert DATASETS.hint("CIFAR10") == DATASETS.hint("cifar-10") == " (did you mean 'cifar10'?)"
    assert DATASETS.hint("CIFAR100") == " (did you mean 'cifar100'?)"
    assert DATASETS.hint("cifar20") == "; known: shapes, cifar10, cifar100, mnist, folder"


def test_a_usual_name_of_two_entries_is_refused():
    with pytest.raises(ValueError, match="the registry of fruits lists an alias twice"):
        Registry(
            "fruit",
            Entry("pear", "", "", aliases=("Williams",)),
            Entry("apple", "", "", aliases=("williams",)),
        )
