import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import ConvNextConfig, ConvNextForImageClassification, ResNetConfig, ResNetForImageClassification

from showo_hf.training.perceptual import (
    LPIPS,
    LPIPS_CHANNELS,
    ClassifierFeatures,
    difference_of_features,
    load_perceptual,
)


#: The published names: torchvision's `vgg16`, and the heads of LPIPS 0.1.
VGG = {0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128), 10: (256, 128), 12: (256, 256), 14: (256, 256)}
VGG |= {17: (512, 256), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)}


def published_weights():
    """Random weights of the published names and shapes."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for number, (after, before) in VGG.items():
        scale = (2 / (9 * before)) ** 0.5
        weights[f"features.{number}.weight"] = torch.randn(after, before, 3, 3, generator=generator) * scale
        weights[f"features.{number}.bias"] = torch.randn(after, generator=generator) * 0.1
    for number, channels in enumerate(LPIPS_CHANNELS):
        weights[f"lin{number}.model.1.weight"] = torch.rand(1, channels, 1, 1, generator=generator)
    weights["classifier.0.weight"] = torch.zeros(4, 4)
    return weights


def lpips_by_hand(weights, one, other):
    """The published distance, written out with functions alone."""
    mean = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    deviation = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)

    def maps(x):
        x = (x - mean) / deviation
        found = []
        for block in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
            if found:
                x = nn.functional.max_pool2d(x, 2)
            for number in block:
                x = nn.functional.conv2d(
                    x, weights[f"features.{number}.weight"], weights[f"features.{number}.bias"], padding=1
                ).relu()
            found.append(x)
        return found

    total = 0
    for number, (a, b) in enumerate(zip(maps(one), maps(other), strict=True)):
        a, b = (x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for x in (a, b))
        total = total + nn.functional.conv2d((a - b) ** 2, weights[f"lin{number}.model.1.weight"]).mean((1, 2, 3))
    return total


def images(seed, batch=2, size=32):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def lpips_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    save_file(published_weights(), file)
    return file


def test_lpips_is_the_published_distance(lpips_file):
    loss = load_perceptual(str(lpips_file))
    assert isinstance(loss, LPIPS) and not any(one.requires_grad for one in loss.parameters())
    one, other = images(0).requires_grad_(), images(1)
    found = loss(one, other)
    torch.testing.assert_close(found, lpips_by_hand(published_weights(), one, other).mean())
    assert loss(other, other) == 0
    found.backward()
    assert torch.isfinite(one.grad).all() and one.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("features.17.bias"), "lacks 1 tensors, such as 'features.17.bias'"),
        (lambda weights: weights.pop("lin4.model.1.weight"), "such as 'lin4.model.1.weight'"),
        (lambda weights: weights.update({"features.0.bias": torch.zeros(3)}), r"'features.0.bias' .* shape \(64,\)"),
        (lambda weights: weights["lin2.model.1.weight"].neg_(), "'lin2.model.1.weight' .* never has"),
        (lambda weights: weights["features.5.bias"].fill_(float("nan")), "'features.5.bias' .* never has"),
    ],
)
def test_wrong_weights_are_refused(tmp_path, change, message):
    weights = published_weights()
    change(weights)
    save_file(weights, tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match=message):
        load_perceptual(str(tmp_path / "wrong.safetensors"))


def test_what_is_no_perceptual_model_is_refused(tmp_path):
    (tmp_path / "file.safetensors").write_bytes(b"no tensors")
    for path in ("file.safetensors", "missing.safetensors", "missing-folder"):
        with pytest.raises(ValueError, match="`perceptual` must be"):
            load_perceptual(str(tmp_path / path))


def test_images_too_small_for_the_network_are_refused(tmp_path, lpips_file):
    assert load_perceptual(str(lpips_file), 16)
    with pytest.raises(ValueError, match="`image_size` must be larger for the network of `perceptual`, got 8"):
        load_perceptual(str(lpips_file), 8)
    classifiers()["convnext"].save_pretrained(tmp_path / "convnext")
    with pytest.raises(ValueError, match="`image_size` must be larger .* got 1"):
        load_perceptual(str(tmp_path / "convnext"), 1)


def classifiers():
    convnext = ConvNextConfig(patch_size=2, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=3)
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    return {"convnext": ConvNextForImageClassification(convnext), "resnet": ResNetForImageClassification(resnet)}


@pytest.mark.parametrize("name", ["convnext", "resnet"])
def test_any_classifier_with_maps_makes_a_loss(tmp_path, name):
    torch.manual_seed(0)
    classifiers()[name].save_pretrained(tmp_path / name)
    loss = load_perceptual(str(tmp_path / name)).train()
    assert isinstance(loss, ClassifierFeatures) and not any(module.training for module in loss.modules())
    one, other = images(0).requires_grad_(), images(1)
    found = loss(one, other)
    maps = zip(loss.maps(one), loss.maps(other), strict=True)
    expected = [(2 - 2 * nn.functional.cosine_similarity(a, b, dim=1)).mean() for a, b in maps]
    torch.testing.assert_close(found, torch.stack(expected).mean(), rtol=1e-4, atol=1e-6)
    assert loss(other, other) == 0
    found.backward()
    assert one.grad.abs().sum() > 0
    state = {key: value.clone() for key, value in loss.state_dict().items()}
    loss(one, other)
    assert all(torch.equal(value, loss.state_dict()[key]) for key, value in state.items()), "nothing is learned"


def test_the_gradient_is_finite_where_no_feature_is_active():
    """Behind a ReLU, all channels of a position may be 0."""
    latents = torch.tensor([-1.0, 2.0]).view(1, 1, 1, 2).repeat(1, 3, 1, 1).requires_grad_()
    difference_of_features(latents.relu(), torch.ones(1, 3, 1, 2)).sum().backward()
    assert latents.grad.isfinite().all() and not latents.grad[..., 0].any()
