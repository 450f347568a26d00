"""A bundle of MONAI's model zoo by MONAI itself: ``zoo_monai.py make BUNDLE NAME`` or ``predict BUNDLE NAME IN OUT``.

``make`` writes random weights for the bundle's network, and the codes of DiNTS's search, scaled so that every class
occurs; ``predict`` runs the bundle's transforms and inferer on the images in IN, one file a channel, and writes the
prediction as ``.npy``. Devices are the CPU, and images are read by nibabel.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor


def parsed(bundle: Path, name: str) -> Any:
    """MONAI's parser of the bundle's configuration."""
    text = (bundle / "configs" / name).read_text("utf-8")
    text = text.replace("ITKReader", "NibabelReader").replace("torch.device('cuda')", "torch.device('cpu')")
    text = text.replace("$copy.deepcopy(@preprocessing)", "@preprocessing")  # MONAI 1.6 inverts no copies
    if name.endswith(".json"):
        content = json.loads(text)
    else:
        import yaml

        content = yaml.safe_load(text)
    if isinstance(content["network_def"], dict):
        content["network_def"].pop("img_size", None)  # older than this MONAI, whose network takes any size
    return ConfigParser({**content, "bundle_root": str(bundle)})


def weights(bundle: Path, parser: Any) -> Path:
    """File from which the bundle reads its weights."""
    loaders = [parser.get("checkpointloader"), *(parser.get("handlers") or [])]
    named = [one["load_path"] for one in loaders if isinstance(one, dict) and "load_path" in one]
    parser["weights_of"] = named[0] if named else "models/model.pt"
    return bundle / str(parser.get_parsed_content("weights_of")).removeprefix(f"{bundle}/")


def make(bundle: Path, name: str) -> None:
    """Write random weights, and codes where the bundle reads some."""
    torch.manual_seed(0)
    (bundle / "models").mkdir(exist_ok=True)
    parser = parsed(bundle, name)
    if parser.get("arch_ckpt_path"):
        space = parser["dints_space"]
        blocks, depths = space["num_blocks"], space["num_depths"]
        paths = 3 * depths - 2
        codes = {
            "arch_code_a": np.random.default_rng(0).integers(0, 2, (blocks, paths)),
            "arch_code_c": np.random.default_rng(1).integers(0, 5, (blocks, paths)),
            "node_a": np.ones((blocks + 1, depths), np.int64),
        }
        codes["arch_code_a"][:, ::3] = 1  # of each resolution to itself, so that every node has an input
        torch.save(codes, Path(parser.get_parsed_content("arch_ckpt_path")))
    network = parser.get_parsed_content("network_def")
    described = parser["network_def"]
    if isinstance(described, str):  # a call; VISTA3D's classes are all found somewhere
        torch.save(network.state_dict(), weights(bundle, parser))
        return
    parser["counts"] = {key: described.get(key) for key in ("in_channels", "out_channels", "num_classes")}
    counts = parser.get_parsed_content("counts")
    channels, outputs = counts["in_channels"] or 1, counts["out_channels"] or counts["num_classes"]
    noise = torch.randn(1, channels, 64, 64, 64)
    with torch.no_grad():
        network.train()(noise)
        layers = [one for one in network.modules() if isinstance(one, torch.nn.Conv3d | torch.nn.ConvTranspose3d)]
        head = [one for one in layers if one.out_channels == outputs and one.bias is not None][-1]
        values = network.eval()(noise)
        head.weight.mul_(3 / values.std().clamp_min(1e-3))
        head.bias.sub_(  # type: ignore[union-attr]
            network(noise).mean((0, 2, 3, 4))
        )
    torch.save(network.state_dict(), weights(bundle, parser))


def predict(bundle: Path, name: str, images: Path, out: Path) -> None:
    """Run the bundle."""
    parser = parsed(bundle, name)
    parser["postprocessing"]["transforms"] = [
        one for one in parser["postprocessing"]["transforms"] if not re.search("SaveImage", str(one["_target_"]))
    ]
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(weights(bundle, parser), map_location="cpu", weights_only=True))
    files = [str(path) for path in sorted(images.glob("*.nii.gz"))]
    given = {"image": files if len(files) > 1 else files[0]}
    for one in parser["preprocessing"]["transforms"]:
        if isinstance(one, dict) and "ConcatImages" in one["_target_"]:  # else a letter of an expression
            given = {**dict(zip(one["keys_merge"], files, strict=True)), "label": files[0]}
    item = parser.get_parsed_content("preprocessing")(given)
    with torch.no_grad():
        image, asked = torch.as_tensor(item["image"])[None], {}
        if parser.get("everything_labels"):  # as VISTA3D's evaluator asks where the user does not
            classes = torch.tensor(parser.get_parsed_content("everything_labels"))[:, None]
            asked, item["label_prompt"] = {"point_coords": None, "point_labels": None, "class_vector": classes}, classes
        found = parser.get_parsed_content("inferer")(inputs=image, network=network, **asked)[0]
    source = next(item[key] for key in given if isinstance(item.get(key), MetaTensor))
    item["pred"] = MetaTensor(found, meta=source.meta, applied_operations=source.applied_operations)
    np.save(out, np.asarray(parser.get_parsed_content("postprocessing")(item)["pred"]))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["make", "predict"])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("name", help="file in the bundle's configs")
    parser.add_argument("images", type=Path, nargs="?")
    parser.add_argument("out", type=Path, nargs="?")
    args = parser.parse_args()
    made = np._core.multiarray  # type: ignore[attr-defined]
    torch.serialization.add_safe_globals([made._reconstruct, np.ndarray, np.dtype, type(np.dtype("i8"))])
    torch.set_num_threads(2)
    sys.path.append(str(args.bundle))  # MONAI runs what the bundle has in its folder "scripts"; peakline never does
    if args.what == "make":
        make(args.bundle, args.name)
    else:
        predict(args.bundle, args.name, args.images, args.out)


if __name__ == "__main__":
    main()
