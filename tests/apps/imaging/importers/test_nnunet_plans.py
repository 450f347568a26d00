"""Plans of nnU-Net in our terms."""

from typing import Any

import pytest

from apps.imaging.bench.peers.nnunet_folder import plans
from apps.imaging.importers.nnunet_plans import architecture, configuration_of, decision, resampling
from apps.imaging.models.networks.nnunet import OPERATORS
from common.errors import BadInput


def configuration(**changes: Any) -> dict[str, Any]:
    return configuration_of(plans(**changes), "3d_fullres")


def test_an_old_plan_is_the_new_one() -> None:
    assert architecture(configuration(old=True)) == architecture(configuration())


def test_a_2d_network_is_one_voxel_deep() -> None:
    from apps.imaging.bench.peers.nnunet_folder import ARCHITECTURE, FLAT

    made = plans(architecture={**ARCHITECTURE, **FLAT}, patch_size=[16, 24])
    _, arguments = architecture(configuration_of(made, "3d_fullres"))
    assert arguments["kernel_sizes"] == [[1, 3, 3]] * 3 and arguments["strides"] == [[1, 1, 1], [1, 2, 2], [1, 2, 2]]
    assert {OPERATORS[arguments[key]] for key in ("conv_op", "norm_op")} == {"Conv3d", "InstanceNorm3d"}


def test_a_configuration_has_what_it_inherits() -> None:
    made = plans()
    made["configurations"] |= {
        "3d_high": {"inherits_from": "3d_fullres", "spacing": [1, 1, 1]},
        "first": {"inherits_from": "second"},
        "second": {"inherits_from": "first"},
    }
    found = configuration_of(made, "3d_high")
    assert found == {**made["configurations"]["3d_fullres"], "spacing": [1, 1, 1]}
    with pytest.raises(BadInput, match="inherit"):
        configuration_of(made, "first")


ORDERS = {"data": 3, "probabilities": 1}


def functions(name: str, **options: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, order in ORDERS.items():
        more = {"order": order} if name == "resample_data_or_seg_to_shape" else {}
        fields |= {f"resampling_fn_{key}": name, f"resampling_fn_{key}_kwargs": {**more, **options}}
    return fields


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (True, "cubic", [None, None])),
        (functions("resample_torch_fornnunet", force_separate_z=False), (True, "linear", [False, False])),
        (functions("resample_torch_fornnunet"), (True, "linear", [None, None])),
        (functions("no_resampling_hack"), (False, "linear", [None, None])),
        ({"resampling_fn_data_kwargs": {"order": 1, "force_separate_z": True}}, (True, "linear", [True, None])),
    ],
)
def test_resampling(fields: dict[str, Any], expected: tuple[Any, ...]) -> None:
    found = resampling(configuration(**fields))
    assert (found["resampled"], found["interpolation"], found["separate"]) == expected


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"resampling_fn_data": "own"}, "own"),
        ({"resampling_fn_data_kwargs": {"order": 5}}, "5"),
        ({"resampling_fn_data_kwargs": {"order": 3, "order_z": 1}}, "order_z"),
        ({"resampling_fn_probabilities_kwargs": {"order": 1, "own": 1}}, "own"),
        ({"resampling_fn_data": "no_resampling_hack", "resampling_fn_data_kwargs": {}}, "no_resampling_hack"),
    ],
)
def test_other_resampling_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        resampling(configuration(**fields))


def test_labels_and_regions() -> None:
    plain = {"labels": {"background": 0, "second": 2, "first": [1], "ignore": 3}}
    assert decision(plain) == ({"background": 0, "first": 1, "second": 2}, {}, 3)
    regions = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    labels, rule, outputs = decision({"labels": regions, "regions_class_order": [1, 2, 3]})
    assert labels == {"background": 0, "whole": 1, "core": 2, "enhancing": 3} and outputs == 3
    assert rule == {"decision": "regions", "regions": [1, 2, 3]}
    for order in (None, [1, 2], [1, 2, 3, 4]):
        with pytest.raises(BadInput, match="regions_class_order"):
            decision({"labels": regions, "regions_class_order": order})
