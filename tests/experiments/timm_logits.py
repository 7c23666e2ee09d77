"""What timm makes of the weights of `timm_tensors.py`: `fixtures/timm_logits.json`.

    pip install '.[timm]' && python tests/experiments/timm_logits.py

The weights are written into a file as timm writes its own, and timm loads that. The ordinary
tests read the fixture and need neither timm nor PyTorch.
"""

import json
import tempfile
from pathlib import Path

import timm
import torch
from network_weights import images, normal
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm_tensors import CLASSES, resnet50_shapes, tensors, vit_shapes

FIXTURE = Path(__file__).parent / "fixtures" / "timm_logits.json"

# Name here: timm's, tensors, settings, number of images, pixels a side.
CASES = {
    # Of a file for 224 pixels, with positions interpolated from 14×14 to 6×6 patches.
    "ViT-S-16 at 96": ("vit_small_patch16_224", vit_shapes(), {"img_size": 96}, 2, 96),
    "ResNet-50": ("resnet50", resnet50_shapes(), {}, 4, 128),
}
TRAINING = "ResNet-50"
# Patches a side before and after an interpolation, two features each.
RESAMPLED = ((4, 7), (7, 4))


def floats(tensor):
    return [float(f"{x:.8g}") for x in tensor.flatten().tolist()]


def loaded(name, shapes, settings):
    """timm's model, with weights from a file that is written as timm's are."""
    whole = timm.create_model(name, num_classes=CLASSES)
    found = {key: tuple(value.shape) for key, value in whole.state_dict().items()}
    assert found == shapes, name
    whole.load_state_dict({k: torch.from_numpy(v) for k, v in tensors(shapes).items()})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(whole.state_dict(), path)
        overlay = {"file": str(path), "num_classes": CLASSES}
        return timm.create_model(
            name,
            pretrained=True,
            pretrained_cfg_overlay=overlay,
            num_classes=CLASSES,
            **settings,
        ).eval()


@torch.no_grad()
def main():
    result = {"timm": timm.__version__, "torch": torch.__version__}
    for name, (theirs, shapes, settings, count, size) in CASES.items():
        model = loaded(theirs, shapes, settings)
        x = torch.from_numpy(images(count, size).transpose(0, 3, 1, 2).copy())
        result[name] = {"images": count, "size": size, "logits": floats(model(x))}
        if name == TRAINING:
            # In float32 batches of few values are normalised to some 1e-5 only.
            result[name]["training_logits"] = floats(model.train().double()(x.double()))
    result["resampled"] = []
    for before, after in RESAMPLED:
        positions = torch.from_numpy(normal("positions", (1, 1 + before**2, 2)).copy())
        expected = resample_abs_pos_embed(positions, [after, after])
        result["resampled"].append({"before": before, "after": after, "values": floats(expected)})
    FIXTURE.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
